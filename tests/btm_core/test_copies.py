"""Copies of images are found, whatever was done to them, and nothing else is."""

import io
import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from btm_core.data.copies import BITS, find_copies, flat_images
from btm_core.data.looking import Looks, look_at_files, look_at_pixels


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Parts of two real photographs, each another picture."""
    from sklearn.datasets import load_sample_images

    parts = []
    for photograph in load_sample_images().images:
        for top, left in itertools.product(range(0, 360, 120), range(0, 600, 120)):
            parts.append(Image.fromarray(photograph[top : top + 120, left : left + 120]))
    return parts


def encoded(image: Image.Image, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **how)
    return buffer.getvalue()


def look(folder: Any, files: list[bytes]) -> Looks:
    for number, data in enumerate(files):
        (folder / f"{number}.img").write_bytes(data)
    return look_at_files(str(folder), [f"{number}.img" for number in range(len(files))])


def test_a_copy_is_told_by_how_it_was_made(photographs: list[Image.Image], tmp_path: Any) -> None:
    a, b, c, d = photographs[0], photographs[7], photographs[18], photographs[23]
    larger, brighter = d.resize((240, 240)), d.point(lambda value: min(255, value + 12))
    images = [
        (a, "PNG"),
        (b, "PNG"),
        (a, "PNG"),
        (b, "BMP"),
        (c, "PNG"),
        (d, "PNG"),
        (larger, "PNG"),
        (brighter, "PNG"),
    ]
    files = [encoded(image, format=kind) for image, kind in images]
    files += [encoded(c, format="JPEG", quality=70), b"no image"]
    looks = look(tmp_path, files)
    copies = find_copies(looks)
    assert (copies.same_file, copies.same_pixels, copies.near) == ([[0, 2]], [[1, 3]], [[4, 8], [5, 6, 7]])
    assert looks.kind(3) == ("BMP", "RGB") and looks.sizes[6].tolist() == [240, 240]
    assert not looks.readable[9] and "no image of a known format" in looks.problems[9]


def test_different_pictures_are_no_copies(photographs: list[Image.Image], tmp_path: Any) -> None:
    copies = find_copies(look(tmp_path, [encoded(image, format="PNG") for image in photographs]))
    assert copies.same_file == copies.same_pixels == copies.near == []


def test_all_but_a_few_of_damaged_copies_are_found(photographs: list[Image.Image], tmp_path: Any) -> None:
    files = [encoded(image, format="PNG") for image in photographs]
    files += [encoded(image.resize((90, 90)), format="JPEG", quality=60) for image in photographs]
    n = len(photographs)
    found = find_copies(look(tmp_path, files)).near
    assert all(group == [group[0], group[0] + n] for group in found)
    assert len(found) >= 0.75 * n  # the others are parts of a plain sky


def test_one_picture_in_several_colours_is_several() -> None:
    """Products differ in colour alone."""
    grey = np.linspace(80, 170, 32 * 32).reshape(32, 32)
    tint = np.array([0.114, 0, -0.299])[:, None, None] * 250  # of no brightness
    coloured = np.stack([grey + tint, grey - tint]).astype(np.uint8)
    looks = look_at_pixels(coloured)
    assert np.abs(looks.thumbs[0].astype(int) - looks.thumbs[1]).max() <= 1
    assert find_copies(looks).near == []


def test_every_pair_of_near_hashes_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the parts of hashes, against comparing each with each."""
    from btm_core.data import copies

    random = np.random.default_rng(0)
    looks = Looks.empty(300)
    base = random.integers(0, 2**63, 30, dtype=np.uint64)
    for i in range(300):
        flipped = random.choice(64, random.integers(0, 12), replace=False)
        looks.hashes[i] = base[i % 30] ^ np.bitwise_or.reduce(np.uint64(1) << flipped.astype(np.uint64), initial=0)
    looks.readable[:], looks.pixels[:, :2] = True, np.arange(300, dtype="<u2").view(np.uint8).reshape(-1, 2)
    looks.thumbs[:] = np.arange(256, dtype=np.uint8).reshape(16, 16)  # all alike: the hashes alone decide

    def pairs(values: NDArray[np.uint64]) -> set[tuple[int, int]]:
        near = np.bitwise_count(values[:, None] ^ values[None]) <= BITS
        return {(i, j) for i, j in np.argwhere(near).tolist() if i < j}

    wanted = pairs(looks.hashes)
    assert len(wanted) > 300
    monkeypatch.setattr(copies, "BLOCK", 7)
    monkeypatch.setattr(copies, "MOST_COMPARED", 2000)
    assert set(copies._near_pairs(looks, np.arange(300))) == wanted


def test_images_of_one_colour_are_no_near_copies_of_each_other() -> None:
    images = np.stack([np.full((3, 16, 16), level, np.uint8) for level in (10, 11, 200)])
    looks = look_at_pixels(images)
    assert find_copies(looks).near == []
    assert flat_images(looks).tolist() == [0, 1, 2]
