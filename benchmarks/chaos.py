"""Random kills in runs on a real S3 server: `python -m benchmarks.chaos [N]` makes N runs, 100 by default.

Each run of a small experiment is struck one to three times, at moments drawn by its seed: SIGKILL to the process of the
flow with all of its children, to that process alone, to a worker, or to the S3 server, which is started again after up
to 5 s. A run that died is started again, as its user would do, until it ends. Then every byte of its artifacts is read
straight from the server: each must be what its manifest says, all must be those of an undisturbed run, and one more
run must find everything done. Prints one line a run, and writes benchmarks/results/chaos.json after each.

A moment is a request of the run to the server, counted by the proxy between them: just before the server gets it, when
the server has done it and nobody knows, or up to 3 s later, in the midst of whatever is done then.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # theirs are the server, the proxy and the look from outside

import faults  # noqa: E402
import seaweed  # noqa: E402
from audit import artifacts_of  # noqa: E402
from prefect_server import PrefectServer  # noqa: E402
from proxy import Proxy  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "chaos.json"
EXPERIMENT = (
    "digits-lt",
    "--set=pretrain.epochs=3",
    "--set=sampling.num_subsets=2",
    "--set=finetune.epochs=3",
    "--set=post_train.epochs=2",
    "--set=evaluation.baseline=false",
)
KINDS = ("run", "flow", "worker", "server")
"""Whom a strike kills: the flow with all its children, the flow's process alone, one worker, the S3 server."""
MARK = "BTM_CHAOS_MARK"
LONGEST_SECONDS = 900.0
UNDISTURBED_FAILURES = 3
"""A run that fails so often with nobody striking cannot be resumed."""


