"""Where the time of one `btm run digits-lt` goes, from the start of its process to its end.

- start: until the first step is looked for: imports, the data scanned, Prefect's server, MLflow's database.
- worker: what the first training waits for its worker.
- training: from the first step to the last post-training, without that.
- evaluation: of all models.
- end: report, figures, what MLflow has not yet been sent, the server's end, the process's own.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["measure"]

LISTENING = """
import json, sys, time
from flows.cli import main
from tasks.events import listening
news = []
listen = lambda event: news.append((time.time(), event["event"], event["step"], event.get("seconds")))
report, *sys.argv[1:] = sys.argv[1:]
try:
    with listening(listen):
        main()
finally:
    with open(report, "w") as file:
        json.dump(news, file)
"""


def measure(folder: Path) -> dict[str, float]:
    """Run digits-lt in `folder`; return the seconds of each phase, and `all`."""
    began = time.time()
    command = [sys.executable, "-c", LISTENING, "news.json", "run", "digits-lt"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    ended = time.time()
    if done.returncode:
        sys.exit(done.stderr)
    news: list[list[Any]] = json.loads((folder / "news.json").read_text())
    first, last = news[0][0], news[-1][0]
    evaluated = next(time for time, _, step, _ in news if step.startswith("evaluate/"))
    worker = _wait_for_worker(news)
    phases = {"start": first - began, "worker": worker, "training": evaluated - first - worker}
    phases |= {"evaluation": last - evaluated, "end": ended - last, "all": ended - began}
    return {name: round(value, 2) for name, value in phases.items()}


def _wait_for_worker(news: list[list[Any]]) -> float:
    """Return the seconds from the start of stage 1 to that of its first epoch; 0 if nothing was trained."""
    epoch = next((row for row in news if row[1] == "epoch"), None)
    if epoch is None:
        return 0.0
    started = next(time for time, event, step, _ in news if event == "started" and step == epoch[2])
    return float(epoch[0] - epoch[3] - started)
