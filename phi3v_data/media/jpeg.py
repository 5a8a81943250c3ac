"""JPEG: what its segments say, and a strict decoding that passes over bytes which belong to none of them.

libjpeg-turbo in strict mode stops at everything that is not as the standard has it, and so sees files that were cut or
partly overwritten with zeros, which lenient decoders fill with grey. But it stops as well at bytes between two header
segments and at damaged colour profiles, which change no pixel in any decoder. So a JPEG that it refuses is decoded
once more, strictly too, without these; what was left out is said.
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
_NEEDED = frozenset({0xE0, 0xEE})  # of the application segments those that a decoder heeds: JFIF, Adobe
_SCAN_END = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")
_EXTRA_BEFORE_END = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_MAX_EXTRA = 16
"""Bytes of any kind before the end marker that may be passed over: data that lost its step leaves more, as a rule."""


class JpegHeader(NamedTuple):
    """What stands before the first scan; `exif` is the EXIF block without its name."""

    width: int
    height: int
    components: int
    bits: int
    exif: bytes
    several_scans: bool


def read_header(data: bytes) -> JpegHeader | None:
    """The frame header and the EXIF block; None where no frame header is found in `data`."""
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
    """Components of the first scan after the frame header at `position`; 4 where `data` ends before it."""
    scan = data.find(b"\xff\xda", position)
    return data[scan + 4] if 0 <= scan < len(data) - 4 else 4


def check_scans(data: bytes, header: JpegHeader) -> None:
    """Refuse a JPEG that costs more than its size tells.

    Raises:
        TooLargeImageError: many scans, or many pixels of which all coefficients have to be kept.
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
    """The orientation tag of an EXIF block's first directory; 1 where it has none or is damaged."""
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
    """Grey levels (H, W, 1) at an eighth of the size, but 24 pixels a side; and what was passed over, in words.

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
    return grey, f"has {' and '.join(words)} that belong to none of its parts"


def _decode(data: bytes) -> npt.NDArray[np.uint8]:
    grey: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "GRAY", min_height=_SIDE, min_width=_SIDE)
    return grey


def _damaged(why: str) -> UnreadableImageError:
    return UnreadableImageError(f"is damaged or cut short: {' '.join(why.split())[:120]}")


def _without_extras(data: bytes) -> tuple[bytes, int] | None:
    """The JPEG with nothing but what a decoder heeds, and the number of bytes that belonged to no segment.

    Bytes are passed over as libjpeg's `next_marker` does. None where the segments do not lead to an end marker.
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
    """The JPEG without what its decoder left over before the end marker; empty where that is no padding.

    Left-over bytes also come from a scan that was overwritten: then it holds a stretch of zeros, or more is left. The
    decoder counts up to eight bytes less than there are, those that it had read ahead.
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
