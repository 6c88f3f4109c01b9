"""Stage 1 by several processes on one machine, each with its GPU: DistributedDataParallel, started by torchrun's agent.

    worker: launch() -> agent: `python -m tasks.distributed` -> P processes: `python -m tasks.rank`

- Standard input of all of them is one pipe that nobody writes to and whose other end the worker holds. When it closes
  (the worker is done, or dead, or saw the agent die) they end, so that no orphan holds a GPU.
- Standard output of all of them is a pipe to the worker, one JSON event a line.
- If one process dies, the agent ends the others at once, and `launch` raises GroupDiedError: the worker dies of it, and
  is tried again from the last inner checkpoint, as after any death.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

from btm_core import errors
from btm_core.errors import BTMError, ConfigError
from tasks.step import Step
from tasks.workspace import Workspace

__all__ = ["GroupDiedError", "end_with_worker", "launch", "main"]


class GroupDiedError(RuntimeError):
    """One of the processes that train together ended; the others were ended too."""


def launch(step: Step, work: Workspace) -> None:
    """Train a stage 1 by `work.processes` processes; rank 0 writes to `work.output`, its news reach `work.emit`.

    Raises GroupDiedError if a process dies, and what a process raised if that is an error of the input.
    """
    path = work.scratch / "order.json"
    path.write_text(json.dumps(_order(step, work)))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "tasks.distributed", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=_environment(),
    )
    assert process.stdin and process.stdout
    lifeline = process.stdin
    watch = threading.Thread(target=_close_at_end, args=(process, lifeline), daemon=True)
    watch.start()
    try:
        refusal, deaths = _listen(process.stdout, work)
        code = process.wait()
    finally:
        process.kill()
        watch.join()
        process.stdout.close()
    if refusal is not None:
        raise refusal
    if code != 0:
        how = deaths or f"torchrun's agent ended with code {code}"
        raise GroupDiedError(f"{step.address} was being trained by {work.processes} processes: {how}; all were ended")


def _order(step: Step, work: Workspace) -> dict[str, Any]:
    import torch

    kind = work.device.type
    if kind == "cuda" and torch.cuda.device_count() < work.processes:
        raise ConfigError(
            f"BTM_PRETRAIN_GPUS asks for {work.processes} GPUs, {torch.cuda.device_count()} can be seen; lower it"
        )
    return {
        "step": step.model_dump(mode="json"),
        "store": work.store.url,
        "output": str(work.output),
        "scratch": str(work.scratch),
        "device": kind,
        "processes": work.processes,
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "checkpoint_seconds": work.checkpoint_seconds,
        "compiled": work.compiled,
        "pixels": None
        if work.pixels is None
        else [size // work.processes for size in (work.pixels.memory, work.pixels.disk)],
    }


def _environment() -> dict[str, str]:
    here = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}
    environment.setdefault("OMP_NUM_THREADS", "1")  # torchrun would say so, at length
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are here: whatever this machine's name resolves to
    return environment


def _close_at_end(process: "subprocess.Popen[str]", lifeline: IO[str]) -> None:
    """End what the agent leaves behind if it is killed."""
    process.wait()
    lifeline.close()


def _listen(news: IO[str], work: Workspace) -> tuple[BTMError | None, str]:
    """Hand events on until no process is left; return the error of a process, and who died of what."""
    refusal, deaths = None, ""
    for line in news:
        if not line.startswith("{"):  # torchrun's agent may print; the processes that train do not
            sys.stderr.write(line)
            continue
        event = json.loads(line)
        if event["event"] == "error":
            kind = getattr(errors, event["type"], BTMError)
            refusal = refusal or kind(event["message"])
        elif event["event"] == "deaths":
            deaths = event["message"]
        else:
            work.emit(event)
    return refusal, deaths


def main() -> int:
    """Be the agent."""
    [path] = sys.argv[1:]
    threading.Thread(target=end_with_worker, daemon=True).start()
    return _agent(json.loads(Path(path).read_text()), path)


def end_with_worker() -> None:
    """Wait until the worker closes standard input, and end at once."""
    sys.stdin.read()
    os._exit(3)


def _agent(order: dict[str, Any], path: str) -> int:
    """Start the processes, wait for them, and say who died if they are not all done."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=order["processes"],
        run_id=Path(order["scratch"]).parent.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,  # the engine starts the worker again, which finds the last inner checkpoint
        logs_specs=DefaultLogsSpecs(log_dir=order["scratch"]),
    )
    try:
        elastic_launch(config, sys.executable)("-P", "-m", "tasks.rank", path)
    except ChildFailedError as error:
        # First who was killed, then who failed (perhaps of losing the other), then those that the agent itself ended.
        def order_of_interest(item: tuple[int, ProcessFailure]) -> tuple[bool, bool, int]:
            rank, failure = item
            return failure.exitcode == -signal.SIGTERM, failure.exitcode >= 0, rank

        deaths = [
            f"rank {rank} was killed by {failure.signal_name()}"
            if failure.exitcode < 0
            else f"rank {rank} ended with code {failure.exitcode}"
            for rank, failure in sorted(error.failures.items(), key=order_of_interest)
        ]
        print(json.dumps({"event": "deaths", "message": ", ".join(deaths)}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