@dataclass(frozen=True)
class Strike:
    """A kill: of whom, at which request since the start or the strike before, and `when` in relation to it.

    - seconds: how much later, with `when` "later"; pause: how long the server stays away (s).
    """

    kind: str
    request: int
    when: str
    seconds: float
    pause: float

    @classmethod
    def draw(cls, draw: random.Random, requests: int) -> "list[Strike]":
        """Draw one to three for a run that makes so many requests if undisturbed."""
        strikes = []
        for number in range(draw.randint(1, 3)):
            request = draw.randint(1, requests * 9 // 10 if number == 0 else requests // 3)
            kind, when = draw.choice(KINDS), draw.choice(("before", "after", "later"))
            strikes.append(cls(kind, request, when, round(draw.uniform(0, 3), 2), round(draw.uniform(0, 5), 2)))
        return strikes


class Arena:
    """An S3 server behind a proxy, a Prefect server that is left alone, and one home folder for all runs, in turn."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.server = seaweed.Server(folder / "seaweed")
        self.proxy = Proxy(self.server.url)
        (folder / "prefect").mkdir()
        self.prefect = PrefectServer(folder / "prefect")  # one for all: starting one takes as long as a run
        self.restarts: Future[None] | None = None
        self._executor = ThreadPoolExecutor(1)

    def __enter__(self) -> "Arena":
        self.server.start()
        self.proxy.start()
        self.prefect.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._executor.shutdown()
        self.prefect.stop()
        self.proxy.stop()
        self.server.kill()

    def start(self, store: str, mark: str, cache: bool) -> "subprocess.Popen[str]":
        """Start a run on a store; what it says goes to files."""
        strange = ("BTM_", "PREFECT_", "MLFLOW_", "AWS_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
        environment |= {**self.server.environment, "AWS_ENDPOINT_URL_S3": self.proxy.url, MARK: mark}
        environment |= {"BTM_CHECKPOINT_SECONDS": "0", "BTM_WORKERS": "2"}
        environment["PREFECT_API_URL"] = self.prefect.environment["PREFECT_API_URL"]
        environment |= {"BTM_STORE_CACHE": str(self.folder / "cache"), "BTM_STORE_CACHE_GB": "1" if cache else "0"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "flows.cli", "run", *EXPERIMENT, "--json", "--store", store]
        with (self.folder / "out.json").open("w") as out, (self.folder / "err.txt").open("w") as err:
            return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=out, stderr=err, text=True)

    def calm(self, store: str, mark: str = "", cache: bool = True) -> dict[str, Any]:
        """Run with nobody striking; return the answer. Raises RuntimeError with its last words if it fails."""
        code = self.wait(self.start(store, mark, cache))
        if code != 0:
            raise RuntimeError(f"exit code {code}: {self.last_words()}")
        answer: dict[str, Any] = json.loads((self.folder / "out.json").read_text())
        return answer

    def wait(self, process: "subprocess.Popen[str]") -> int | None:
        """Return the exit code, None of a run that hangs: it is killed."""
        try:
            return process.wait(LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            kill_tree(process.pid)
            process.wait()
            return None

    def last_words(self) -> str:
        return (self.folder / "err.txt").read_text()[-2000:]

    def restart_server(self, pause: float) -> None:
        """Kill the server, and start it again after a pause, in a thread of its own."""
        self.server_is_back()
        self.server.kill()

        def come_back() -> None:
            time.sleep(pause)
            self.server.start()

        self.restarts = self._executor.submit(come_back)

    def server_is_back(self) -> None:
        """Wait until the server is there again, if it was killed."""
        if self.restarts is not None:
            self.restarts.result()


class Striking:
    """Carries out strikes against one process, in turn, from `with` on; `kills` are those that came to pass."""

    def __init__(self, strikes: list[Strike], process: "subprocess.Popen[str]", arena: Arena, draw: random.Random):
        self.strikes, self.process, self.arena, self.draw = strikes, process, arena, draw
        self.kills: list[Strike] = []
        self._over = False
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "Striking":
        self._arm()
        return self

    def __exit__(self, *details: object) -> None:
        with self._lock:
            self._over = True
            if self._timer is not None:
                self._timer.cancel()
            self.arena.proxy.clear()

    def _arm(self) -> None:
        self.arena.proxy.clear()
        if self.strikes:
            strike = self.strikes[0]
            event = partial(self._later if strike.when == "later" else self._hit, strike)
            fault = faults.after(event) if strike.when == "after" else faults.before(event)
            # If there is no worker to be killed yet, then at the next request.
            self.arena.proxy.add(faults.Rule(fault, at=range(strike.request, sys.maxsize)))

    def _later(self, strike: Strike) -> None:
        with self._lock:
            if self._timer is None and not self._over:
                self._timer = threading.Timer(strike.seconds, self._hit, [strike])
                self._timer.start()

    def _hit(self, strike: Strike) -> None:
        with self._lock:
            self._timer = None
            if self._over or strike not in self.strikes[:1] or self.process.poll() is not None:
                return  # too late, or done by the request before
            if self._kill(strike):
                self.kills.append(self.strikes.pop(0))
                self._arm()

    def _kill(self, strike: Strike) -> bool:
        """Kill whom a strike is for; False if there is nobody."""
        if strike.kind == "worker":
            return self._kill_a_worker()
        if strike.kind == "server":
            self.arena.restart_server(strike.pause)
        elif strike.kind == "run":
            kill_tree(self.process.pid)
        else:
            self.process.kill()
        return True

    def _kill_a_worker(self) -> bool:
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children(recursive=True)
            workers = [child for child in children if "tasks.engines.worker" in child.cmdline()]
            if workers:
                self.draw.choice(workers).kill()
                return True
        return False


def one_run(seed: int, arena: Arena, requests: int, expected: dict[str, str]) -> dict[str, Any]:
    """Make one run with its strikes, and look at what it left behind."""
    draw = random.Random(seed)
    strikes = Strike.draw(draw, requests)
    cache = draw.random() < 0.5
    store, mark = f"s3://btm/chaos-{seed}", uuid.uuid4().hex
    begun = time.monotonic()
    kills: list[Strike] = []
    wrong: list[str] = []
    failures: list[str] = []
    starts = 0
    code = None
    while code != 0 and len(failures) < UNDISTURBED_FAILURES:
        process = arena.start(store, mark, cache)
        starts += 1
        with Striking(strikes, process, arena, draw) as striking:
            code = arena.wait(process)
        kills += striking.kills
        if code != 0 and not striking.kills:
            failures.append(f"exit code {code}: {arena.last_words()}")
        arena.server_is_back()
        wrong += artifacts_of(arena.server.environment, store)[1]
    resumed = code == 0
    if resumed:
        try:
            again = arena.calm(store, mark, cache)
            resumed = again["made_stages"] == again["trained_stages"] == []
        except RuntimeError as error:
            failures.append(str(error))
            resumed = False
        digests, found = artifacts_of(arena.server.environment, store)
        wrong += [*found, *(f"{a} is not that of an undisturbed run" for a in differing(digests, expected))]
    sweep(mark)
    return {
        "seed": seed,
        "kills": [asdict(kill) for kill in kills],
        "restarts": starts - 1,
        "wrong_or_half_artifacts": sorted(set(wrong)),
        "resumable": resumed,
        "failures_with_nobody_striking": failures,
        "cache": cache,
        "seconds": round(time.monotonic() - begun, 1),
    }


def differing(digests: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Return the addresses that only one of two stores has, or whose content differs."""
    return sorted(address for address, _ in digests.items() ^ expected.items())


def kill_tree(pid: int) -> None:
    """Kill a process and its descendants: stopped first, so that none can notice that another has gone."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for action in ("suspend", "kill"):
        for process in family:
            with suppress(psutil.NoSuchProcess):
                getattr(process, action)()


def sweep(mark: str) -> None:
    """Kill what the runs with a mark in their environment left behind."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                process.kill()


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    kills = Counter(kill["kind"] for row in rows for kill in row["kills"])
    return {
        "runs": len(rows),
        "seeds": [row["seed"] for row in rows],
        "kills": {kind: kills[kind] for kind in KINDS},
        "restarts": sum(row["restarts"] for row in rows),
        "wrong_or_half_artifacts": sum(len(row["wrong_or_half_artifacts"]) for row in rows),
        "unresumable": sum(not row["resumable"] for row in rows),
        "failures_with_nobody_striking": sum(len(row["failures_with_nobody_striking"]) for row in rows),
        "experiment": EXPERIMENT,
        "server": subprocess.run([seaweed.BINARY, "version"], capture_output=True, text=True).stdout.strip(),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()},
        "rows": rows,
    }


