"""Steps on their way to another process: which kinds there are, and how they come out of JSON again."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from tasks.evaluate import Evaluate
from tasks.finetune import Finetune
from tasks.merge import ChosenMerge, Merge
from tasks.post_train import PostTrain
from tasks.pretrain import Pretrain, RetrainHead
from tasks.probe import Probe
from tasks.step import Step

__all__ = ["Work", "steps_from_json", "steps_to_json"]

Work = Annotated[
    Pretrain | RetrainHead | Finetune | Merge | ChosenMerge | PostTrain | Evaluate | Probe,
    Field(discriminator="kind"),
]
_STEPS: TypeAdapter[list[Work]] = TypeAdapter(list[Work])


def steps_to_json(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Return steps as JSON-ready dicts."""
    return [step.model_dump(mode="json") for step in steps]


def steps_from_json(documents: Sequence[dict[str, Any]]) -> list[Step]:
    """Return the steps that `steps_to_json` wrote."""
    return list(_STEPS.validate_python(documents))
