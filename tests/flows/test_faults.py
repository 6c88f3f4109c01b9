"""Whole runs on S3 with trouble between them and the server: they end as if undisturbed, or with one clear error.

What is asserted of artifacts is read straight from the server (`audit`), not through the proxy nor by the code under
test. The trouble that only large files have (parts, ranges) is that of tests/btm_core/test_store_faults.py.
"""

import json
import random
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faults
import pytest
import seaweed
from audit import artifacts_of, connect
from conftest import FAST, Btm, artifact_digests, clean_environment
from faults import Fault, Rule
from proxy import Proxy, Seen

pytestmark = pytest.mark.slow

Undisturbed = tuple[Path, dict[str, Any]]
IMPATIENT = {"BTM_STORE_DEADLINE_SECONDS": "5"}
RESTART_SECONDS = 10.0


@pytest.fixture(autouse=True)
def _home(databases: Path, tmp_path: Path) -> None:
    shutil.copytree(databases, tmp_path / ".btm")


@pytest.fixture(scope="module")
def expected(undisturbed: Undisturbed) -> dict[str, str]:
    """The artifacts of an undisturbed run on a local disk, by address."""
    return artifact_digests(undisturbed[0])


class Trial:
    """`btm run` of the reduced digits-lt, with a store of its own on a server behind a proxy."""

    def __init__(self, btm: Btm, proxy: Proxy, s3: dict[str, str], folder: Path, store: str = ""):
        self.btm, self.proxy, self.s3, self.folder = btm, proxy, s3, folder
        self.store = store or f"s3://btm/{uuid.uuid4().hex[:12]}"

    def run(self, code: int = 0, **environment: str) -> dict[str, Any]:
        """Run, which must end with this exit code; return the JSON answer, if any. What it said stays in `errors`."""
        done = self.btm(
            *("run", "digits-lt", "--json", "--store", self.store, *FAST),
            cwd=self.folder,
            timeout=600,
            **{
                **self.s3,
                "AWS_ENDPOINT_URL_S3": self.proxy.url,
                "BTM_CHECKPOINT_SECONDS": "0",
                "BTM_STORE_CACHE": str(self.folder / "cache"),
                **environment,
            },
        )
        self.errors = done.stderr
        assert done.returncode == code, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout or "{}")
        return answer

    def artifacts(self) -> dict[str, str]:
        """Return the digests of all artifacts, by address, each of which is whole."""
        digests, wrong = artifacts_of(self.s3, self.store)
        assert wrong == []
        return digests

    def told(self, *words: str) -> None:
        """The last thing the run said is one error, said once, that has these words and no traceback."""
        assert "Traceback" not in self.errors, self.errors
        lines = self.errors.strip().splitlines()
        starts = [number for number, line in enumerate(lines) if line.startswith("btm: ")]
        message = "\n".join(lines[starts[-1] :]) if starts else ""
        assert all(word in message for word in (self.store, *words)), self.errors
        assert not any(line.startswith("[") for line in lines[starts[-1] :]), self.errors
        assert self.errors.count(message.removeprefix("btm: ")) == 1, self.errors


@pytest.fixture
def trial(btm: Btm, proxy: Proxy, s3: dict[str, str], tmp_path: Path) -> Trial:
    return Trial(btm, proxy, s3, tmp_path)


@pytest.fixture(scope="module")
def calm(btm: Btm, s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Trial, list[Seen]]:
    """A run on S3 with no trouble at all, and its requests."""
    with Proxy(s3["AWS_ENDPOINT_URL_S3"]) as proxy:
        trial = Trial(btm, proxy, s3, tmp_path_factory.mktemp("calm"))
        trial.answer = trial.run()
        return trial, proxy.record


