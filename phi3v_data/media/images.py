"""Opens and decodes images: every image file or image bytes are read through this module.

    read_image_file(path)   the bytes of a regular file, its size checked before it is read
    probe(source)           the contents of the header; nothing is decoded
    load_image(source)      a Pillow image of the first frame, decoded
    opened(source)          a Pillow image of which only the header was read, for callers that read on

`source` is a path or the file's bytes; the path may be of an image inside another file (`packed.py`). Formats and
limits are in `formats.py`. All exceptions of decoders become `UnreadableImageError`, or its subclass
`TooLargeImageError` over a limit; a file that cannot be read gives `OSError`.
"""

import errno
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from phi3v_data.media import blocks, jpeg, packed
from phi3v_data.media.export_pack import NO_SIZE
from phi3v_data.media.formats import (
    HEAD_BYTES,
    HEIC,
    LIMITS,
    PIXEL_LIMITS,
    TooLargeImageError,
    UnreadableImageError,
    identify,
)

if TYPE_CHECKING:
    from PIL import Image as PILImage

ImageSource: TypeAlias = str | Path | bytes

HEIC_PHOTO = "a HEIC photo"
"""In the message about one, which also says what to do."""

_EXIF_ORIENTATION = 0x0112
_HEADER_FIRST = frozenset({"PNG", "BMP", "PPM"})
"""Formats whose header at the start of the file is complete, except for later chunks of a PNG."""

_SPECIAL = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class ImageInfo(NamedTuple):
    """Contents of an image's header; `width` and `height` are as stored, before `orientation` (EXIF, 1 to 8)."""

    width: int
    height: int
    format: str  # a key of `suffixes.STORED_IMAGES`
    mode: str  # Pillow's name: RGB, L, RGBA, P, CMYK, I;16, ...
    orientation: int = 1
    frames: int = 1
    channel_bits: int = 8

    @property
    def animated(self) -> bool:
        """Whether there is more than one frame."""
        return self.frames > 1


def read_image_file(path: str | Path, *, head: bool = False) -> bytes:
    """Read the bytes of an image file, or with `head` the first `HEAD_BYTES` of them.

    Only regular files, and images packed in them, are read: opening never waits for another process, and devices are
    not read.

    Raises:
        UnreadableImageError: a folder, named pipe, device or socket.
        TooLargeImageError: larger than `LIMITS.file_bytes`.
        OSError: the file cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except NotADirectoryError:
        data = packed.read_packed(path)
        return data[:HEAD_BYTES] if head else data
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.EISDIR, errno.ENODEV, errno.EOPNOTSUPP):
            raise UnreadableImageError(f"is {_special(os.stat(path).st_mode)}, not a file") from None
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise UnreadableImageError(f"is {_special(found.st_mode)}, not a file")
        if found.st_size > LIMITS.file_bytes:
            raise TooLargeImageError(f"has {found.st_size:,} bytes, over the limit of {LIMITS.file_bytes:,}")
        if head:
            return os.read(descriptor, HEAD_BYTES)
        data = os.read(descriptor, found.st_size)
        if len(data) == found.st_size:
            return data
        parts = [data]  # a file that is being written, or a system that returns less per call
        while data:
            data = os.read(descriptor, found.st_size - sum(map(len, parts)))
            parts.append(data)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def file_size(path: Path) -> int:
    """Bytes of an image file, or of an image packed in another file (in base64, up to two more). Raises OSError."""
    try:
        return path.stat().st_size
    except NotADirectoryError:
        pack, entry = packed.find_packed(path)
        return pack.file_size(entry)


def refusal(error: OSError) -> str:
    """Why a file cannot be read: its permissions, a damaged disk, links in a circle.

    Raises:
        OSError: the error itself, if not the file but this machine is the reason, so that all others would fail too.
    """
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise error
    return error.strerror or str(error)


def _special(mode: int) -> str:
    return _SPECIAL.get(stat.S_IFMT(mode), "neither a file nor a folder")


def identify_readable(data: bytes) -> str:
    """Format of a file that begins with `data`: a key of `suffixes.STORED_IMAGES`.

    Raises:
        UnreadableImageError: not an image, or in a format that is not supported.
    """
    kind = identify(data)
    if kind == HEIC:
        raise UnreadableImageError(
            f"is not an image in a supported format ({HEIC_PHOTO}): save it as JPEG, as `phi3v-data import` and "
            "`convert` do with the extra `heic`"
        )
    return kind


@contextmanager
def decoding() -> Iterator[None]:
    """Run a decoder in the block: its exceptions become UnreadableImageError, its warnings are ignored."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnreadableImageError:
        raise
    except MemoryError:
        raise TooLargeImageError("needs more memory to decode than is available") from None
    except Exception as error:  # Pillow's decoders raise anything on damaged bytes
        if type(error).__name__ == "DecompressionBombError":
            raise TooLargeImageError(f"is too large: {short_words(error)}") from None
        raise UnreadableImageError(f"is damaged or cut short: {short_words(error)}") from None


