"""What housekeeping costs on a real S3 server: a SeaweedFS of its own, started as the tests start theirs.

`python -m benchmarks.store` prints the rows; `benchmarks.run` has them as group `store-verify`.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import row, seconds

ARTIFACTS = 1000
KILOBYTES = 16


@contextmanager
def s3_server() -> Iterator[None]:
    """Run SeaweedFS while the block lasts; the environment reaches it."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import seaweed

    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder, seaweed.serve(Path(folder)) as environment:
        os.environ.update(environment)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def publish_many(url: str) -> None:
    """Publish small artifacts of two files each, as a fine-tune of a small network leaves them."""
    from btm_core.storage import Store

    store = Store(url)
    rng = np.random.default_rng(0)

    def publish(number: int) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "model.safetensors").write_bytes(rng.bytes(KILOBYTES * 1000))
            (folder / "records.jsonl").write_text("{}\n" * 30)
            facts: dict[str, Any] = {"config": {}, "parents": {}, "versions": {}, "host": {}}
            store.publish(f"finetune/subset-{number:04d}-{number:016x}", folder, logs=("records.jsonl",), **facts)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(publish, range(ARTIFACTS)))


def verify_many() -> dict[str, Any]:
    """`btm store verify` of 1,000 small artifacts: list them, read every manifest and every file, hash them."""
    from btm_core.storage import Store
    from tasks.housekeeping.inventory import read_inventory
    from tasks.housekeeping.verifying import Verdict, verify

    verdicts: list[Verdict] = []

    def read_all(url: str) -> None:
        store = Store(url)
        verdicts.append(verify(store, read_inventory(store)))

    with s3_server():
        publish_many("s3://btm/verify")
        times = seconds(lambda: read_all("s3://btm/verify"), 3)
    assert all(verdict.artifacts == ARTIFACTS and not verdict.damaged for verdict in verdicts)
    read = verdicts[0].bytes / 1e6
    name = f"btm store verify: {ARTIFACTS:,} artifacts of {KILOBYTES} kB on SeaweedFS"
    return row(name, times, 30, megabytes=round(read, 1))


if __name__ == "__main__":
    verify_many()