def figures(answer: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = answer["models"]
    return rows


def test_a_run_on_s3_is_the_run_on_a_disk_bit_for_bit(
    calm: tuple[Trial, list[Seen]], undisturbed: Undisturbed, expected: dict[str, str]
) -> None:
    trial, record = calm
    assert trial.artifacts() == expected
    assert figures(trial.answer) == figures(undisturbed[1])
    assert not [seen for seen in record if seen.status is None or seen.status >= 500]


def passing(record: list[Seen], seed: int) -> list[Rule]:
    """Return every fault that passes, each at random moments of a run with these requests.

    The moments are among the first 80 % of the requests that match: a disturbed run has more of them, but not in the
    same order.
    """
    draw = random.Random(seed)

    def rule(fault: Fault, method: str, target: str, times: int, burst: int = 1) -> Rule:
        probe = Rule(fault, method, target)
        count = int(0.8 * sum(probe.strikes(seen.method, seen.target) for seen in record))
        assert count >= times, f"the run makes too few requests {method} {target}"
        firsts = draw.sample(range(1, count + 1), times)
        return Rule(fault, method, target, at={first + i for first in firsts for i in range(burst)})

    return [
        rule(faults.status(503), "", "", times=3, burst=4),
        rule(faults.status(503), "PUT", "", times=2, burst=3),
        rule(faults.status(500, "InternalError"), "", "", times=3),
        rule(faults.reset, "", "", times=3, burst=2),
        rule(faults.reset, "GET", r"\.safetensors", times=2),
        rule(faults.lose_reply, "PUT", r"artifacts/.*\.safetensors", times=2),
        rule(faults.lose_reply, "PUT", r"artifacts/.*manifest\.json", times=3),
        rule(faults.lose_reply, "PUT", "partial/", times=2),
        rule(faults.lose_reply, "PUT", "runs/", times=2),
        rule(faults.lose_reply, "DELETE|POST", "", times=2),
        rule(faults.truncate(1000), "GET", r"\.(safetensors|json)", times=4),
        rule(faults.hang(1000), "GET", r"artifacts/.*\.safetensors", times=2),
        rule(faults.hang(), "PUT", "", times=2),
        rule(faults.delay(1), "", "", times=3),
    ]


def test_every_fault_that_passes_at_once(
    trial: Trial, calm: tuple[Trial, list[Seen]], undisturbed: Undisturbed, expected: dict[str, str]
) -> None:
    rules = passing(calm[1], seed=0)
    trial.proxy.add(*rules)
    answer = trial.run(BTM_STORE_READ_TIMEOUT_SECONDS="2", BTM_STORE_CACHE_GB="0")
    assert [rule for rule in rules if rule.done == 0] == []
    assert trial.artifacts() == expected
    assert figures(answer) == figures(undisturbed[1])


def test_a_store_that_stays_down_is_one_error_and_the_next_run_goes_on(
    trial: Trial, undisturbed: Undisturbed, expected: dict[str, str]
) -> None:
    down = Rule(faults.status(503), on=False)

    def go_down() -> None:
        down.on = True

    trial.proxy.add(Rule(faults.after(go_down), "PUT", r"artifacts/finetune/.*manifest\.json", at={1}), down)
    trial.run(2, **IMPATIENT, BTM_WORKERS="1")
    trial.told("SlowDown", "BTM_STORE_DEADLINE_SECONDS")
    struck = [seen for seen in trial.proxy.record if seen.fault == down.fault.name]
    assert 3 <= struck[-1].time - struck[0].time <= 90  # each of three fine-tunes has its own deadline of five seconds
    assert len(struck) < 200

    trial.proxy.clear()
    before = manifests(trial)
    assert len([address for address in before if address.startswith("finetune/")]) == 1
    answer = trial.run()
    assert answer["trained_stages"] == ["finetune", "post_train"]
    assert {"data", "pretrain", "sample"} <= set(answer["cached_stages"])
    assert manifests(trial).items() >= before.items()  # made once: records of epochs and all are those of before
    assert "fine-tune on subsets: 3 done, 1 of them found in the store" in trial.errors
    assert trial.artifacts() == expected
    assert figures(answer) == figures(undisturbed[1])


def manifests(trial: Trial) -> dict[str, bytes]:
    """Return the bytes of every manifest, by address."""
    fs = connect(trial.s3)
    root = f"{trial.store.removeprefix('s3://')}/artifacts/"
    names = [name for name in fs.find(root) if name.endswith("/manifest.json")]
    return {name.removeprefix(root).removesuffix("/manifest.json"): fs.cat_file(name) for name in names}


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[seaweed.Server]:
    """A server that may be killed."""
    server = seaweed.Server(tmp_path / "seaweed")
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_server_is_killed_in_the_middle_and_comes_back(
    btm: Btm, mortal: seaweed.Server, tmp_path: Path, expected: dict[str, str], when: str
) -> None:
    """At the second fine-tune's manifest: just before the server has it, or when it has said yes and nobody heard."""
    with ThreadPoolExecutor(1) as executor, Proxy(mortal.url) as proxy:
        trial = Trial(btm, proxy, mortal.environment, tmp_path)

        def come_back() -> None:
            threading.Event().wait(RESTART_SECONDS)
            mortal.start()

        def die() -> None:
            mortal.kill()
            back.append(executor.submit(come_back))

        back: list[Any] = []
        kill = Rule(getattr(faults, when)(die), "PUT", r"artifacts/finetune/.*manifest\.json", at={2})
        proxy.add(kill)
        trial.run()
        [start] = back
        start.result()
        assert trial.artifacts() == expected
        missed = [seen for seen in proxy.record if seen.status is None]
        assert missed[-1].time - missed[0].time > RESTART_SECONDS / 2  # it was asked for until it came back


REFUSALS = {
    "expired": (faults.expired, "expired"),
    "skewed": (faults.skewed, "clock"),
    "denied": (faults.status(403, "AccessDenied", "Access Denied."), "access is denied"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_waiting_does_not_mend_is_told_before_anything_is_started(trial: Trial, name: str) -> None:
    fault, word = REFUSALS[name]
    trial.proxy.add(Rule(fault))
    trial.run(2)
    trial.told(word)
    assert 0 < len(trial.proxy.record) <= 4  # asked once, perhaps in two ways: nobody waited
    assert trial.artifacts() == {}


def test_credentials_that_expire_in_the_middle(trial: Trial, expected: dict[str, str]) -> None:
    gone = Rule(faults.expired, on=False)

    def expire() -> None:
        gone.on = True

    trial.proxy.add(Rule(faults.after(expire), "PUT", r"artifacts/pretrain/.*manifest\.json", at={1}), gone)
    trial.run(2)
    trial.told("expired")
    assert 0 < gone.done <= 12  # no stage waited for its deadline
    trial.proxy.clear()
    assert trial.run()["trained_stages"] == ["finetune", "post_train"]
    assert trial.artifacts() == expected


def test_a_bucket_that_was_mistyped_is_not_created(btm: Btm, proxy: Proxy, s3: dict[str, str], tmp_path: Path) -> None:
    """The server's keys may create buckets, and it does so at the first write to one."""
    trial = Trial(btm, proxy, s3, tmp_path, "s3://no-such-bucket/store")
    trial.run(2)
    trial.told("bucket")
    assert len(proxy.record) <= 4
    assert "no-such-bucket" not in connect(s3).ls("")


def test_a_full_disk(trial: Trial) -> None:
    """It may be freed meanwhile, so it is waited for; what was done before is kept."""
    trial.proxy.add(Rule(faults.full, "PUT|POST", "artifacts/finetune", on=True))
    trial.run(2, **IMPATIENT)
    trial.told()
    assert {address.partition("/")[0] for address in trial.artifacts()} == {"data", "pretrain", "sample"}
    trial.proxy.clear()
    assert trial.run()["trained_stages"] == ["finetune", "post_train"]


def test_two_runs_of_random_kills(tmp_path: Path) -> None:
    """Of the hundred whose outcome is in benchmarks/results/chaos.json."""
    command = [sys.executable, "-m", "benchmarks.chaos", "2", "--output", str(tmp_path / "chaos.json")]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=clean_environment(), capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "chaos.json").read_text())
    assert found["runs"] == 2 and sum(found["kills"].values()) >= 2
    assert found["wrong_or_half_artifacts"] == found["unresumable"] == found["failures_with_nobody_striking"] == 0
