"""Images are decoded once, and kept where there is room."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_digits
from numpy.typing import NDArray

from btm_core.config import InputConfig
from btm_core.data.dataset import LabelledImages
from btm_core.data.files import content_digests
from btm_core.data.images import ImageFiles
from btm_core.data.pixel_store import PixelStore

VIEW = InputConfig(size=12, channels=1, mean=(0.3,), std=(0.4,))


def image(number: int, height: int = 10, width: int = 20) -> NDArray[np.uint8]:
    return np.full((height, width, 3), number % 256, np.uint8)


def test_memory_first_then_disk_then_nothing(tmp_path: Path) -> None:
    store = PixelStore(memory=1500, disk=128 * 2**20, folder=str(tmp_path))
    for number in range(5):
        store.keep(str(number), image(number))
    assert (store.memory, store.disk) == (300, 0)  # two of 600 bytes in memory, and one file of 128 MiB
    assert len(store) == 5
    store.keep("too large", np.zeros((2**14, 2**14), np.uint8))
    assert store.get("too large") is None
    for number in range(5):
        found = store.get(str(number))
        assert found is not None
        assert np.array_equal(found, image(number))
        assert not found.flags.writeable
    assert list(tmp_path.iterdir()) == []  # files without names


def test_a_small_room_on_disk_is_used_and_stays_open_to_what_fits(tmp_path: Path) -> None:
    store = PixelStore(memory=0, disk=5000, folder=str(tmp_path))
    store.keep("a", image(1))
    store.keep("too large", np.zeros((100, 100), np.uint8))
    store.keep("b", image(2))
    assert (store.get("a") is not None, store.get("too large"), store.get("b") is not None) == (True, None, True)


def test_without_room_nothing_is_kept() -> None:
    store = PixelStore(memory=599)
    store.keep("a", image(1))
    assert store.get("a") is None
    assert len(store) == 0


def test_what_is_kept_does_not_change_with_what_was_given() -> None:
    store, given = PixelStore(memory=600), image(1)
    store.keep("a", given)
    given[...] = 9
    found = store.get("a")
    assert found is not None
    assert (found == 1).all()


def test_many_threads_may_keep_and_get(tmp_path: Path) -> None:
    store = PixelStore(memory=60_000, disk=256 * 2**20, folder=str(tmp_path))

    def use(number: int) -> bool:
        store.keep(str(number % 150), image(number % 150))
        found = store.get(str(number % 150))
        return found is not None and np.array_equal(found, image(number % 150))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(3000)))
    assert (len(store), store.memory) == (150, 0)


FULL = """
import numpy as np, resource, sys
from btm_core.data.pixel_store import PixelStore
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = PixelStore(memory=0, disk=2**40, folder=sys.argv[1])
store.keep("a", np.ones((100, 100), np.uint8))
assert store.get("a") is None and store.disk == 0
print("goes on")
"""


def test_a_disk_without_room_is_no_error(tmp_path: Path) -> None:
    """The system refuses the file, as a full disk would; a process that wrote to it all the same would be killed."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("goes on\n", "")


@pytest.fixture
def files(tmp_path: Path) -> ImageFiles:
    root = write_digits(tmp_path / "images")
    paths = sorted(str(path.relative_to(root)) for path in (root / "train" / "digit-0").iterdir())[:12]
    digests = np.array([list(bytes.fromhex(digest)) for digest in content_digests(str(root), paths, None)], np.uint8)
    return ImageFiles(str(root), paths, digests)


def epoch(source: ImageFiles, number: int, order: torch.Tensor | None = None) -> torch.Tensor:
    data = LabelledImages(source, torch.zeros(len(source.paths)).long(), VIEW)
    chosen = torch.arange(len(source.paths)) if order is None else order
    return torch.cat([x for (x,), _ in data.train_batches(chosen, 5, torch.device("cpu"), "seed", number)])


def test_epochs_and_subsets_share_what_was_decoded(files: ImageFiles, decoded: list[str]) -> None:
    plain = [epoch(files, number) for number in range(3)]
    assert len(decoded) == 36
    decoded.clear()
    kept = files.kept_in(PixelStore(memory=10**6), 1)
    assert all(torch.equal(epoch(kept, number), plain[number]) for number in range(3))  # not one bit differs
    epoch(kept.take(torch.tensor([3, 1, 4, 1, 5, 9])), 0)
    assert sorted(decoded) == sorted(files.paths)  # each once


def test_what_found_no_room_is_decoded_again(files: ImageFiles, decoded: list[str]) -> None:
    kept = files.kept_in(PixelStore(memory=5 * 64), 1)  # 5 images of 8 x 8
    plain = epoch(files, 1)
    decoded.clear()
    epoch(kept, 0)
    assert torch.equal(epoch(kept, 1), plain)
    assert len(decoded) == 12 + 7


def test_kept_images_need_their_files_no_more(files: ImageFiles) -> None:
    kept = files.kept_in(PixelStore(memory=10**6), 1)
    first = epoch(kept, 0)
    for path in files.paths:
        Path(files.root, path).unlink()
    assert torch.equal(epoch(kept, 0), first)


def test_grey_and_colour_are_kept_apart(files: ImageFiles) -> None:
    store = PixelStore(memory=10**6)
    epoch(files.kept_in(store, 1), 0)
    content = files.kept_in(store, 3).fetch(torch.arange(12)).content
    assert all(isinstance(item, bytes) for item in content)
    assert len(store) == 12


def test_images_whose_content_is_not_known_are_not_kept(files: ImageFiles) -> None:
    store = PixelStore(memory=10**6)
    epoch(ImageFiles(files.root, files.paths).kept_in(store, 1), 0)
    assert len(store) == 0