def line(row: dict[str, Any]) -> str:
    kills = ", ".join(f"{kill['kind']} {kill['when']} request {kill['request']}" for kill in row["kills"]) or "none"
    wrong, ended = len(row["wrong_or_half_artifacts"]), "ended" if row["resumable"] else "COULD NOT BE RESUMED"
    return (
        f"seed {row['seed']:>3}  {ended}, wrong {wrong}, restarts {row['restarts']}, {row['seconds']:.0f} s; "
        f"killed: {kills}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=int, nargs="?", default=100)
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="go on from this seed; earlier rows stay")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    first, output = arguments.first, arguments.output
    before = json.loads(output.read_text())["rows"] if first and output.is_file() else []
    rows: list[dict[str, Any]] = [row for row in before if row["seed"] < first]
    with tempfile.TemporaryDirectory(prefix="btm-chaos-") as folder, Arena(Path(folder)) as arena:
        arena.calm("s3://btm/undisturbed")
        requests = len(arena.proxy.record)
        expected, wrong = artifacts_of(arena.server.environment, "s3://btm/undisturbed")
        assert expected and not wrong, wrong
        print(f"an undisturbed run: {requests} requests, {len(expected)} artifacts", flush=True)
        for seed in range(first, first + arguments.runs):
            rows.append(one_run(seed, arena, requests, expected))
            print(line(rows[-1]), flush=True)
            output.write_text(json.dumps(summary(rows), indent=1) + "\n")
    total = summary(rows)
    bad = total["wrong_or_half_artifacts"] + total["unresumable"]
    print(f"{total['runs']} runs, kills {total['kills']}, wrong {total['wrong_or_half_artifacts']}, ", end="")
    print(f"unresumable {total['unresumable']}; written to {output}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
