"""Still pictures: what a file holds, which paths are safe, and how pixels become bytes.

`encode` gives the bytes that Pillow gives. JPEG goes through OpenCV, which takes less time for the same bytes (a test
holds the two against each other); without OpenCV, Pillow does it.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import simplejpeg

if TYPE_CHECKING:
    from PIL import Image as PILImage

ImageFormat: TypeAlias = Literal["jpeg", "png", "webp"]
Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

SUFFIXES: dict[str, str] = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}
DEFAULT_QUALITY: dict[str, int] = {"jpeg": 75, "webp": 80}  # Pillow's own defaults

DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error)
"""What Pillow's decoders raise on damaged bytes."""

_EXIF_ORIENTATION = 0x0112


class UnreadableImageError(ValueError):
    """The bytes are not a whole picture; the message says why, without a path."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What a picture's header says; `width` and `height` are as stored, before `orientation` (EXIF, 1 to 8)."""

    width: int
    height: int
    format: str  # Pillow's name: JPEG, PNG, WEBP, ...
    mode: str  # Pillow's name: RGB, L, RGBA, P, CMYK, I;16, ...
    orientation: int = 1
    animated: bool = False


def probe(source: str | Path | bytes) -> ImageInfo:
    """Read a picture's header; pixels are not decoded, so that damage further on goes unseen.

    Raises:
        UnreadableImageError: no picture, or a size beyond `PIL.Image.MAX_IMAGE_PIXELS`.
        OSError: the file cannot be read.
    """
    with _opened(source) as image:
        return _info(image)


def check_content(data: bytes) -> ImageInfo:
    """Prove that bytes about to be stored are a whole picture, every frame of it.

    JPEG goes through libjpeg-turbo in strict mode, as in the validator: at an eighth of the size it is quicker than
    Pillow and sees more. Of the rest, `verify` (for PNG its checksums) and `load` each miss what the other sees.

    Raises:
        UnreadableImageError: not a picture, damaged, or cut short.
    """
    with _opened(data) as image:
        if image.format == "JPEG":
            try:
                simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1)
            except ValueError as error:
                raise UnreadableImageError(f"damaged or cut short: {error}") from error
            return _info(image)
        if image.format == "PNG":
            if problem := png_problem(data):
                raise UnreadableImageError(f"damaged or cut short: {problem}")
        else:
            with _opened(data) as other:
                other.verify()
        for frame in range(getattr(image, "n_frames", 1)):
            image.seek(frame)
            image.load()
        image.seek(0)
        return _info(image)


def _info(image: "PILImage.Image") -> ImageInfo:
    orientation = _orientation(image)  # of a PNG this decodes the pixels, as the tag may follow them
    animated = bool(getattr(image, "is_animated", False))
    return ImageInfo(image.width, image.height, image.format or "", image.mode, orientation, animated)


def png_problem(data: bytes) -> str:
    """What a PNG's chunks tell: a wrong checksum, a missing end; empty where they are sound."""
    position = 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(memoryview(data)[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return f"wrong checksum in chunk {kind.decode('latin-1')!r}"
        if kind == b"IEND":
            return ""
        position = end + 4
    return "the file ends before its last chunk"


@contextmanager
def _opened(source: str | Path | bytes) -> "Iterator[PILImage.Image]":
    """A Pillow image, with every way in which Pillow complains turned into one."""
    from PIL import Image, UnidentifiedImageError

    if not isinstance(source, bytes):
        with Path(source).open("rb") as stream:
            source = stream.read()
    try:
        with Image.open(io.BytesIO(source)) as image:
            yield image
    except UnidentifiedImageError:
        what = "an empty file" if not source else "not a picture of a known format"
        raise UnreadableImageError(what) from None
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(f"too large: {error}") from error
    except DECODER_ERRORS as error:
        raise UnreadableImageError(f"damaged or cut short: {error}") from error


def _orientation(image: "PILImage.Image") -> int:
    value = image.getexif().get(_EXIF_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def fit(image: "Pixels", max_side: int) -> "Pixels":
    """Scale (H, W, 3) or (H, W) down so that no side is longer than `max_side`; 0 and small pictures: unchanged.

    Pillow's Lanczos filter works in whole numbers, so the pixels are the same on every machine.
    """
    from PIL import Image

    height, width = image.shape[:2]
    if not max_side or max(height, width) <= max_side:
        return image
    longest = max(height, width)
    size = (
        max(1, (width * max_side + longest // 2) // longest),
        max(1, (height * max_side + longest // 2) // longest),
    )
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.LANCZOS))


def encode(image: "Pixels | PILImage.Image", format: ImageFormat = "png", quality: int = 0) -> bytes:  # noqa: A002 - Pillow's word
    """Encode pixels: uint8 (H, W, 3) RGB, (H, W) grey, or a PIL image (its EXIF turn is baked in).

    A view `bgr[..., ::-1]` of a BGR array costs no copy on its way to JPEG.

    Args:
        quality: 1 to 100; 0 is Pillow's default (75 for JPEG, 80 for WebP). Without meaning for PNG.
    """
    if not isinstance(image, np.ndarray):
        return _encode_pil(image, format, quality)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(f"expected uint8 of shape (H, W, 3) or (H, W), got {image.dtype} of shape {image.shape}")
    if format == "jpeg":
        encoded = _jpeg_by_opencv(image, quality or DEFAULT_QUALITY["jpeg"])
        if encoded is not None:
            return encoded
    from PIL import Image

    return _encode_pil(Image.fromarray(np.ascontiguousarray(image)), format, quality)


def _jpeg_by_opencv(image: "Pixels", quality: int) -> bytes | None:
    try:
        import cv2
    except ImportError:
        return None
    bgr = np.ascontiguousarray(image[..., ::-1] if image.ndim == 3 else image)
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return bytes(data) if done else None


def _encode_pil(image: "PILImage.Image", format: ImageFormat, quality: int) -> bytes:  # noqa: A002 - Pillow's word
    from PIL import ImageOps

    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if format == "jpeg" and image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    options = {"quality": quality or DEFAULT_QUALITY[format]} if format in DEFAULT_QUALITY else {}
    buffer = io.BytesIO()
    image.save(buffer, format.upper(), **options)
    return buffer.getvalue()
