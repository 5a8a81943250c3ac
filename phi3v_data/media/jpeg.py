"""Reads JPEG segments and decodes strictly, ignoring bytes that belong to no segment.

libjpeg-turbo in strict mode fails on everything that violates the standard, so it finds files that were cut or partly
overwritten with zeros, which lenient decoders fill with grey. But it also fails on bytes between two header segments
and on damaged colour profiles, which change no pixel in any decoder. So a JPEG that it rejects is decoded again in
strict mode without these bytes, and they are reported.
"""

import re
import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg

from phi3v_data.media.formats import LIMITS, TooLargeImageError, UnreadableImageError

_SIDE = 24  # of the reduced image: enough for a difference hash of 9 x 8 cells
_EXIF_ORIENTATION = 0x0112
_NO_FRAME = (0xC4, 0xC8, 0xCC)
_NEEDED = frozenset({0xE0, 0xEE})  # application segments that a decoder needs: JFIF, Adobe
_SCAN_END = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")
_EXTRA_BEFORE_END = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_MAX_EXTRA = 16
"""Bytes of any value before the end marker that may be ignored: damaged scan data usually leaves more."""


class JpegHeader(NamedTuple):
    """Contents of the segments before the first scan; `exif` is the EXIF block without its name."""

    width: int
    height: int
    components: int
    bits: int
    exif: bytes
    several_scans: bool


def read_header(data: bytes) -> JpegHeader | None:
    """Read the frame header and the EXIF block; None if `data` contains no frame header."""
    try:
        return _read_header(data)
    except struct.error:
        return None


def _read_header(data: bytes) -> JpegHeader | None:
    position, exif, stray = 2, b"", 0
    for _ in range(LIMITS.parts):
        if position + 9 >= len(data):
            return None
        if data[position] != 0xFF:
            found = data.find(b"\xff", position)
            stray += found - position
            if found < 0 or stray > LIMITS.stray_bytes:
                return None
            position = found
            continue
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            stray += 1
            if stray > LIMITS.stray_bytes:
                return None
        elif marker <= 0x01 or 0xD0 <= marker <= 0xD8:
            position += 2
        elif 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            bits, height, width, components = struct.unpack_from(">BHHB", data, position + 4)
            if not width or not height:
                return None
            several = marker & 3 == 2 or _first_scan(data, position) < components
            return JpegHeader(width, height, components, bits, exif, several)
        elif marker in (0xD9, 0xDA):
            return None
        else:
            length = struct.unpack_from(">H", data, position + 2)[0]
            if marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0" and not exif:
                exif = data[position + 10 : position + 2 + length]
            position += 2 + length
    return None


def _first_scan(data: bytes, position: int) -> int:
    """Components of the first scan after the frame header at `position`; 4 if `data` ends before it."""
    scan = data.find(b"\xff\xda", position)
    return data[scan + 4] if 0 <= scan < len(data) - 4 else 4


def check_scans(data: bytes, header: JpegHeader) -> None:
    """Reject a JPEG whose decoding costs too much for its size.

    Raises:
        TooLargeImageError: too many scans, or too many pixels in a progressive JPEG.
    """
    if not header.several_scans:
        return
    pixels = header.width * header.height
    if pixels > LIMITS.progressive_pixels:
        raise TooLargeImageError(
            f"is a progressive JPEG of {header.width} x {header.height} pixels, over the limit of "
            f"{LIMITS.progressive_pixels:,}"
        )
    scans = data.count(b"\xff\xda")
    if scans > LIMITS.jpeg_scans or scans * pixels > LIMITS.jpeg_scan_pixels:
        raise TooLargeImageError(f"is a JPEG of {scans:,} scans of {header.width} x {header.height} pixels")


