"""Pixels out of the bytes of an image that anybody may have made."""

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from btm_core.errors import DataError

__all__ = ["FORMATS", "MAX_IMAGE_BYTES", "MAX_IMAGE_PIXELS", "decode_image", "fit_square", "to_array"]

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded. Pillow knows many more: some run other programs (EPS), most are rarely used and rarely looked at."""
MAX_IMAGE_PIXELS = 89_478_485
"""Pillow's own number: 256 MB in RGB. Above it Pillow itself warns, and refuses from twice as many."""
MAX_IMAGE_BYTES = 512 * 2**20
"""As much as so many pixels take without compression, in 16 bits and three channels."""

# Such images are refused below, with one message.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode_image(data: bytes, channels: int) -> Image.Image:
    """Decode an image to mode L (channels 1) or RGB (3): EXIF rotation applied, palette, alpha, CMYK, 16 bit.

    Of several frames (GIF, TIFF, WebP) the first is the image, and no other is decoded. Raises DataError if it is of no
    format in FORMATS, larger than MAX_IMAGE_PIXELS or MAX_IMAGE_BYTES, truncated or damaged.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise DataError(f"{len(data)} bytes; an image may have {MAX_IMAGE_BYTES}")
    try:
        return _decoded(data, "L" if channels == 1 else "RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"more than {MAX_IMAGE_PIXELS} pixels; scale it down") from None
    except UnidentifiedImageError:
        raise DataError(f"no image of a known format ({', '.join(FORMATS)})") from None
    except Exception as error:  # decoders raise whatever they stumble over
        raise DataError(str(error) or type(error).__name__) from None


def _decoded(data: bytes, mode: str) -> Image.Image:
    image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    # Before anything is decoded: so far only the header was read.
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, which some versions of Pillow hold in 32
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


def fit_square(image: Image.Image, size: int, resize: int | None = None) -> Image.Image:
    """Scale the shorter side to `resize` (default `size`) pixels and cut the central square of `size`."""
    shorter = resize or size
    width, height = image.size
    scale = shorter / min(width, height)
    wanted = (max(size, round(width * scale)), max(size, round(height * scale)))
    if wanted != image.size:
        image = image.resize(wanted, Image.Resampling.BILINEAR)
    left, top = (wanted[0] - size) // 2, (wanted[1] - size) // 2
    return image.crop((left, top, left + size, top + size)) if wanted != (size, size) else image


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Return an image as (channels, height, width) uint8."""
    pixels = np.array(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
