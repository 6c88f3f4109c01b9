"""The process that does the work: `python -m tasks.worker`, told what on one line of standard input.

Standard output carries one JSON event a line. Standard input stays open for as long as the parent lives: when it
closes, this process ends, so that no orphan holds a GPU.
"""

import json
import os
import sys
import threading
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from btm_core.errors import BTMError
from btm_core.storage import Store
from tasks.evaluate import Evaluate
from tasks.finetune import Finetune
from tasks.merge import ChosenMerge, Merge
from tasks.post_train import PostTrain
from tasks.pretrain import ImportStage1, Pretrain, RetrainHead
from tasks.step import perform

__all__ = ["main"]

Work = Annotated[
    Pretrain | ImportStage1 | RetrainHead | Finetune | Merge | ChosenMerge | PostTrain | Evaluate,
    Field(discriminator="kind"),
]


def main() -> int:
    """Do the steps of one order, in turn. Returns 0, or 2 after reporting an error the user can mend."""
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_parent, daemon=True).start()
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not mix with events

    import torch

    torch.set_num_threads(order["threads"])
    torch.use_deterministic_algorithms(True, warn_only=True)
    store = Store(order["store"])
    for step in TypeAdapter(list[Work]).validate_python(order["steps"]):

        def emit(event: dict[str, Any], address: str = step.address) -> None:
            events.write(json.dumps({**event, "step": address}) + "\n")

        try:
            artifact = perform(step, store, emit, order["device"], order["checkpoint_seconds"])
        except BTMError as error:
            message = f"{step.stage} {step.readable}: {error}"
            emit({"event": "error", "type": type(error).__name__, "message": message})
            return 2
        emit({"event": "done", "artifact": artifact.model_dump()})
    return 0


def _die_with_parent() -> None:
    sys.stdin.read()
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main())