def short_words(error: BaseException) -> str:
    """The message of a decoder's exception, on one line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:120]


@contextmanager
def opened(source: ImageSource) -> "Iterator[tuple[PILImage.Image, ImageInfo]]":
    """Yield a Pillow image of which only the header was read, and its header (for PNG without EXIF orientation).

    Of several JPEG images in a file (MPO) the first is read. Raises as `load_image`, also for decoding in the block.
    """
    data = source if isinstance(source, bytes) else read_image_file(source)
    kind = identify_readable(data)
    with decoding():
        found = _check_before(kind, data)
        with _plugin(kind)(io.BytesIO(data)) as image:
            yield image, _info(image, kind, found)


def load_image(source: ImageSource, *, draft: tuple[str, tuple[int, int]] | None = None) -> "PILImage.Image":
    """Decode the first frame as a Pillow image in the mode of the file; EXIF orientation is not applied.

    Args:
        draft: Pillow's hint for JPEG (mode and minimum size): decode at a fraction of the size if that is enough.

    Raises:
        UnreadableImageError: not an image, damaged, or cut short (as far as decoding shows; `integrity` checks more).
        TooLargeImageError: over the limits; nothing was decoded.
        OSError: the file cannot be read.
    """
    with opened(source) as (image, _):
        if draft is not None:
            image.draft(*draft)
        image.load()
        return image


def probe(source: ImageSource) -> ImageInfo:
    """Read an image's header; pixels are not decoded, so damage in them is not found.

    Raises:
        As `load_image`.
    """
    head = source if isinstance(source, bytes) else read_image_file(source, head=True)
    kind = identify_readable(head)
    if kind == "JPEG":
        header = jpeg.read_header(head)
        if header is None and not isinstance(source, bytes):
            header = jpeg.read_header(read_image_file(source))
        return _jpeg_info(header)
    if kind in _HEADER_FIRST and not (b"acTL" in head or b"eXIf" in head):
        with decoding():
            if found := _check_extents(kind, head):
                with _plugin(kind)(io.BytesIO(head)) as image:
                    return _info(image, kind, found)
    with opened(source) as (image, info):
        return info


def size_in_header(head: bytes) -> tuple[int, int]:
    """Width and height of the image that begins with these bytes; `NO_SIZE` if they do not tell."""
    try:
        info = probe(head)
    except UnreadableImageError:
        return NO_SIZE
    return info.width, info.height


def check_jpeg(data: bytes) -> ImageInfo:
    """Read the header of a JPEG, and check the number of its scans.

    Raises:
        As `load_image`.
    """
    header = jpeg.read_header(data)
    info = _jpeg_info(header)
    assert header is not None
    jpeg.check_scans(data, header)
    return info


def _jpeg_info(header: jpeg.JpegHeader | None) -> ImageInfo:
    if header is None:
        raise UnreadableImageError("is damaged or cut short: a JPEG without a frame header")
    check_extent("JPEG", blocks.Extent(header.width, header.height))
    mode = {1: "L", 4: "CMYK"}.get(header.components, "RGB")
    turn = jpeg.orientation(header.exif)
    turn = turn if 1 <= turn <= 8 else 1
    return ImageInfo(header.width, header.height, "JPEG", mode, turn, 1, header.bits)


def _info(image: "PILImage.Image", kind: str, found: blocks.Extent | None) -> ImageInfo:
    """The header as read by Pillow, checked against the limits."""
    from PIL import PpmImagePlugin

    frames = 1 if kind == "JPEG" else int(getattr(image, "n_frames", 1))
    seen = found or blocks.Extent(image.width, image.height, 1, 8 * len(image.getbands()))
    check_extent(kind, seen._replace(width=image.width, height=image.height, frames=frames))
    if (
        isinstance(image, PpmImagePlugin.PpmImageFile) and image.tile and image.tile[0][0] != "raw"
    ):  # Pillow decodes the others in Python
        raise UnreadableImageError("is a PPM image of other than 8 bits, which is not supported: store it as PNG")
    turn = exif_orientation(image) if "exif" in image.info or kind == "TIFF" else 1
    return ImageInfo(image.width, image.height, kind, image.mode, turn, frames, found.channel_bits if found else 8)


def check_extent(kind: str, found: blocks.Extent) -> None:
    """Reject an image that costs too much to decode.

    Raises:
        TooLargeImageError: see `formats.LIMITS`.
    """
    pixels = found.width * found.height
    in_all = found.all_pixels or pixels * found.frames
    limit = PIXEL_LIMITS.get(kind, LIMITS.pixels)
    if max(pixels, in_all) <= limit and pixels * found.bits <= LIMITS.pixel_bytes * 8 and found.frames <= LIMITS.frames:
        return
    size = f"{found.width} x {found.height} pixels"
    if found.frames > LIMITS.frames:
        raise TooLargeImageError(f"has {found.frames:,} frames, over the limit of {LIMITS.frames:,}")
    if pixels > limit:
        raise TooLargeImageError(f"has {size}, over the limit of {limit:,}")
    if in_all > limit:
        raise TooLargeImageError(f"has {found.frames:,} frames of {size}, over the limit of {limit:,} in all")
    raise TooLargeImageError(f"has {size} of {found.bits} bits, over the limit of {LIMITS.pixel_bytes:,} bytes")


def _check_before(kind: str, data: bytes) -> blocks.Extent | None:
    """Check the file before it is passed to a decoder; return its size and frames if known."""
    if kind == "JPEG":
        if header := jpeg.read_header(data):
            check_extent(kind, blocks.Extent(header.width, header.height))
            jpeg.check_scans(data, header)
        return None
    if kind == "PNG":
        blocks.check_png(data)
    return _check_extents(kind, data)


def _check_extents(kind: str, data: bytes) -> blocks.Extent | None:
    found = blocks.extent(kind, data)
    if found is not None:
        check_extent(kind, found)
    return found


def exif_orientation(image: "PILImage.Image") -> int:
    """The EXIF orientation of a Pillow image, 1 to 8; 1 if it has none. For a PNG this decodes the pixels."""
    value = image.getexif().get(_EXIF_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


@cache
def _plugin(kind: str) -> Callable[[Any], "PILImage.Image"]:
    """Pillow's reader of one format, so that no other reader parses the file."""
    from PIL import (
        AvifImagePlugin,
        BmpImagePlugin,
        GifImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        PpmImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    plugins: dict[str, Callable[[Any], PILImage.Image]] = {
        "JPEG": JpegImagePlugin.JpegImageFile,
        "PNG": PngImagePlugin.PngImageFile,
        "WEBP": WebPImagePlugin.WebPImageFile,
        "GIF": GifImagePlugin.GifImageFile,
        "BMP": BmpImagePlugin.BmpImageFile,
        "TIFF": TiffImagePlugin.TiffImageFile,
        "PPM": PpmImagePlugin.PpmImageFile,
        "AVIF": AvifImagePlugin.AvifImageFile,
    }
    return plugins[kind]