def orientation(exif: bytes) -> int:
    """The orientation tag of an EXIF block's first directory; 1 if it has none or is damaged."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return 1
    start = struct.unpack_from(f"{order}I", exif, 4)[0]
    if start + 2 > len(exif):
        return 1
    for entry in range(struct.unpack_from(f"{order}H", exif, start)[0]):
        offset = start + 2 + 12 * entry
        if offset + 12 > len(exif):
            return 1
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, offset)
        if tag == _EXIF_ORIENTATION and kind == 3:
            return int(value)
    return 1


def decode_reduced(data: bytes) -> tuple[npt.NDArray[np.uint8], str]:
    """Decode to grey (H, W, 1) at an eighth of the size, at least 24 pixels per side; also describe ignored bytes.

    Raises:
        UnreadableImageError: damaged or cut short.
    """
    try:
        return _decode(data), ""
    except ValueError as error:
        why = str(error)
    parts = _without_extras(data)
    if parts is None:
        raise _damaged(why)
    plain, stray = parts
    words = [f"{stray:,} bytes between its header segments"] if stray else []
    try:
        grey = _decode(plain)
    except ValueError as error:
        why = str(error)
        shorter = _without_padding(plain, why)
        if not shorter:
            raise _damaged(why) from None
        words.append("bytes before its end marker")
        try:
            grey = _decode(shorter)
        except ValueError:
            raise _damaged(why) from None
    if not words:
        return grey, "has a damaged colour profile, which is not used"
    return grey, f"has {' and '.join(words)} that belong to none of its segments"


def _decode(data: bytes) -> npt.NDArray[np.uint8]:
    grey: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "GRAY", min_height=_SIDE, min_width=_SIDE)
    return grey


def _damaged(why: str) -> UnreadableImageError:
    return UnreadableImageError(f"is damaged or cut short: {' '.join(why.split())[:120]}")


def _without_extras(data: bytes) -> tuple[bytes, int] | None:
    """The JPEG with only the segments that a decoder needs, and the number of bytes that belong to no segment.

    Bytes are skipped as in libjpeg's `next_marker`. None if the segments do not lead to an end marker.
    """
    view = memoryview(data)
    kept: list[bytes | memoryview] = [view[:2]]
    position, stray = 2, 0
    for _ in range(LIMITS.parts):
        found = data.find(b"\xff", position)
        if found < 0 or (found + 4 > len(data) and data[found + 1 : found + 2] != b"\xd9"):
            return None
        stray += found - position
        if stray > LIMITS.stray_bytes:
            return None
        marker = data[found + 1]
        if marker == 0xD9:
            kept.append(b"\xff\xd9")
            return b"".join(kept), stray
        if marker == 0xFF:
            position = found + 1
        elif marker <= 0x01 or 0xD0 <= marker <= 0xD7:
            stray += 2
            position = found + 2
        else:
            end = found + 2 + struct.unpack_from(">H", data, found + 2)[0]
            if marker == 0xDA:
                match = _SCAN_END.search(data, end)
                if match is None:
                    return None
                end = match.start()
            if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker in _NEEDED:
                kept.append(view[found:end])
            position = end
    return None


def _without_padding(data: bytes, why: str) -> bytes:
    """The JPEG without the unused bytes before its end marker; empty if they are not padding.

    An overwritten scan leaves unused bytes too, but then it contains a run of zeros, or more bytes are left. The
    decoder reports up to eight bytes fewer than there are, those that it had read ahead.
    """
    found = _EXTRA_BEFORE_END.search(why)
    if found is None:
        return b""
    extra, end = int(found[1]), len(data) - 2
    scan = data[:end].rstrip(data[end - 1 : end])
    if len(scan) + extra > end:  # not all the same
        if extra > _MAX_EXTRA:
            return b""
        scan = data[: end - extra]
    elif scan.endswith(b"\xff"):
        scan += b"\0"  # a stuffed zero
    start = scan.rfind(b"\xff\xda")
    return b"" if b"\0" * 8 in scan[start + 14 :] else scan + data[end:]
