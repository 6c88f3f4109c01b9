"""Images that were made to harm: bombs, other formats, cut files. Each is one DataError that names the file."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from btm_core.config import DataConfig
from btm_core.data import scan
from btm_core.data.decoding import FORMATS, MAX_IMAGE_PIXELS, decode_image
from btm_core.data.files import decode
from btm_core.data.readers import IMAGE_SUFFIXES
from btm_core.errors import DataError


def png(width: int, height: int, row: bytes = b"") -> bytes:
    """Return a grey PNG that announces a size, and holds the rows it is given."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")


def encoded(form: str, size: tuple[int, int] = (32, 24), **options: object) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("factor", [1.01, 1.99, 2.01, 40.0], ids=lambda factor: f"{factor}x")
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, factor: float, recwarn: pytest.WarningsRecorder) -> None:
    width = int(MAX_IMAGE_PIXELS**0.5)
    (tmp_path / "bomb.png").write_bytes(png(width, int(width * factor) + 2))
    with pytest.raises(DataError, match=r"^bomb.png: more than 89478485 pixels; scale it down"):
        decode("bomb.png", (tmp_path / "bomb.png").read_bytes(), 3)
    # Where warnings are no errors, as in production, Pillow's own warning is not shown beside.
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        with pytest.raises(DataError, match="more than 89478485 pixels"):
            decode("bomb.png", (tmp_path / "bomb.png").read_bytes(), 3)


def test_what_is_just_small_enough_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("btm_core.data.decoding.MAX_IMAGE_PIXELS", 2000)
    assert decode_image(png(100, 20, (b"\0" * 101) * 20), 1).size == (100, 20)
    with pytest.raises(DataError, match="more than 2000 pixels"):
        decode_image(png(100, 21, (b"\0" * 101) * 21), 1)


def test_a_file_of_too_many_bytes_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = encoded("PNG")
    monkeypatch.setattr("btm_core.data.decoding.MAX_IMAGE_BYTES", len(picture))
    assert decode_image(picture, 3).size == (32, 24)
    with pytest.raises(DataError, match=f"{len(picture) + 1} bytes; an image may have {len(picture)}"):
        decode_image(picture + b"\0", 3)


def test_a_file_of_too_many_bytes_is_found_before_anything_is_read(
    digit_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = max(path.stat().st_size for path in digit_images.rglob("*.png"))
    config = DataConfig(format="image_folder", root=str(digit_images))
    monkeypatch.setattr("btm_core.data.readers.MAX_IMAGE_BYTES", largest)
    assert len(scan(config).train) == 33
    big = digit_images / "train/digit-0/0000.png"
    with big.open("ab") as file:
        file.truncate(largest + 1)
    with pytest.raises(DataError, match=rf"1 of 51 listed images .* more than {largest} bytes.*\n  train/digit-0/0000"):
        scan(config)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_decoded_and_cut_files_are_refused(form: str) -> None:
    picture = encoded(form)
    assert decode_image(picture, 3).size == (32, 24)
    for length in (0, 1, 11, len(picture) // 2):
        with pytest.raises(DataError):
            decode_image(picture[:length], 3)


@pytest.mark.parametrize("form", ["EPS", "PDF", "ICNS", "PCX", "TGA", "JPEG2000", "AVIF"])
def test_other_formats_are_no_images(form: str) -> None:
    try:
        picture = encoded(form, (32, 32))
    except (KeyError, OSError):
        pytest.skip(f"this Pillow cannot write {form}")
    with pytest.raises(DataError, match="no image of a known format"):
        decode_image(picture, 3)


def test_the_suffixes_that_are_searched_for_are_of_these_formats() -> None:
    Image.init()
    assert {Image.EXTENSION[suffix] for suffix in IMAGE_SUFFIXES} == set(FORMATS)


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP"])
def test_of_several_frames_only_the_first_is_decoded(form: str) -> None:
    first, second = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "black")
    buffer = io.BytesIO()
    first.save(buffer, form, save_all=True, append_images=[second] * 3)
    assert np.asarray(decode_image(buffer.getvalue(), 1)).min() > 250
