"""One of the processes that train a stage 1 together: `python -m tasks.rank ORDER`, started by `tasks.distributed`."""

import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from btm_core.errors import BTMError
from btm_core.storage import Store
from tasks.distributed import end_with_worker
from tasks.pretrain import Pretrain
from tasks.workspace import Emit, Workspace

__all__ = ["main"]


def main() -> int:
    """Train. It never returns after an error: leaving the group could wait for ever."""
    [path] = sys.argv[1:]
    threading.Thread(target=end_with_worker, daemon=True).start()
    order = json.loads(Path(path).read_text())
    events = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not mix with events

    def tell(event: dict[str, Any]) -> None:
        os.write(events, (json.dumps(event) + "\n").encode())

    try:
        _share_in(order, tell)
    except BTMError as error:
        tell({"event": "error", "type": type(error).__name__, "message": str(error)})
        os._exit(2)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    return 0


def _share_in(order: dict[str, Any], tell: Emit) -> None:
    import torch

    from btm_core.data.pixel_store import PixelStore
    from btm_core.distributed import joined

    rank, on_gpu = int(os.environ["RANK"]), order["device"] == "cuda"
    torch.set_num_threads(order["threads"])
    torch.use_deterministic_algorithms(order["deterministic"], warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    step = Pretrain.model_validate(order["step"])
    scratch = Path(order["scratch"], f"rank-{rank}")
    scratch.mkdir()
    work = Workspace(
        store=Store(order["store"]),
        address=step.address,
        output=Path(order["output"]),
        scratch=scratch,
        emit=tell if rank == 0 else lambda event: None,
        device_name=f"cuda:{os.environ['LOCAL_RANK']}" if on_gpu else "cpu",
        checkpoint_seconds=order["checkpoint_seconds"],
        processes=order["processes"],
        rank=rank,
        compiled=order["compiled"],
        pixels=order["pixels"] and PixelStore(*order["pixels"]),
    )
    with joined(work.device) as group:
        step.train(work, group)


if __name__ == "__main__":
    sys.exit(main())
