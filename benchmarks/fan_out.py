"""What fanning out costs on the local engine: `python -m benchmarks.fan_out [KEY=VALUE ...]` runs digits-lt once.

Prints one JSON document: how long the fine-tunes took from the first to the last, how much of that was training, and
the peak memory of Prefect's server. With `kill=1` the first worker that has ended 10 epochs of a fine-tune is killed.
`measure` has states kept after every epoch (BTM_CHECKPOINT_SECONDS=0): a kill costs the start of another worker.
`benchmarks.run` compares such runs.
"""

import json
import os
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["measure"]


def measure(folder: Path, *arguments: str, workers: int = 1) -> dict[str, Any]:
    """Run this file as a process in `folder`, with one fine-tune at a time unless said otherwise."""
    environment = {**os.environ, "BTM_WORKERS": str(workers), "BTM_CHECKPOINT_SECONDS": "0"}
    command = [sys.executable, "-m", "benchmarks.fan_out", *arguments]
    here = str(Path(__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [environment.get("PYTHONPATH")])])
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main() -> None:
    overrides = sys.argv[1:]
    kill = "kill=1" in overrides
    overrides = [override for override in overrides if not override.startswith("kill=")]

    import psutil

    from btm_core.config import load_experiment
    from flows.start import prefect_ready
    from tasks.events import listening
    from tasks.settings import RuntimeSettings

    settings = RuntimeSettings()

    times: list[float] = []
    trained: dict[tuple[str, int], float] = {}
    killed: list[float] = []
    peak = [0]

    def listen(event: dict[str, Any]) -> None:
        if not event["step"].startswith("finetune/"):
            return
        times.append(time.monotonic())
        if event["event"] == "epoch":
            trained[event["step"], event["epoch"]] = event["seconds"]
            if kill and not killed and event["epoch"] == 10:
                killed.append(time.monotonic())
                [worker] = [p for p in psutil.Process().children() if "tasks.engines.worker" in p.cmdline()]
                worker.kill()

    def watch() -> None:
        while True:
            for child in psutil.Process().children():
                try:
                    if "flows.own_server" in child.cmdline():
                        peak[0] = max(peak[0], child.memory_info().rss)
                except psutil.Error:
                    continue
            time.sleep(0.5)

    threading.Thread(target=watch, daemon=True).start()
    with listening(listen), prefect_ready(settings, False, lambda: import_module("flows.btm")):
        from flows.btm import btm

        answer = btm(load_experiment("digits-lt", overrides), settings, "fan-out")
    print(
        json.dumps(
            {
                "fine_tunes": len({step for step, _ in trained}),
                "seconds": times[-1] - times[0],
                "training_seconds": sum(trained.values()),
                "server_megabytes": peak[0] / 1e6,
                "whole_run_seconds": answer["seconds"],
            }
        )
    )


if __name__ == "__main__":
    main()
