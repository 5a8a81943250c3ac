"""Pictures from files, with the same pixels as Pillow gives, faster for JPEG.

libjpeg-turbo through `simplejpeg` decodes a JPEG in about a third of Pillow's time. Both must round alike: a process
checks that once on pictures made in memory, and goes on with Pillow where they differ. What simplejpeg does not take
(CMYK, warnings of any kind) Pillow decodes. An EXIF turn is ignored, as the processor does.
"""

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

_JPEG_START = b"\xff\xd8\xff"
_PILLOW_DECIDES = 50_000_000
"""Pixels from which Pillow decodes, which warns of or refuses pictures made to fill the memory."""

_EXACT_COLORSPACES = frozenset({"YCbCr", "Gray"})


def read_picture(image: Any) -> Image.Image:
    """The decoded picture of a path; a Pillow image is returned as it is.

    Raises:
        OSError: no such file, or no picture in it that Pillow can read.
    """
    if isinstance(image, Image.Image):
        return image
    data = Path(image).read_bytes()
    return _decode_jpeg(data) or _decode_any(data, image)


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) as the file's header says, without decoding.

    Raises:
        OSError: no such file, or no picture.
    """
    with Image.open(path) as image:
        return image.size


def _decode_any(data: bytes, image: Any) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            return picture
    except UnidentifiedImageError:
        raise UnidentifiedImageError(f"{image}: no picture that Pillow can read") from None


def _decode_jpeg(data: bytes) -> Image.Image | None:
    """The picture of a plain JPEG; None for Pillow to decode or to refuse."""
    if not data.startswith(_JPEG_START) or not jpeg_is_exact():
        return None
    import simplejpeg

    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in _EXACT_COLORSPACES or height * width > _PILLOW_DECIDES:
            return None
        if colorspace == "Gray":
            return Image.fromarray(simplejpeg.decode_jpeg(data, "GRAY")[:, :, 0])
        return Image.fromarray(simplejpeg.decode_jpeg(data, "RGB"))
    except ValueError:
        return None


@cache
def jpeg_is_exact() -> bool:
    """Whether simplejpeg and Pillow, as installed, decode to the same pixels."""
    import simplejpeg

    y, x = np.mgrid[0:53, 0:67]
    pixels = np.stack([x * 3 + y, (x * y) % 251, (x * x + 7 * y) % 241], axis=-1).astype(np.uint8)
    for mode in ("RGB", "L"):
        for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
            for progressive in (False, True):
                buffer = io.BytesIO()
                picture = Image.fromarray(pixels).convert(mode)
                picture.save(buffer, "JPEG", quality=80, subsampling=subsampling, progressive=progressive)
                with Image.open(buffer) as decoded:
                    expected = np.asarray(decoded).reshape(*pixels.shape[:2], -1)
                found = simplejpeg.decode_jpeg(buffer.getvalue(), "RGB" if mode == "RGB" else "GRAY")
                if not np.array_equal(found, expected):
                    return False
    return True
