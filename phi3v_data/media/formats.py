"""The supported image formats, their limits, and descriptions of other kinds of files.

`convert`, `validate`, the reports and training read these formats and no others, even if Pillow could open more.
`suffixes.STORED_IMAGES` lists them by name. The format is determined by the first bytes of a file, not its extension.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on one image, so that decoding it takes at most about 2 s of CPU time and 1 GB of memory."""

    file_bytes: int = 1 << 28
    """Size of the file, checked before it is read."""

    pixels: int = 178_956_970
    """Width x height x frames (Pillow's own bound for one frame). Some formats have a lower one: `PIXEL_LIMITS`."""

    pixel_bytes: int = 1 << 29
    """Pixels x bytes per pixel as stored: an RGB image with 8 bits per channel reaches both limits at once."""

    frames: int = 10_000
    """Frames of an animation, pages of a TIFF."""

    progressive_pixels: int = 89_478_485
    """Pixels of a progressive JPEG; decoders keep all its coefficients (6 bytes per pixel)."""

    jpeg_scans: int = 500
    """Scans of a progressive JPEG; most have about 10."""

    jpeg_scan_pixels: int = 1_789_569_700
    """Scans x pixels of a JPEG: every scan is one pass over the whole image."""

    text_bytes: int = 1 << 20
    """One text chunk of a PNG, decompressed; all comments and other extensions of a GIF."""

    text_total: int = 1 << 26
    """All text chunks and profiles of a PNG, decompressed; all tags of a TIFF without its pixels."""

    parts: int = 500_000
    """Segments, chunks, blocks, strips or tags of one file."""

    stray_bytes: int = 1 << 16
    """Bytes of a JPEG or GIF that belong to none of its segments."""

    packed_bmp_bytes: int = 1 << 20
    """Size of a BMP file with run-length encoding, which Pillow decodes in Python."""

    packed_bmp_width: int = 32_767
    """Width of such a BMP, in which two bytes can skip 255 rows."""


LIMITS = Limits()


PIXEL_LIMITS = {
    "WEBP": 50_000_000,  # 16 bytes per pixel while decoding
    "AVIF": 80_000_000,  # 10 bytes per pixel
    "HEIC": 64_000_000,  # in a source; the largest photos of phones have 50 million
}
"""Formats with a lower limit of pixels x frames than `LIMITS.pixels`."""

HEIC = "HEIC"
"""Name of the HEIC format in `identify`: allowed in sources, not in directories."""

HEAD_BYTES = 8192
"""Largest number of bytes that `identify` needs."""

_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})

_KNOWN = (
    (b"DDS ", "a DDS texture"),
    (b"%!PS", "an EPS or PostScript drawing"),
    (b"\xc5\xd0\xd3\xc6", "an EPS drawing"),
    (b"%PDF", "a PDF"),
    (b"8BPS", "a Photoshop file"),
    (b"\x00\x00\x01\x00", "an ICO icon"),
    (b"\x00\x00\x02\x00\x01\x00", "a CUR cursor"),
    (b"icns", "an ICNS icon"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (b"qoif", "a QOI image"),
    (b"\x76\x2f\x31\x01", "an OpenEXR image"),
    (b"#?RADIANCE", "a Radiance HDR image"),
    (b"SIMPLE  =", "a FITS file"),
    (b"\x0a\x05\x01", "a PCX image"),
    (b"\xd7\xcd\xc6\x9a", "a WMF drawing"),
    (b"/* XPM */", "an XPM image"),
    (b"gimp xcf", "a GIMP file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (b"FLV", "a Flash video"),
    (b"\x00\x00\x01\xba", "an MPEG video"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"PAR1", "a Parquet file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x00\x05\x16\x07", "a macOS metadata file"),
    (b"version https://git-lfs", "a git-lfs pointer: `git lfs pull` fetches the image"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
)
_RIFF = {b"AVI ": "an AVI video", b"WAVE": "an audio file"}
_HTML = re.compile(rb"\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body|script|title)\b", re.IGNORECASE | re.DOTALL)
_SVG = re.compile(rb"<svg[\s>]", re.IGNORECASE)
_XML = re.compile(rb"\s*<[?!a-zA-Z]")
_XBM = re.compile(rb"\s*#define\s+\w+_width\s+\d+")
_JSON = re.compile(rb'\s*(\{\s*("|\})|\[\s*["\[{\]0-9-])')
_PLAIN_PPM = re.compile(rb"P[123]\s")
_BOM = b"\xef\xbb\xbf"


class UnreadableImageError(ValueError):
    """The file is not a complete image in a supported format.

    The message completes a sentence that begins with the file's name: "is empty (0 bytes)".
    """

    code = "image-unreadable"


class TooLargeImageError(UnreadableImageError):
    """The image exceeds one of the `LIMITS`; it is not decoded."""

    code = "image-too-large"


def identify(data: bytes) -> str:
    """Name of the format of a file that begins with `data`: a key of `STORED_IMAGES`, or `HEIC`.

    Raises:
        UnreadableImageError: not one of these; the message names the type of the file, if it can be determined.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    head = data[:HEAD_BYTES]
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")):
        return "TIFF"
    if head.startswith(b"BM") and len(head) >= 18 and head[14:18] in _BMP_HEADERS:
        return "BMP"
    if head.startswith((b"P4", b"P5", b"P6")) and head[2:3].isspace():
        return "PPM"
    if head[4:8] == b"ftyp":
        brands = _brands(head)
        if brands & _AVIF_BRANDS:
            return "AVIF"
        if brands & _HEIC_BRANDS:
            return HEIC
    raise UnreadableImageError("is empty (0 bytes)" if not head else f"is not an image{_what(head)}")


_BMP_HEADERS = frozenset(size.to_bytes(4, "little") for size in (12, 16, 40, 52, 56, 64, 108, 124))


def _brands(head: bytes) -> frozenset[bytes]:
    """Major and compatible brands of an ISO media file."""
    end = min(int.from_bytes(head[:4], "big"), len(head), 256)
    return frozenset(head[start : start + 4] for start in (8, *range(16, end - 3, 4)))


def _what(head: bytes) -> str:
    """The type of a file in words, ` (an HTML page)`; empty if it cannot be determined."""
    words = next((words for magic, words in _KNOWN if head.startswith(magic)), "")
    if not words and head[:4] == b"RIFF":
        words = _RIFF.get(head[8:12], "")
    if not words and head[4:8] == b"ftyp":
        words = "a video"
    if not words and not head.strip(b"\x00"):
        words = "only zero bytes"
    return f" ({words or _text(head)})" if words or _text(head) else ""


def _text(head: bytes) -> str:
    """The kind of a text file in words; empty if it is not text."""
    head = head.removeprefix(_BOM)
    if _HTML.match(head):
        return "an HTML page"
    if _XML.match(head):
        return "an SVG drawing" if _SVG.search(head) else "an XML file"
    if _XBM.match(head):
        return "an XBM image"
    if _PLAIN_PPM.match(head):
        return "a plain-text PPM image: store it as PNG"
    try:
        text = head[:HEAD_BYTES].decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # not just a character that is cut by the end of the head
            return ""
        text = head[: error.start].decode()
    if _JSON.match(head):
        return "a JSON file"
    return "a text file" if all(char.isprintable() or char in "\t\r\n\f" for char in text) else ""
