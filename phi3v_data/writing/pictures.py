"""A draft's picture on its way to `images/`: read, proved to be a picture, named, written once."""

import errno
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeAlias, cast

from phi3v_data.draft import DraftImage
from phi3v_data.errors import Reject
from phi3v_data.mounts import NO_HARD_LINKS
from phi3v_data.suffixes import HEIC_SUFFIXES, IMAGE_SUFFIXES, SOURCE_IMAGE_SUFFIXES, STORED_IMAGES
from phi3v_data.writing.journal import ImageRecord, Journal

if TYPE_CHECKING:
    from phi3v_data.draft import ImageContent
    from phi3v_data.media.encoding import ImageFormat

MAX_NAME_BYTES = 200
MAX_PROVED = 4096
_Kind: TypeAlias = tuple[str, int, int]
"""The ending that fits an image's format, its width and height."""

_proved: dict[str, _Kind] = {}
"""Digests of images that this process has checked, with what they are: one page of many questions is decoded once."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A checked picture, ready to be stored."""

    record: ImageRecord
    data: bytes
    width: int
    height: int


def prepare_picture(image: "ImageContent | DraftImage", split: str) -> Picture:
    """Read or encode a draft's picture, check it and name it.

    Raises:
        Reject: `image-missing`, `image-unreadable`, `image-too-large`, `image-path-unsafe`, `draft-invalid`.
    """
    if not isinstance(image, DraftImage):
        image = DraftImage(image)
    if not isinstance(image.name, str):
        raise Reject("draft-invalid", f"DraftImage.name is a {type(image.name).__name__}; it must be a string")
    data, digest, (suffix, width, height) = _content(image)
    name = _upgraded(image.name, suffix) or f"{split}/{digest[:32]}{suffix}"
    check_name(name)
    return Picture(ImageRecord(name, len(data), digest), data, width, height)


def _upgraded(name: str, suffix: str) -> str:
    """The name that a source gave; one of a HEIC photo with the ending of what is stored."""
    return name.removesuffix(PurePosixPath(name).suffix) + suffix if name.lower().endswith(HEIC_SUFFIXES) else name


def forget_proved() -> None:
    """Prove every picture again; for measurements."""
    _proved.clear()


def check_name(name: str) -> None:
    """Refuse a name that is not a plain relative POSIX path with a picture's ending.

    Raises:
        Reject: `image-path-unsafe`.
    """
    from phi3v_data.files import unsafe_reason

    pieces = name.split("/")
    if why := unsafe_reason(name):
        pass
    elif any(piece.startswith(".") for piece in pieces):
        why = "has a component that starts with a dot"
    elif any(len(piece.encode()) > MAX_NAME_BYTES for piece in pieces):
        why = f"has a component of more than {MAX_NAME_BYTES} bytes"
    elif not pieces[-1].lower().endswith(IMAGE_SUFFIXES):
        why = f"does not end in {', '.join(IMAGE_SUFFIXES)}"
    elif any(piece.lower().endswith(SOURCE_IMAGE_SUFFIXES) for piece in pieces[:-1]):
        why = "has a folder named like a picture"
    else:
        return
    raise Reject("image-path-unsafe", f"the image name {name!r} {why}; give a relative path such as 'train/cat.jpg'")


def store_picture(picture: Picture, journal: Journal, scratch: Path) -> bool:
    """Write a picture under the staged `images/`, unless it is there; False where other content has the name.

    In that case the picture is kept under `collisions/`, and which of the two stays is decided by the order of the
    rows when the directory is published.
    """
    target = journal.images / picture.record.name
    if (same := _same(target, picture)) is not None:
        return same or _set_aside(picture, journal, scratch)
    scratch.write_bytes(picture.data)
    try:
        placed = _place(scratch, target, journal)
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
        placed = _place(scratch, target, journal)
    if not placed:
        return bool(_same(target, picture)) or _set_aside(picture, journal, scratch)
    scratch.unlink(missing_ok=True)
    return True


def _same(target: Path, picture: Picture) -> bool | None:
    """Whether the file that is there has the picture's content; None where there is no file."""
    try:
        if target.stat().st_size != picture.record.size:
            return False
        return target.read_bytes() == picture.data
    except FileNotFoundError:
        return None


