"""Checks image files for `convert` and `validate`, in one pass over each file and at two levels.

Header only: size, format, mode, EXIF orientation. With pixels: JPEG through libjpeg-turbo in strict mode at an eighth
of the size, in grey, which takes less than half of Pillow's time and reports what Pillow ignores (cut files, zeroed
blocks); other formats through Pillow, all frames, including PNG checksums. Two fingerprints are computed at the same
time: a digest of the pixels and a difference hash for near duplicates. Results are rows of a compact table, cheap to
send between processes.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash
from PIL import Image

from phi3v_data.media.formats import TooLargeImageError, UnreadableImageError
from phi3v_data.media.images import (
    ImageInfo,
    ImageSource,
    check_jpeg,
    exif_orientation,
    identify_readable,
    load_image,
    opened,
    probe,
    read_image_file,
)
from phi3v_data.media.jpeg import decode_reduced
from phi3v_data.suffixes import STORED_IMAGES

FACTS = np.dtype(
    [("width", "<i4"), ("height", "<i4"), ("flags", "<u2"), ("dhash", "<u8"), ("pixels", "<u8", (2,))], align=False
)
"""One image: size as stored (0 if unknown), `flags`, difference hash, 128-bit digest of the decoded pixels.

The digest of a JPEG is that of its reduced grey version: different digests mean different pixels, equal digests most
likely equal pixels, which `rgb_digest` confirms.
"""

CHECKED, DECODED, UNREADABLE, TOO_LARGE, MISMATCH, ANIMATED, MODE, ORIENTATION, JPEG, FLAT, STRAY = (
    1 << i for i in range(11)
)
"""Flags: header read; pixels read; findings from UNREADABLE to ORIENTATION; a JPEG; so uniform that its difference hash
is meaningless; one more finding, stray bytes in a JPEG."""

Facts = npt.NDArray[np.void]
Details = list[tuple[int, int, str]]
"""(position, flag, message) of each finding."""

_SUFFIXES = {suffix: kind for kind, suffixes in STORED_IMAGES.items() for suffix in suffixes}
_GOOD_MODES = frozenset({"RGB", "RGBA", "RGBX", "L", "LA", "P", "PA", "1", "La", "RGBa"})
_FLAT_RANGE = 12  # grey levels between the darkest and the lightest cell
_REDUCED_SIDE = 256  # at least, of the grey copy of a large image
_STRIP_PIXELS = 1 << 22  # converted at once, so that a large image is in memory only once


def check_images(root: str, paths: Sequence[str], *, pixels: bool) -> tuple[Facts, Details]:
    """Check each file; with `pixels`, decode it. The result depends only on the files, so any process may run it."""
    return _check((f"{root}/{path}" for path in paths), pixels)


def check_image(source: ImageSource, *, pixels: bool) -> tuple[np.void, list[tuple[int, str]]]:
    """Check one file, or the bytes of one: a row of FACTS, and its findings as (flag, message)."""
    facts, details = _check([source], pixels)
    return facts[0], [(flag, words) for _, flag, words in details]


def _check(sources: Iterable[ImageSource], pixels: bool) -> tuple[Facts, Details]:
    looks: list[_Look] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for source in sources:
            looks.append(look := _Look("" if isinstance(source, bytes) else str(source)))
            look.run(source, pixels)
    facts = np.zeros(len(looks), FACTS)
    for name in ("width", "height", "flags"):
        facts[name] = [getattr(look, name) for look in looks]
    decoded = [position for position, look in enumerate(looks) if look.cells]
    if decoded:
        hashes, flat = _difference_hashes(b"".join(look.cells for look in looks))
        facts["dhash"][decoded] = hashes
        facts["flags"][decoded] |= np.where(flat, FLAT, 0).astype(np.uint16)
        facts["pixels"][decoded] = [looks[position].digest for position in decoded]
    return facts, [(position, *finding) for position, look in enumerate(looks) for finding in look.findings]


def _difference_hashes(cells: bytes) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
    """Difference hash of each image of 8 x 9 grey cells, and whether it is flat: for all at once, as it is short."""
    grey = np.frombuffer(cells, np.uint8).reshape(-1, 8, 9)
    bits = np.packbits(grey[:, :, 1:] > grey[:, :, :-1], axis=2)
    flat = np.ptp(grey.reshape(-1, 72), axis=1) < _FLAT_RANGE
    return bits.reshape(-1, 8).view(">u8")[:, 0].astype(np.uint64), flat


def check_content(data: bytes) -> ImageInfo:
    """Check that bytes to be stored are an image without an error of the validator.

    Raises:
        UnreadableImageError: not an image, damaged, or cut short.
        TooLargeImageError: over the limits.
    """
    look = _Look("")
    look.run(data, pixels=True)
    for flag, words in look.findings:
        if flag in (UNREADABLE, TOO_LARGE):
            raise (TooLargeImageError if flag == TOO_LARGE else UnreadableImageError)(words)
    assert look.info is not None
    return look.info


def rgb_digest(path: str | Path) -> bytes:
    """Digest of an image's pixels as RGB, as the image processor reads them; empty if it cannot be read."""
    try:
        image = load_image(path)
    except (UnreadableImageError, OSError):
        return b""
    hasher = xxhash.xxh3_128(b"%d %d " % image.size)
    for _, rgb in _rgb_strips(image):
        hasher.update(rgb.tobytes())
    return hasher.digest()


