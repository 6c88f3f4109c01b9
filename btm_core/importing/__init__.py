"""Checkpoints of other systems, in this project's form: `backbone.*`, `head.weight` (C, D), `head.bias` (C,)."""

from btm_core.importing.class_order import settle_ties
from btm_core.importing.convert import Imported, import_checkpoint
from btm_core.importing.probe import Probe, probe

__all__ = ["Imported", "Probe", "import_checkpoint", "probe", "settle_ties"]
