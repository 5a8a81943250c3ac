"""Is a picture file sound, and what does it hold: one look at each file, at two depths.

Header only: size, format, mode, EXIF turn. With pixels: JPEG through libjpeg-turbo in strict mode at an eighth of the
size, in grey, which takes less than half of Pillow's time and reports what Pillow passes over (cut files, zeroed
blocks); other formats through Pillow, every frame, PNG checksums included. Along the way two fingerprints are taken:
a digest of the pixels and a difference hash for near duplicates. Results are rows of a compact table, cheap to send
between processes.
"""

import io
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
import xxhash
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from phi3v_data.media.image import DECODER_ERRORS, png_problem

FACTS = np.dtype(
    [("width", "<i4"), ("height", "<i4"), ("flags", "<u2"), ("dhash", "<u8"), ("pixels", "<u8", (2,))], align=False
)
"""One picture: size as stored (0 where unknown), `flags`, difference hash, 128-bit digest of what was decoded.

The digest of a JPEG is of its grey, reduced decoding: different digests mean different pixels, equal ones most likely
equal pixels, which `rgb_digest` settles.
"""

CHECKED, DECODED, UNREADABLE, TOO_LARGE, MISMATCH, ANIMATED, MODE, ORIENTATION, JPEG, FLAT = (1 << i for i in range(10))
"""Flags: header read; pixels read; the findings; a JPEG; so even that its difference hash means nothing."""

FINDINGS = (UNREADABLE, TOO_LARGE, MISMATCH, ANIMATED, MODE, ORIENTATION)

Facts = npt.NDArray[np.void]
Details = list[tuple[int, int, str]]
"""(position, flag, words) of each finding."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA", "PCX", "MPO")
_SUFFIXES = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
_GOOD_MODES = frozenset({"RGB", "RGBA", "RGBX", "L", "LA", "P", "PA", "1", "La", "RGBa"})
_HEADER_BYTES = 8192
_EXIF_ORIENTATION = 0x0112
_MIN_SIDE = 24  # of the reduced JPEG: enough for a hash of 9 x 8 cells
_FLAT_RANGE = 12  # grey levels between the darkest and the lightest cell


class _Bad(Exception):  # noqa: N818 - ends a look, is no failure of the program
    """The finding that ends a look: a flag and words."""

    def __init__(self, flag: int, words: str) -> None:
        super().__init__(flag, words)
        self.flag = flag
        self.words = words


def check_images(root: str, paths: Sequence[str], *, pixels: bool) -> tuple[Facts, Details]:
    """Look at each file; with `pixels`, decode it. A function of its arguments alone, for any process."""
    facts = np.zeros(len(paths), FACTS)
    details: Details = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for position, path in enumerate(paths):
            facts[position], findings = check_image(f"{root}/{path}", pixels=pixels)
            details += [(position, flag, words) for flag, words in findings]
    return facts, details


def check_image(path: str | Path, *, pixels: bool) -> tuple[tuple[Any, ...], list[tuple[int, str]]]:
    """One file: a row of FACTS, and its findings as (flag, words)."""
    look = _Look(str(path))
    try:
        look.run(pixels)
    except _Bad as bad:
        look.find(bad.flag, bad.words)
    return (look.width, look.height, look.flags, look.dhash, look.digest), look.findings


def rgb_digest(path: str | Path) -> bytes:
    """Digest of a picture's pixels as RGB, as the image processor reads them; empty where it cannot be read."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            rgb = image.convert("RGB")
            return xxhash.xxh3_128_digest(b"%d %d " % rgb.size + rgb.tobytes())
    except (*DECODER_ERRORS, Image.DecompressionBombError):
        return b""


