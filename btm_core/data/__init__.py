"""Data sets: readers, the long-tail cut, checks, decoding, augmentation.

The names below are imported when they are asked for: a served model decodes images, and has no use for the readers, nor
for the stores behind them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from btm_core.data.catalog import Catalog, Split
    from btm_core.data.long_tail import LongTailProfile, class_counts, long_tail_indices, profile
    from btm_core.data.readers import scan
    from btm_core.data.sources import read_list

__all__ = [
    "Catalog",
    "LongTailProfile",
    "Split",
    "class_counts",
    "long_tail_indices",
    "profile",
    "read_list",
    "scan",
]

MODULES = {
    "catalog": ("Catalog", "Split"),
    "long_tail": ("LongTailProfile", "class_counts", "long_tail_indices", "profile"),
    "readers": ("scan",),
    "sources": ("read_list",),
}


def __getattr__(name: str) -> Any:
    for module, names in MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
