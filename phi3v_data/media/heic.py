"""HEIC photos (the format of many phones): read from a source through `pillow-heif`, stored as JPEG.

The rotation in the HEIC container is applied to the pixels. The JPEG has no EXIF block, but keeps the colour profile,
so that viewers show the colours of the photo.
"""

import io

from phi3v_data.errors import how_to_install
from phi3v_data.media.formats import HEIC, PIXEL_LIMITS, TooLargeImageError, UnreadableImageError
from phi3v_data.media.images import decoding

QUALITY = 95
"""JPEG quality, with Pillow's 4:2:0 subsampling: HEIC photos have the same, and their own loss is far larger."""

INSTALL = f"install the extra that reads it with {how_to_install('heic')}"


def heic_to_jpeg(data: bytes) -> bytes:
    """The photo as the bytes of a JPEG of quality 95, upright, 8 bits per channel.

    Raises:
        UnreadableImageError: `pillow-heif` is not installed, or the photo is damaged.
        TooLargeImageError: it has too many pixels.
    """
    try:
        import pillow_heif
    except ImportError:
        raise UnreadableImageError(f"is a HEIC photo; {INSTALL}") from None
    with decoding():
        photo = pillow_heif.open_heif(io.BytesIO(data))  # reads the header; pixels are decoded on access
        width, height = photo.size
        if width * height > PIXEL_LIMITS[HEIC]:
            raise TooLargeImageError(f"has {width} x {height} pixels, over the limit of {PIXEL_LIMITS[HEIC]:,}")
        image = photo.to_pillow()
        buffer = io.BytesIO()
        options = {"icc_profile": profile} if (profile := photo.info.get("icc_profile")) else {}
        image.convert("RGB").save(buffer, "JPEG", quality=QUALITY, **options)
        return buffer.getvalue()
