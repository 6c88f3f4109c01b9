"""A 230 MB checkpoint to and from S3 (SeaweedFS on this machine), by the store with its digests and by plain s3fs.

The two take turns, each transfer in a process of its own, so that its peak memory is its own.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

MEGABYTES = 230  # a ResNet-152 of 365 classes, as in Places-LT
SCRIPT = """
import json, re, sys, time
from pathlib import Path
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
way, verb, file, folder = sys.argv[1:]
if way == "store":
    from btm_core.storage import Store
    store = Store("s3://btm/bench")
    store.read("nothing")  # connected
    send = lambda: store._put(Path(file), "weights", exclusive=True)
    fetch = lambda: store._get("weights", Path(file).stat().st_size, Path(folder, "got"))
else:
    import s3fs
    fs = s3fs.S3FileSystem()
    fs.exists("btm/nothing")
    send = lambda: fs.put_file(file, "btm/bench/weights")
    fetch = lambda: fs.get_file("btm/bench/weights", str(Path(folder, "got")))
before = peak()
start = time.perf_counter()
(send if verb == "upload" else fetch)()
took = time.perf_counter() - start
grown = peak() - before
print(json.dumps({"seconds": took, "megabytes": grown}))
"""


def measure(repetitions: int = 7) -> list[dict[str, Any]]:
    """Return rows for `benchmarks.run`: speeds of the store in relation to plain s3fs, and its memory."""
    rounds = compare(repetitions)
    rows = []
    for verb in ("upload", "download"):
        of = {way: [r for r in rounds if r["way"] == way and r["verb"] == verb] for way in ("plain", "store")}
        ratios = [p["seconds"] / s["seconds"] for p, s in zip(of["plain"], of["store"], strict=True)]
        median = {way: statistics.median(r["seconds"] for r in of[way]) for way in of}
        value = median["plain"] / median["store"]
        rows.append(
            {
                "name": f"{verb} of a 230 MB checkpoint with its digest: speed in relation to plain s3fs",
                "value": round(value, 2),
                "unit": "ratio of medians",
                "target": 0.8,
                "holds": value >= 0.8,
                "spread": [round(min(ratios), 2), round(max(ratios), 2)],
                "repetitions": repetitions,
                "seconds": {way: round(seconds, 2) for way, seconds in median.items()},
            }
        )
        peak = max(r["megabytes"] for r in of["store"])
        rows.append(
            {
                "name": f"{verb} of a 230 MB checkpoint: memory, at most",
                "value": round(peak),
                "unit": "MB",
                "target": 100,
                "holds": peak < 100,
                "spread": [round(min(r["megabytes"] for r in of["store"])), round(peak)],
                "repetitions": repetitions,
                "plain_s3fs": round(max(r["megabytes"] for r in of["plain"])),
            }
        )
    return rows


def compare(repetitions: int) -> list[dict[str, Any]]:
    """Return, for upload and download, seconds and peak memory of both ways, one entry a repetition."""
    from tests.seaweed import serve

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "weights"
        file.write_bytes(np.random.default_rng(0).bytes(MEGABYTES * 2**20))
        with serve(folder / "s3") as environment:
            rounds = []
            for _ in range(repetitions):
                for way in ("plain", "store"):
                    for verb in ("upload", "download"):
                        done = _transfer(way, verb, file, folder, environment)
                        rounds.append({"way": way, "verb": verb, **done})
                    _remove(environment)
            return rounds


def _transfer(way: str, verb: str, file: Path, folder: Path, environment: dict[str, str]) -> dict[str, float]:
    arguments = [sys.executable, "-c", SCRIPT, way, verb, str(file), str(folder)]
    done = subprocess.run(arguments, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    if verb == "download":
        assert (folder / "got").read_bytes() == file.read_bytes()
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _remove(environment: dict[str, str]) -> None:
    import s3fs

    keys = {"key": environment["AWS_ACCESS_KEY_ID"], "secret": environment["AWS_SECRET_ACCESS_KEY"]}
    fs = s3fs.S3FileSystem(**keys, endpoint_url=environment["AWS_ENDPOINT_URL_S3"], skip_instance_cache=True)
    fs.rm("btm/bench", recursive=True)
