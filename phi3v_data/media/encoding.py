"""Encodes pixels as image files.

`encode` returns the same bytes as Pillow. JPEG is encoded by OpenCV, which is faster and gives the same bytes (a test
compares the two), or by Pillow if OpenCV is not installed.
"""

import io
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from phi3v_data.media.images import exif_orientation
from phi3v_data.suffixes import STORED_IMAGES

if TYPE_CHECKING:
    from PIL import Image as PILImage

ImageFormat: TypeAlias = Literal["jpeg", "png", "webp"]
Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

SUFFIXES: dict[str, str] = {name: STORED_IMAGES[name.upper()][0] for name in ("jpeg", "png", "webp")}
DEFAULT_QUALITY: dict[str, int] = {"jpeg": 75, "webp": 80}  # Pillow's own defaults


def fit(image: "Pixels", max_side: int) -> "Pixels":
    """Scale (H, W, 3) or (H, W) down so that no side is longer than `max_side`; 0 and small images: unchanged.

    Pillow's Lanczos filter uses integer arithmetic, so the pixels are the same on every machine.
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
    """Encode pixels: uint8 (H, W, 3) RGB, (H, W) grey, or a PIL image (its EXIF orientation is applied).

    A view `bgr[..., ::-1]` of a BGR array is encoded as JPEG without a copy.

    Args:
        quality: 1 to 100; 0 is Pillow's default (75 for JPEG, 80 for WebP). Ignored for PNG.
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

    if exif_orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if format == "jpeg" and image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    options = {"quality": quality or DEFAULT_QUALITY[format]} if format in DEFAULT_QUALITY else {}
    buffer = io.BytesIO()
    image.save(buffer, format.upper(), **options)
    return buffer.getvalue()
