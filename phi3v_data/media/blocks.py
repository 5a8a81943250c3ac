"""Checks the segments of an image file before it is decoded: size, frames, checksums, compressed text.

Pillow reads most segments of a file in Python, one by one, and trusts their lengths; the counts here limit that work.
If a file ends early these readers stop without an error: the decoder reports it.
"""

import re
import struct
import zlib
from typing import NamedTuple

from phi3v_data.media.formats import LIMITS, TooLargeImageError, UnreadableImageError

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PPM_HEADER = re.compile(rb"P[456](?:(?:\s|#[^\r\n]*[\r\n])+(\d{1,9}))(?:(?:\s|#[^\r\n]*[\r\n])+(\d{1,9}))")
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_EXTENT = frozenset({256, 257, 258, 277})  # width, height, bits of a channel, channels
_TIFF_STRIPS = frozenset({273, 279, 324, 325})  # offsets and byte counts of strips and tiles


class Extent(NamedTuple):
    """Size of an image as stored, its frames, and the bits of a pixel and of a channel."""

    width: int
    height: int
    frames: int = 1
    bits: int = 24
    channel_bits: int = 8
    all_pixels: int = 0  # of frames of several sizes; 0 where each has the size of the image


def extent(kind: str, data: bytes) -> Extent | None:
    """Size and frames from the headers of the file; None if only the decoder can tell (AVIF, damaged headers).

    Raises:
        UnreadableImageError: a PNG chunk has a wrong checksum, or there is no header.
        TooLargeImageError: more segments or text than `LIMITS` allows; the caller checks the size.
    """
    reader = {"GIF": _gif, "TIFF": _tiff, "WEBP": _webp, "BMP": _bmp, "PPM": _ppm, "PNG": png_header}.get(kind)
    try:
        return reader(data) if reader else None
    except (struct.error, IndexError):
        return None


def png_header(data: bytes) -> Extent | None:
    """Size and depth of a PNG."""
    if data[12:16] != b"IHDR":
        return None
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    return Extent(width, height, 1, depth * _PNG_CHANNELS.get(colour, 4), 16 if depth == 16 else 8)


