"""Images from files, through the one door (`phi3v_data.media.images`), faster for JPEG with Pillow's own pixels.

libjpeg-turbo through `simplejpeg` decodes a JPEG in about a third of Pillow's time. Both must round equally: a process
checks that once on images made in memory, and uses Pillow where they differ. Pillow decodes what simplejpeg
does not take (CMYK, warnings of any kind). An EXIF turn is ignored, as the processor does.
"""

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from phi3v_data.media.export_pack import NO_SIZE
from phi3v_data.media.formats import UnreadableImageError
from phi3v_data.media.images import check_jpeg, load_image, probe, read_image_file
from phi3v_data.media.packed import known_size

_JPEG_START = b"\xff\xd8\xff"
_MAX_PIXELS = 50_000_000
"""Larger images are decoded by `load_image`, whose limits know of scans and frames."""

_EXACT_COLORSPACES = frozenset({"YCbCr", "Gray"})


def read_image(image: Any) -> Image.Image:
    """The decoded image of a path; a Pillow image is returned as it is.

    Raises:
        UnreadableImageError: not an image of a format that is read, damaged, or beyond the limits; names the path.
        OSError: the file cannot be read.
    """
    if isinstance(image, Image.Image):
        return image
    try:
        data = read_image_file(image)
        return _decode_jpeg(data) or load_image(data)
    except UnreadableImageError as error:
        raise type(error)(f"{image} {error}") from None


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) as the file's header says, without decoding. Raises as `read_image`."""
    if (known := known_size(path)) != NO_SIZE:
        return known
    try:
        info = probe(path)
    except UnreadableImageError as error:
        raise type(error)(f"{path} {error}") from None
    return info.width, info.height


def _decode_jpeg(data: bytes) -> Image.Image | None:
    """The image of a plain JPEG; None for Pillow to decode or to refuse. Raises TooLargeImageError."""
    if not data.startswith(_JPEG_START) or not jpeg_is_exact():
        return None
    import simplejpeg

    check_jpeg(data)
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in _EXACT_COLORSPACES or height * width > _MAX_PIXELS:
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
                image = Image.fromarray(pixels).convert(mode)
                image.save(buffer, "JPEG", quality=80, subsampling=subsampling, progressive=progressive)
                with Image.open(buffer) as decoded:
                    expected = np.asarray(decoded).reshape(*pixels.shape[:2], -1)
                found = simplejpeg.decode_jpeg(buffer.getvalue(), "RGB" if mode == "RGB" else "GRAY")
                if not np.array_equal(found, expected):
                    return False
    return True