def _set_aside(picture: Picture, journal: Journal, scratch: Path) -> bool:
    scratch.write_bytes(picture.data)
    os.replace(scratch, journal.collisions / picture.record.digest)
    return False


def _place(scratch: Path, target: Path, journal: Journal) -> bool:
    """Give the finished file its name; False where another worker has taken the name, or is about to."""
    try:
        os.link(scratch, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        if not target.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target.parent)) from None
        if not _claim(target, journal):
            return False
        os.replace(scratch, target)
    return True


def _claim(target: Path, journal: Journal) -> bool:
    """Take a name for this worker, where there are no hard links: only one can make the file of the claim.

    Claims are gone with the run. The loser may find nothing at the name yet; then it sets its image aside, and which
    of the two stays is decided when the directory is published.
    """
    name = target.relative_to(journal.images).as_posix().lower()  # exFAT and SMB tell no letter case apart
    journal.claims.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(journal.claims / hashlib.sha256(name.encode()).hexdigest(), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _content(image: DraftImage) -> tuple[bytes, str, _Kind]:
    """An image's bytes, their digest, and what they are."""
    content = image.content
    if isinstance(content, str | Path):
        from phi3v_data.media.formats import UnreadableImageError
        from phi3v_data.media.images import read_image_file

        try:
            data = read_image_file(content)
        except UnreadableImageError as error:
            raise Reject(error.code, f"{content} {error}") from None
        except FileNotFoundError:
            raise Reject("image-missing", f"there is no file {content}") from None
        except (NotADirectoryError, PermissionError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise Reject("image-unreadable", f"{content}: {reason}") from None
        return _check(data, str(content))
    if isinstance(content, bytes | bytearray | memoryview):
        return _check(bytes(content), image.name or "the image given as bytes")
    from phi3v_data.media.images import probe

    data, suffix = _encode(image)
    info = probe(data)
    return data, hashlib.sha256(data).hexdigest(), (suffix, info.width, info.height)


def _check(data: bytes, where: str) -> tuple[bytes, str, _Kind]:
    """Judge bytes as the validator does, once for equal bytes; a HEIC photo becomes a JPEG.

    Returns the bytes to store, their digest, and what they are.
    """
    from phi3v_data.media.formats import HEIC, UnreadableImageError, identify
    from phi3v_data.media.heic import heic_to_jpeg
    from phi3v_data.media.integrity import check_content

    try:
        if identify(data) == HEIC:
            data = heic_to_jpeg(data)
        digest = hashlib.sha256(data).hexdigest()
        if digest not in _proved:
            info = check_content(data)
            if len(_proved) >= MAX_PROVED:
                _proved.clear()
            _proved[digest] = STORED_IMAGES[info.format][0], info.width, info.height
    except UnreadableImageError as error:
        raise Reject(error.code, f"{where} {error}") from None
    return data, digest, _proved[digest]


def _encode(image: DraftImage) -> tuple[bytes, str]:
    """Encode a PIL image or an array."""
    import numpy as np
    from PIL import Image

    from phi3v_data.media.encoding import SUFFIXES as ENCODED
    from phi3v_data.media.encoding import encode
    from phi3v_data.media.formats import UnreadableImageError
    from phi3v_data.media.images import decoding

    content = image.content
    if not isinstance(content, np.ndarray | Image.Image):
        raise Reject(
            "draft-invalid", f"a {type(content).__name__} is no picture; give a path, bytes, a PIL image or an array"
        )
    if image.format not in ENCODED:
        raise Reject("draft-invalid", f"DraftImage.format is {image.format!r}; it can be {', '.join(ENCODED)}")
    if not isinstance(image.quality, int) or not 0 <= image.quality <= 100:
        raise Reject("draft-invalid", f"DraftImage.quality is {image.quality!r}; it can be 0 (the usual) to 100")
    try:
        with decoding():  # an opened PIL image is only now read to its end
            return encode(content, cast("ImageFormat", image.format), image.quality), ENCODED[image.format]
    except UnreadableImageError as error:
        raise Reject(error.code, f"an image cannot be encoded as {image.format}: it {error}") from None
