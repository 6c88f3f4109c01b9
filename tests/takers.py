"""A process that uses a cache at random, and tells of every use: `python tests/takers.py FOLDER LIMIT SEED ROUNDS`.

Each use is a line on standard output, `ok` if it got what it asked for, or the error that it should have.
"""

import hashlib
import random
import sys
import tempfile
from pathlib import Path

from btm_core.errors import StoreError
from btm_core.storage.cache import FileCache

__all__ = ["FILES", "digest"]

FILES = [random.Random(number).randbytes(1 + number * 7919 % 60_000) for number in range(16)]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    folder, limit, seed, rounds = sys.argv[1:]
    cache, chance = FileCache(Path(folder), int(limit)), random.Random(int(seed))
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(int(rounds)):
            said = use(cache, chance, Path(scratch))
            print(said if cache.works else "given up", flush=True)
    print("done", flush=True)


def use(cache: FileCache, chance: random.Random, scratch: Path) -> str:
    wanted = chance.choice(FILES)
    what = chance.choice(["take", "take", "read", "keep", "spoilt", "fails"])
    if what == "read":
        return "ok" if cache.read(digest(wanted)) in (None, wanted) else "wrong"
    if what == "keep":
        return "ok" if cache.keep(wanted) == digest(wanted) else "wrong"

    def download(partial: Path) -> tuple[str, int]:
        sent = wanted[:-1] + bytes([wanted[-1] ^ 1]) if what == "spoilt" else wanted
        with partial.open("wb", buffering=0) as file:
            for start in range(0, len(sent), 4096):
                file.write(sent[start : start + 4096])
                if what == "fails" and chance.random() < 0.3:
                    raise ConnectionResetError("in the middle")
        return digest(sent), len(sent)

    target = scratch / "file"
    try:
        if cache.take(digest(wanted), len(wanted), download, target).read_bytes() != wanted:
            return "wrong"
        target.unlink()
    except StoreError:
        return "ok" if what == "spoilt" else "wrong"
    except ConnectionResetError:
        return "ok" if what == "fails" else "wrong"
    return "ok" if [path.name for path in scratch.iterdir()] == [] else "wrong"


if __name__ == "__main__":
    main()
