"""2,000 small JPEG files from S3 (SeaweedFS on this machine): by the reader of images, through its cache, and by plain
s3fs, which neither hashes nor keeps them.

The ways take turns, each in a process of its own, so that its peak memory is its own.
"""

import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

COUNT = 2000
SCRIPT = """
import json, re, sys, time
from pathlib import Path
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
way, facts = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
names, digests = list(facts), list(facts.values())
if way == "plain":
    import s3fs
    fs = s3fs.S3FileSystem()
    fs.exists("btm/nothing")
    fetch = lambda: fs.cat([f"btm/bench/{name}" for name in names]).values()
else:
    from btm_core.data.reader import ImageReader
    reader = ImageReader("s3://btm/bench")
    reader._fs.exists("btm/nothing")
    fetch = lambda: (data for chunk in reader.stream(names, digests) for data in chunk)
before, start = peak(), time.perf_counter()
got = sum(map(len, fetch()))
print(json.dumps({"seconds": time.perf_counter() - start, "bytes": got, "memory": peak() - before}))
"""


def measure(repetitions: int = 5) -> list[dict[str, Any]]:
    """Return rows for `benchmarks.run`: speeds in relation to plain s3fs, and memory."""
    rounds = compare(repetitions)
    plain = [r["plain"] for r in rounds]
    rows = []
    for way, text, target in (("cold", "verified and kept", 0.8), ("cached", "from the cache, verified", 5.0)):
        ratios = [r["plain"]["seconds"] / r[way]["seconds"] for r in rounds]
        took = statistics.median(r[way]["seconds"] for r in rounds)
        rows.append(
            {
                "name": f"{COUNT:,} images from S3, {text}: speed in relation to plain s3fs",
                "value": round(statistics.median(ratios), 2),
                "unit": "ratio",
                "target": target,
                "holds": statistics.median(ratios) >= target,
                "spread": [round(min(ratios), 2), round(max(ratios), 2)],
                "repetitions": repetitions,
                "images_per_second": round(COUNT / took),
                "megabytes_per_second": round(rounds[0][way]["bytes"] / took / 1e6, 1),
                "plain_images_per_second": round(COUNT / statistics.median(r["seconds"] for r in plain)),
                "memory_megabytes": round(max(r[way]["memory"] for r in rounds)),
                "plain_memory_megabytes": round(max(r["memory"] for r in plain)),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def compare(repetitions: int) -> list[dict[str, Any]]:
    """Return seconds, bytes and peak memory of the three ways, one entry a repetition."""
    import hashlib

    from tests.seaweed import serve

    with tempfile.TemporaryDirectory() as name, serve(Path(name, "s3")) as environment:
        images = _images()
        _upload(images, environment)
        facts = Path(name, "digests.json")
        facts.write_text(json.dumps({path: hashlib.sha256(data).hexdigest() for path, data in images.items()}))
        cache = Path(name, "cache")
        rounds = []
        for _ in range(repetitions):
            shutil.rmtree(cache, ignore_errors=True)
            ways = {"plain": "plain", "cold": "reader", "cached": "reader"}
            settings = {**environment, "BTM_STORE_CACHE": str(cache)}
            rounds.append({name: _fetch(way, facts, settings) for name, way in ways.items()})
            assert {r["bytes"] for r in rounds[-1].values()} == {sum(map(len, images.values()))}
        return rounds


def _images() -> dict[str, bytes]:
    """Real digits, the last ones mirrored, as JPEG files of 128 pixels a side."""
    from PIL import Image, ImageOps
    from sklearn.datasets import load_digits

    digits = load_digits().images
    images = {}
    for number in range(COUNT):
        image = Image.fromarray((digits[number % len(digits)] * 255 / 16).astype("uint8")).resize((128, 128))
        file = io.BytesIO()
        (image if number < len(digits) else ImageOps.mirror(image)).save(file, "jpeg", quality=90)
        images[f"{number:04d}.jpg"] = file.getvalue()
    return images


def _upload(images: dict[str, bytes], environment: dict[str, str]) -> None:
    import s3fs

    keys = {"key": environment["AWS_ACCESS_KEY_ID"], "secret": environment["AWS_SECRET_ACCESS_KEY"]}
    fs = s3fs.S3FileSystem(**keys, endpoint_url=environment["AWS_ENDPOINT_URL_S3"], skip_instance_cache=True)
    fs.pipe({f"btm/bench/{path}": data for path, data in images.items()})


def _fetch(way: str, facts: Path, environment: dict[str, str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, way, str(facts)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, float] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    measure()
