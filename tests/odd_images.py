"""Files that stand in for images, made byte by byte: as found in downloaded sets, or made to be costly."""

import io
import struct
import zlib
from typing import Any

from media import make_pixels
from PIL import Image


def image(seed: int = 0, size: tuple[int, int] = (64, 48), mode: str = "RGB") -> Image.Image:
    """One that no other seed gives."""
    return Image.fromarray(make_pixels(seed, *size)).convert(mode)


def encoded(content: Image.Image, fmt: str = "PNG", **options: Any) -> bytes:
    """The bytes of a file."""
    stream = io.BytesIO()
    content.save(stream, fmt, **options)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(*chunks: bytes) -> bytes:
    """A PNG with more chunks before its last one."""
    whole = encoded(image(1))
    return whole[:-12] + b"".join(chunks) + whole[-12:]


def gif(frames: int, size: tuple[int, int]) -> bytes:
    """A GIF of almost empty frames, 15 bytes each, of any size in pixels."""
    head = b"GIF89a" + struct.pack("<HHBBB", *size, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, *size, 0) + b"\x02\x02\x4c\x01\x00"
    return head + frame * frames + b";"


def bmp(size: tuple[int, int], *, packed: bool = False, old: bool = False, length: int = 0) -> bytes:
    """A BMP of grey levels that says it has this size; `old` has the header of OS/2; zeros up to `length` bytes."""
    header = struct.pack("<IHHHH", 12, *size, 1, 8) if old else struct.pack("<IiiHHI20x", 40, *size, 1, 8, int(packed))
    palette = bytes(256 * (3 if old else 4))
    start = 14 + len(header) + len(palette)
    return (struct.pack("<2sI4xI", b"BM", max(length, start), start) + header + palette).ljust(length, b"\0")


def tiff(pages: int, *, tag_bytes: int = 0, strips: int = 1) -> bytes:
    """A TIFF of pages of one pixel, that say they have so many strips.

    With `tag_bytes`, each page has a description of so many bytes, all the same ones.
    """
    entries = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, strips, 8), (279, 3, 1, 1)]
    if tag_bytes:
        entries.append((270, 2, tag_bytes, 8))
    size = 2 + 12 * len(entries) + 4
    data = b"II*\x00" + struct.pack("<I", 16) + bytes(8)
    for page in range(pages):
        following = 16 + size * (page + 1) if page + 1 < pages else 0
        data += struct.pack("<H", len(entries))
        data += b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries)) + struct.pack("<I", following)
    return data


def jpeg_of_scans(scans: int) -> bytes:
    """A progressive JPEG whose last scan comes so many times in all."""
    whole = encoded(image(1), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * (scans - whole.count(b"\xff\xda") + 1) + whole[-2:]


def mpo(first: Image.Image, second: bytes) -> bytes:
    """A JPEG that announces another image behind it (MPO, as cameras with two lenses write), `second`."""
    whole = encoded(first, "MPO", save_all=True, append_images=[image(7, first.size)])
    start = whole.index(b"\xff\xd8\xff", 3)
    return whole[:start] + second


NOT_IMAGES = {
    b"": "is empty (0 bytes)",
    b"<!DOCTYPE html><html><body>404 Not Found</body></html>": "is not an image (an HTML page)",
    b"\n\n <HTML>\n": "is not an image (an HTML page)",
    b'<svg xmlns="http://www.w3.org/2000/svg"/>': "is not an image (an SVG drawing)",
    b'<?xml version="1.0"?>\n<!-- x -->\n<svg width="9">': "is not an image (an SVG drawing)",
    b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>": "is not an image (an XML file)",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12345\n": "is not an image (a git-lfs pointer: "
    "`git lfs pull` fetches the image)",
    b"%PDF-1.7\n%\xe2\xe3": "is not an image (a PDF)",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "is not an image (an EPS or PostScript drawing)",
    b"DDS |" + bytes(200): "is not an image (a DDS texture)",
    b"#define x_width 8\n#define x_height 2\n": "is not an image (an XBM image)",
    b"8BPS\x00\x01": "is not an image (a Photoshop file)",
    b"\x00\x00\x01\x00\x01\x00": "is not an image (an ICO icon)",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n": "is not an image (a JPEG 2000 image)",
    b"PK\x03\x04....": "is not an image (a zip archive)",
    b"\x1f\x8b\x08": "is not an image (a gzip file)",
    b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom": "is not an image (a video)",
    b"RIFF\x00\x00\x00\x00AVI LIST": "is not an image (an AVI video)",
    b'{"error": "not found"}': "is not an image (a JSON file)",
    b"Nothing to see here.\n": "is not an image (a text file)",
    "é".encode(): "is not an image (a text file)",
    bytes(4096): "is not an image (only zero bytes)",
    b"P3\n1 1\n255\n1 2 3\n": "is not an image (a plain-text PPM image: store it as PNG)",
    b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic": "is not an image in a supported format (a HEIC photo): "
    "save it as JPEG, as `phi3v-data import` and `convert` do with the extra `heic`",
    b"\x8a\x01\xff\xfe\x9c": "is not an image",
}
"""Files that are not images in a supported format, and the message for each."""
