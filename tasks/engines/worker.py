"""The process that does the work: `python -m tasks.engines.worker` takes orders, one a line of standard input.

Standard output carries one JSON event a line, `idle` after each order. Standard input stays open for as long as the
parent lives: when it closes, this process ends, whatever it is doing, so that no orphan holds a GPU.
"""

import json
import os
import queue
import shutil
import sys
import tempfile
import threading
import traceback
from typing import IO, Any, NoReturn

from btm_core.errors import BTMError
from btm_core.storage import Store
from tasks.engines.orders import steps_from_json
from tasks.engines.pool import SCRATCH
from tasks.imports import importing
from tasks.pixels import pixel_store
from tasks.step import perform_together
from tasks.system import SystemMonitor

__all__ = ["main"]


def main() -> NoReturn:
    """Take orders until standard input closes."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not mix with events
    orders: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read_orders, args=(orders,), daemon=True).start()

    with importing():
        import torch

        torch.use_deterministic_algorithms(True, warn_only=True)  # imports half of torch, as any optimizer would
    monitor = SystemMonitor()
    try:
        while True:
            _carry_out(json.loads(orders.get()), events, monitor)
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.empty_cache()  # another slot may share the GPU
            events.write(json.dumps({"event": "idle"}) + "\n")
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # at an orderly end libraries print, and the last words that the parent tells would be theirs


def _carry_out(order: dict[str, Any], events: IO[str], monitor: SystemMonitor) -> None:
    """Do the steps of an order, in turn; an error that the user can mend is reported, and ends the order."""
    import torch

    torch.set_num_threads(order["threads"])
    store, steps = Store(order["store"]), steps_from_json(order["steps"])
    for group in [steps] if steps[0].done_together else [[step] for step in steps]:

        def emit(address: str, event: dict[str, Any]) -> None:
            if event["event"] == "epoch":
                event = {**event, "system": monitor.read()}
            events.write(json.dumps({**event, "step": address}) + "\n")

        try:
            for artifact in perform_together(
                group,
                store,
                emit,
                device_name=order["device"],
                checkpoint_seconds=order["checkpoint_seconds"],
                processes=order["processes"],
                pixels=pixel_store(*order["pixels"]),
                compiled=order["compiled"],
                sharers=order["sharers"],
            ):
                emit(artifact.address, {"event": "done", "artifact": artifact.model_dump()})
        except BTMError as error:
            others = f" and {len(group) - 1} with it" if len(group) > 1 else ""
            message = f"{group[0].stage} {group[0].readable}{others}: {error}"
            emit(group[0].address, {"event": "error", "type": type(error).__name__, "message": message})
            return


def _read_orders(orders: "queue.SimpleQueue[str]") -> None:
    for line in sys.stdin:
        orders.put(line)
    if SCRATCH in tempfile.gettempdir():  # ours, made for this process
        shutil.rmtree(tempfile.gettempdir(), ignore_errors=True)
    os._exit(3)


if __name__ == "__main__":
    main()
