"""Run BTM and kill this process with SIGKILL at a named moment: `crash.py EVENT STAGE COUNT PRESET [--set=K=V ...]`.

With `worker` in place of an event, the first worker process that reports an epoch of STAGE is killed instead.
"""

import os
import signal
import sys
from importlib import import_module
from typing import Any

import psutil


def main() -> None:
    event, stage, count, preset, *overrides = sys.argv[1:]

    from btm_core.config import load_experiment
    from flows.start import prefect_ready
    from tasks.events import listening
    from tasks.settings import RuntimeSettings

    settings = RuntimeSettings()

    left = int(count)

    def strike(news: dict[str, Any]) -> None:
        nonlocal left
        wanted = "epoch" if event == "worker" else event
        if news["event"] != wanted or not news["step"].startswith(stage + "/") or left == 0:
            return
        left -= 1
        if left:
            return
        if event == "worker":
            workers = [p for p in psutil.Process().children() if "tasks.engines.worker" in " ".join(p.cmdline())]
            workers[0].kill()
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    with listening(strike), prefect_ready(settings, False, lambda: import_module("flows.btm")):
        from flows.btm import btm

        experiment = load_experiment(preset, [override.removeprefix("--set=") for override in overrides])
        result = btm(experiment, settings, f"crash-{event}-{stage}")
    print(result["run_id"])


if __name__ == "__main__":
    main()
