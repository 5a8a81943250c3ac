"""HEIC photos, as phones take them: read from a source through `pillow-heif`, stored as JPEG.

The pixels come upright, as HEIC keeps the turn in its container; there is no EXIF block in the JPEG, but the colour
profile, so that viewers show the colours of the photo.
"""

import io

from phi3v_data.errors import how_to_install
from phi3v_data.media.formats import HEIC, PIXEL_LIMITS, TooLargeImageError, UnreadableImageError
from phi3v_data.media.images import decoding

QUALITY = 95
"""Of the JPEG, with Pillow's 4:2:0: HEIC photos have the same chroma, and the loss is far below their own."""

INSTALL = f"what reads it is installed by {how_to_install('heic')}"


def heic_to_jpeg(data: bytes) -> bytes:
    """The photo as the bytes of a JPEG of quality 95, upright, 8 bits a channel.

    Raises:
        UnreadableImageError: `pillow-heif` is not installed, the photo is damaged; TooLargeImageError.
    """
    try:
        import pillow_heif
    except ImportError:
        raise UnreadableImageError(f"is a HEIC photo; {INSTALL}") from None
    with decoding():
        photo = pillow_heif.open_heif(io.BytesIO(data))  # reads the header; decodes when pixels are asked for
        width, height = photo.size
        if width * height > PIXEL_LIMITS[HEIC]:
            raise TooLargeImageError(f"has {width} x {height} pixels, over the limit of {PIXEL_LIMITS[HEIC]:,}")
        image = photo.to_pillow()
        buffer = io.BytesIO()
        options = {"icc_profile": profile} if (profile := photo.info.get("icc_profile")) else {}
        image.convert("RGB").save(buffer, "JPEG", quality=QUALITY, **options)
        return buffer.getvalue()