def check_png(data: bytes) -> None:
    """Check the chunks of a PNG: checksums, size of compressed text, the last chunk.

    Raises:
        UnreadableImageError: a wrong checksum, or the end is missing.
        TooLargeImageError: too many chunks, or too much text.
    """
    position, text = 8, 0
    for _ in range(LIMITS.parts):
        if position + 12 > len(data):
            break
        length = int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(memoryview(data)[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise UnreadableImageError(f"is damaged or cut short: wrong checksum in chunk {kind.decode('latin-1')!r}")
        if kind == b"IEND":
            return
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            text += _png_text(kind, data[position + 8 : end])
            if text > LIMITS.text_total:
                raise TooLargeImageError(f"has text chunks of over {LIMITS.text_total:,} bytes")
        position = end + 4
    else:
        raise TooLargeImageError(f"has over {LIMITS.parts:,} chunks")
    raise UnreadableImageError("is damaged or cut short: the file ends before its last chunk")


def _png_text(kind: bytes, content: bytes) -> int:
    """Size of a text chunk or profile, decompressed, in bytes."""
    keyword, _, rest = content.partition(b"\0")
    packed = b""
    if kind in (b"zTXt", b"iCCP"):
        packed = rest[1:]
    elif kind == b"iTXt" and rest[:1] == b"\1":
        packed = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    limit = LIMITS.text_total if kind == b"iCCP" else LIMITS.text_bytes
    size = len(content)
    if packed:
        try:
            size = len(zlib.decompressobj().decompress(packed, limit + 1))
        except zlib.error:
            return size  # the decoder decides: Pillow ignores a profile that cannot be decompressed
    if size > limit:
        raise TooLargeImageError(f"has a text chunk of over {limit:,} bytes ({keyword[:79].decode('latin-1')!r})")
    return size


def _gif(data: bytes) -> Extent:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    frames = stray = blocks = extensions = 0
    while position < len(data):
        kind = data[position]
        if kind == 0x3B:
            break
        if kind == 0x2C and position + 10 <= len(data):
            left, top, across, down, flags = struct.unpack_from("<HHHHB", data, position + 1)
            width, height = max(width, left + across), max(height, top + down)  # the canvas grows with its frames
            frames += 1
            position += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        elif kind == 0x21:
            position += 2
        else:
            stray += 1
            position += 1
            if stray > LIMITS.stray_bytes:
                raise UnreadableImageError("is damaged or cut short: bytes that belong to no block of the GIF")
            continue
        while position < len(data) and (length := data[position]):
            position += length + 1
            blocks += 1
            extensions += length if kind == 0x21 else 0
        position += 1
        blocks += 1
        if blocks > LIMITS.parts:
            raise TooLargeImageError(f"has over {LIMITS.parts:,} blocks")
        if extensions > LIMITS.text_bytes:
            raise TooLargeImageError(f"has comments and other extensions of over {LIMITS.text_bytes:,} bytes")
    return Extent(width, height, max(1, frames), 8 if frames < 2 else 24)


def _webp(data: bytes) -> Extent | None:
    position, found, frames = 12, None, 0
    for _ in range(LIMITS.parts):
        if position + 8 > len(data):
            return found and Extent(found.width, found.height, max(1, frames), 32)
        kind, length = struct.unpack_from("<4sI", data, position)
        start = position + 8
        if kind == b"ANMF":
            frames += 1
        elif found is None and kind == b"VP8X":
            size = data[start + 4 : start + 10]
            found = Extent(1 + int.from_bytes(size[:3], "little"), 1 + int.from_bytes(size[3:], "little"))
        elif found is None and kind == b"VP8 ":
            width, height = struct.unpack_from("<HH", data, start + 6)
            found = Extent(width & 0x3FFF, height & 0x3FFF)
        elif found is None and kind == b"VP8L":
            packed = struct.unpack_from("<I", data, start + 1)[0]
            found = Extent(1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF))
        position = start + length + (length & 1)
    raise TooLargeImageError(f"has over {LIMITS.parts:,} chunks")


def _bmp(data: bytes) -> Extent:
    size = struct.unpack_from("<I", data, 14)[0]
    packed = 0
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    else:
        width, height, _, bits, packed = struct.unpack_from("<iiHHI", data, 18)
    if packed in (1, 2) and (len(data) > LIMITS.packed_bmp_bytes or width > LIMITS.packed_bmp_width):
        raise TooLargeImageError("is a BMP with run-length encoding of over 1 MB, or wider than 32,767 pixels")
    return Extent(abs(width), abs(height), 1, bits)


def _ppm(data: bytes) -> Extent:
    found = _PPM_HEADER.match(data[:4096])
    if found is None:
        raise UnreadableImageError("is damaged or cut short: a PPM without a header")
    bits = {b"4": 1, b"5": 16, b"6": 24}[data[1:2]]
    return Extent(int(found[1]), int(found[2]), 1, bits)


def _tiff(data: bytes) -> Extent | None:
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    pointer, counter, entry, size = ("Q", "Q", f"{order}HHQ", 20) if big else ("I", "H", f"{order}HHI", 12)
    offset = struct.unpack_from(order + pointer, data, 8 if big else 4)[0]
    seen: set[int] = set()
    widest: Extent | None = None
    values: dict[int, int] = {}
    parts = tags = pixels = 0
    while offset and offset not in seen and len(seen) <= LIMITS.frames:
        seen.add(offset)
        try:
            count = struct.unpack_from(order + counter, data, offset)[0]
            start = offset + struct.calcsize(counter)
            parts += count
            values = {}
            for place in range(start, start + min(count, LIMITS.parts) * size, size):
                tag, kind, number = struct.unpack_from(entry, data, place)
                length = _TIFF_SIZES.get(kind, 1) * number
                if tag in _TIFF_STRIPS:
                    parts += number
                else:
                    tags += length
                if tag in _TIFF_EXTENT:
                    where = place + struct.calcsize(entry)
                    if length > struct.calcsize(pointer):
                        where = struct.unpack_from(order + pointer, data, where)[0]
                    values[tag] = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, where)[0]
            offset = struct.unpack_from(order + pointer, data, start + count * size)[0]
        except struct.error:  # the page goes beyond the file
            offset = 0
        if parts > LIMITS.parts:
            raise TooLargeImageError(f"has over {LIMITS.parts:,} strips or tags")
        if tags > LIMITS.text_total:
            raise TooLargeImageError(f"has tags of over {LIMITS.text_total:,} bytes")
        page = Extent(values.get(256, 0), values.get(257, 0), 1, values.get(258, 1) * values.get(277, 1))
        pixels += page.width * page.height
        if widest is None or page.width * page.height * page.bits > widest.width * widest.height * widest.bits:
            widest = page
    return widest and Extent(widest.width, widest.height, len(seen), widest.bits, 8, pixels)