def rgb_digests(root: str, paths: Sequence[str]) -> list[bytes]:
    """`rgb_digest` of each file, in one process."""
    return [rgb_digest(f"{root}/{path}") for path in paths]


def _fingerprint(image: Image.Image) -> "tuple[xxhash.xxh3_128, Image.Image]":
    """Return a hasher of the RGB pixels, and the image in grey (a large one reduced)."""
    hasher = xxhash.xxh3_128()
    if image.width * image.height <= _STRIP_PIXELS:
        rgb = _to_rgb(image)
        hasher.update(rgb.tobytes())
        return hasher, rgb.convert("L")
    factor = max(1, min(image.size) // _REDUCED_SIDE)
    grey = Image.new("L", (-(-image.width // factor), -(-image.height // factor)))
    for top, rgb in _rgb_strips(image, factor):
        hasher.update(rgb.tobytes())
        grey.paste(rgb.reduce(factor).convert("L"), (0, top // factor))
    return hasher, grey


def _rgb_strips(image: Image.Image, multiple: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """Yield the image as RGB strips of whole rows with their tops; heights but the last are multiples of `multiple`."""
    rows = max(1, _STRIP_PIXELS // image.width // multiple) * multiple
    for top in range(0, image.height, rows):
        yield top, _to_rgb(image.crop((0, top, image.width, min(top + rows, image.height))))


def _to_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


class _Look:
    """State of the check of one file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.width = self.height = self.flags = 0
        self.digest = (0, 0)
        self.cells = b""  # of the decoded image
        self.findings: list[tuple[int, str]] = []
        self.info: ImageInfo | None = None

    def find(self, flag: int, words: str) -> None:
        self.flags |= flag
        self.findings.append((flag, words))

    def run(self, source: ImageSource, pixels: bool) -> None:
        """Check a file or bytes; an error that ends the check early is a finding."""
        try:
            if pixels:
                self._decode(source if isinstance(source, bytes) else read_image_file(source))
            else:
                self._take_info(probe(source))
        except TooLargeImageError as error:
            self.find(TOO_LARGE, str(error))
        except UnreadableImageError as error:
            self.find(UNREADABLE, str(error))
        except (OSError, ValueError) as error:  # ValueError: a path with NUL
            self.find(UNREADABLE, f"cannot be opened: {getattr(error, 'strerror', None) or error}")
            return
        self.flags |= CHECKED

    def _take_info(self, info: ImageInfo) -> None:
        """Collect the findings of the header."""
        self.info = info
        self.width, self.height = info.width, info.height
        dot = self.name.rfind(".")
        expected = _SUFFIXES.get(self.name[dot:].lower()) if dot > self.name.rfind("/") else None
        if expected is not None and expected != info.format:
            self.find(MISMATCH, f"is a {info.format} file by content, {expected} by name")
        if info.channel_bits not in (1, 8):
            self.find(MODE, f"has {info.channel_bits} bits per channel")
        elif info.mode not in _GOOD_MODES:
            self.find(MODE, f"has mode {info.mode}")
        if info.frames > 1:
            self.find(ANIMATED, f"has {info.frames:,} frames")
        if info.orientation != 1:
            self.find(ORIENTATION, f"has EXIF orientation {info.orientation}")
        if info.format == "JPEG":
            self.flags |= JPEG

    def _decode(self, data: bytes) -> None:
        if identify_readable(data) == "JPEG":
            self._take_info(check_jpeg(data))
            grey, passed_over = decode_reduced(data)
            if passed_over:
                self.find(STRAY, passed_over)
            height, width, _ = grey.shape
            self._take(xxhash.xxh3_128(grey.data), Image.frombuffer("L", (width, height), grey, "raw", "L", 0, 1))
            return
        with opened(data) as (image, info):
            image.load()
            turn = exif_orientation(image) if "exif" in image.info or info.format == "TIFF" else 1
            self._take_info(info._replace(orientation=turn))  # of a PNG the tag may follow the pixels
            self._take(*_fingerprint(image))
            for frame in range(1, info.frames):
                image.seek(frame)
                image.load()

    def _take(self, hasher: "xxhash.xxh3_128", image: Image.Image) -> None:
        """Take the digest, and the cells of the difference hash: `hasher` has seen the pixels, `image` is grey."""
        hasher.update(b"%d %d" % (self.width, self.height))
        digest = hasher.intdigest()
        self.digest = digest & 0xFFFFFFFFFFFFFFFF, digest >> 64
        self.flags |= DECODED
        self.cells = image.resize((9, 8), Image.Resampling.BOX).tobytes()