class _Look:
    """State of the look at one file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.width = self.height = self.flags = self.dhash = 0
        self.digest = (0, 0)
        self.findings: list[tuple[int, str]] = []

    def find(self, flag: int, words: str) -> None:
        self.flags |= flag
        self.findings.append((flag, words))

    def run(self, pixels: bool) -> None:
        try:
            with open(self.path, "rb", buffering=0) as file:
                data = file.read() if pixels else file.read(_HEADER_BYTES)
        except OSError as error:
            raise _Bad(UNREADABLE, f"cannot be opened: {error.strerror or error}") from None
        self.flags |= CHECKED
        if not data:
            raise _Bad(UNREADABLE, "is empty (0 bytes)")
        if data.startswith(b"\xff\xd8\xff"):
            self._jpeg(data, pixels)
        elif data.startswith(b"\x89PNG\r\n\x1a\n"):
            self._png(data, pixels)
        else:
            self._other(data if pixels else None, pixels)

    def _set_size(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and width * height > limit:
            raise _Bad(TOO_LARGE, f"has {width} x {height} pixels, over the limit of {limit}")

    def _check_format(self, name: str) -> None:
        dot = self.path.rfind(".")
        expected = _SUFFIXES.get(self.path[dot:].lower()) if dot > self.path.rfind("/") else None
        if expected is not None and expected != name:
            self.find(MISMATCH, f"is a {name} file by content, {expected} by name")

    def _check_mode(self, mode: str) -> None:
        if mode not in _GOOD_MODES:
            self.find(MODE, f"has mode {mode}")

    def _check_orientation(self, value: object) -> None:
        if isinstance(value, int) and 2 <= value <= 8:
            self.find(ORIENTATION, f"has EXIF orientation {value}")

    def _jpeg(self, data: bytes, pixels: bool) -> None:
        self.flags |= JPEG
        self._check_format("JPEG")
        header = _jpeg_header(data)
        if header is None and not pixels:
            header = _jpeg_header(Path(self.path).read_bytes())
        if header is None:
            raise _Bad(UNREADABLE, "is damaged or cut short: a JPEG without a frame header")
        width, height, components, precision, exif = header
        self._set_size(width, height)
        if components == 4:
            self._check_mode("CMYK")
        elif precision != 8:
            self._check_mode(f"{precision} bit")
        self._check_orientation(_exif_orientation(exif))
        if not pixels:
            return
        try:
            grey = simplejpeg.decode_jpeg(data, "GRAY", min_height=_MIN_SIDE, min_width=_MIN_SIDE)
        except ValueError as error:
            raise _Bad(UNREADABLE, f"is damaged or cut short: {_words(error)}") from None
        height, width, _ = grey.shape
        self._take(xxhash.xxh3_128(grey), Image.frombuffer("L", (width, height), grey, "raw", "L", 0, 1))

    def _png(self, data: bytes, pixels: bool) -> None:
        if not pixels and len(data) >= 26 and data[12:16] == b"IHDR":
            width, height, depth = struct.unpack(">IIB", data[16:25])
            if width and height:
                self._check_format("PNG")
                self._set_size(width, height)
                if depth == 16:
                    self._check_mode("16 bit")
                if b"acTL" in data or b"eXIf" in data:
                    self._other(None, pixels, reported=True)
                return
        if pixels:
            problem = png_problem(data)
            if problem:
                raise _Bad(UNREADABLE, f"is damaged or cut short: {problem}")
        self._other(data if pixels else None, pixels, png=True, sixteen=data[24:25] == b"\x10")

    def _other(
        self, data: bytes | None, pixels: bool, *, png: bool = False, sixteen: bool = False, reported: bool = False
    ) -> None:
        """Pillow's look; `reported`: format, size and mode have been dealt with."""
        source: Any = self.path if data is None else io.BytesIO(data)
        try:
            with PngImageFile(source) if png and pixels else Image.open(source, formats=_FORMATS) as image:
                name = "JPEG" if image.format == "MPO" else str(image.format)
                if not reported:
                    self._check_format(name)
                    self._set_size(*image.size)
                    self._check_mode("16 bit" if sixteen else image.mode)
                frames = int(getattr(image, "n_frames", 1))
                if frames > 1:
                    self.find(ANIMATED, f"has {frames} frames")
                if not pixels:
                    self._check_orientation(_orientation(image))
                    return
                if name != "PNG":  # `png_problem` has seen the checksums
                    image.verify()
                    assert data is not None
                    with Image.open(io.BytesIO(data), formats=_FORMATS) as again:
                        self._load(again, frames)
                else:
                    self._load(image, frames)
        except _Bad:
            raise
        except UnidentifiedImageError:
            raise _Bad(UNREADABLE, "is not a picture of a known format") from None
        except Image.DecompressionBombError as error:
            raise _Bad(TOO_LARGE, f"is too large: {_words(error)}") from None
        except Exception as error:  # decoders raise anything on damaged bytes, and each is a finding
            raise _Bad(UNREADABLE, f"is damaged or cut short: {_words(error)}") from None

    def _load(self, image: Image.Image, frames: int) -> None:
        image.load()
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        hasher = xxhash.xxh3_128(rgb.tobytes())
        self._check_orientation(_orientation(image))
        self._take(hasher, rgb)
        for frame in range(1, frames):
            image.seek(frame)
            image.load()

    def _take(self, hasher: "xxhash.xxh3_128", image: Image.Image) -> None:
        """Both fingerprints: `hasher` has seen the pixels, `image` is what the difference hash is made of."""
        hasher.update(b"%d %d" % (self.width, self.height))
        digest = hasher.intdigest()
        self.digest = digest & 0xFFFFFFFFFFFFFFFF, digest >> 64
        self.flags |= DECODED
        if image.mode != "L":
            image = image.convert("L")
        small = image.resize((9, 8), Image.Resampling.BOX)
        cells = np.frombuffer(small.tobytes(), np.uint8).reshape(8, 9)
        if int(cells.max()) - int(cells.min()) < _FLAT_RANGE:
            self.flags |= FLAT
        bits = cells[:, 1:] > cells[:, :-1]
        self.dhash = int.from_bytes(np.packbits(bits).tobytes(), "big")


def _jpeg_header(data: bytes) -> tuple[int, int, int, int, bytes] | None:
    """(width, height, components, bits, EXIF block) of a JPEG; None where no frame header is found."""
    position, exif = 2, b""
    while position + 9 < len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 2
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            precision, height, width, components = struct.unpack_from(">BHHB", data, position + 4)
            return (width, height, components, precision, exif) if width and height else None
        else:
            length = struct.unpack_from(">H", data, position + 2)[0]
            if marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0" and not exif:
                exif = data[position + 10 : position + 2 + length]
            position += 2 + length
    return None


def _exif_orientation(exif: bytes) -> int:
    """The orientation tag of an EXIF block's first directory; 1 where it has none."""
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


def _orientation(image: Image.Image) -> object:
    return image.getexif().get(_EXIF_ORIENTATION, 1) if "exif" in image.info or image.format == "TIFF" else 1


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:120]
