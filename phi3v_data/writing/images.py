"""Stores the images of drafts under `images/`: reads, verifies and names them, and writes each once."""

import errno
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeAlias, cast

from phi3v_data.draft import DraftImage
from phi3v_data.errors import Reject
from phi3v_data.files import name_digest, unsafe_reason
from phi3v_data.messages import shown
from phi3v_data.mounts import NO_HARD_LINKS
from phi3v_data.suffixes import HEIC_SUFFIXES, IMAGE_SUFFIXES, SOURCE_IMAGE_SUFFIXES, STORED_IMAGES
from phi3v_data.writing.journal import Journal
from phi3v_data.writing.records import ImageRecord

if TYPE_CHECKING:
    from phi3v_data.draft import ImageContent
    from phi3v_data.media.encoding import ImageFormat

MAX_NAME_BYTES = 200
MAX_PATH_BYTES = 3_000
"""Systems take paths of 4,095 bytes, of which some are needed for the folder of the set."""

MAX_VERIFIED = 4096
_Kind: TypeAlias = tuple[str, int, int]
"""The extension for an image's format, its width and height."""

_verified: dict[str, _Kind] = {}
"""Digests of images verified by this process, with their facts: a page of many questions is decoded once."""


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """A verified image, ready to be stored."""

    record: ImageRecord
    data: bytes
    width: int
    height: int


def prepare_image(image: "ImageContent | DraftImage", split: str) -> PreparedImage:
    """Read or encode the image of a draft, verify it and name it.

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
    return PreparedImage(ImageRecord(name, len(data), digest), data, width, height)


def _upgraded(name: str, suffix: str) -> str:
    """The name from the source; that of a HEIC photo gets the extension of the stored file."""
    return name.removesuffix(PurePosixPath(name).suffix) + suffix if name.lower().endswith(HEIC_SUFFIXES) else name


def forget_verified() -> None:
    """Verify every image again; for measurements."""
    _verified.clear()


def check_name(name: str) -> None:
    """Reject a name that is not a plain relative POSIX path with the extension of an image.

    Raises:
        Reject: `image-path-unsafe`.
    """
    pieces = name.split("/")
    if why := unsafe_reason(name):
        pass
    elif any(piece.startswith(".") for piece in pieces):
        why = "has a component that starts with a dot"
    elif any(len(piece.encode()) > MAX_NAME_BYTES for piece in pieces):
        why = f"has a component of more than {MAX_NAME_BYTES} bytes"
    elif len(name.encode()) > MAX_PATH_BYTES:
        why = f"has more than {MAX_PATH_BYTES:,} bytes"
    elif not pieces[-1].lower().endswith(IMAGE_SUFFIXES):
        why = f"does not end in {', '.join(IMAGE_SUFFIXES)}"
    elif any(piece.lower().endswith(SOURCE_IMAGE_SUFFIXES) for piece in pieces[:-1]):
        why = "has a folder named like an image"
    else:
        return
    raise Reject(
        "image-path-unsafe", f"the image name {shown(name, 160)} {why}; give a relative path such as 'train/cat.jpg'"
    )


def store_image(image: PreparedImage, journal: Journal, scratch: Path) -> bool:
    """Write an image under the staged `images/`, unless it exists; return False if the name has other content.

    In that case the image is kept under `collisions/`, and the order of the rows decides which of the two is used when
    the directory is published.
    """
    target = journal.images / image.record.name
    if (same := _same(target, image)) is not None:
        return same or _set_aside(image, journal, scratch)
    scratch.write_bytes(image.data)
    try:
        placed = _place(scratch, target, journal)
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
        placed = _place(scratch, target, journal)
    if not placed:
        return bool(_same(target, image)) or _set_aside(image, journal, scratch)
    scratch.unlink(missing_ok=True)
    return True


def _same(target: Path, image: PreparedImage) -> bool | None:
    """Whether the existing file has the content of the image; None if there is no file."""
    try:
        if target.stat().st_size != image.record.size:
            return False
        return target.read_bytes() == image.data
    except FileNotFoundError:
        return None


def _set_aside(image: PreparedImage, journal: Journal, scratch: Path) -> bool:
    scratch.write_bytes(image.data)
    os.replace(scratch, journal.collisions / image.record.digest)
    return False


def _place(scratch: Path, target: Path, journal: Journal) -> bool:
    """Give the finished file its name; False if another worker has taken the name, or is about to."""
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
    """Claim a name for this worker, if there are no hard links: only one worker can create the file of the claim.

    Claims are removed with the run. The other worker may not find a file with the name yet; then it keeps its image
    aside, and which of the two is used is decided when the directory is published.
    """
    name = target.relative_to(journal.images).as_posix().lower()  # exFAT and SMB ignore letter case
    journal.claims.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(journal.claims / name_digest(name), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _content(image: DraftImage) -> tuple[bytes, str, _Kind]:
    """The bytes of an image, their digest, and the facts about it."""
    content = image.content
    if isinstance(content, str | Path):
        from phi3v_data.media.formats import UnreadableImageError
        from phi3v_data.media.images import read_image_file, refusal

        try:
            data = read_image_file(content)
        except UnreadableImageError as error:
            raise Reject(error.code, f"{content} {error}") from None
        except FileNotFoundError:
            raise Reject("image-missing", f"the file {content} does not exist") from None
        except (OSError, ValueError) as error:
            reason = refusal(error) if isinstance(error, OSError) else str(error)
            raise Reject("image-unreadable", f"{content}: {reason}") from None
        return _check(data, str(content))
    if isinstance(content, bytes | bytearray | memoryview):
        return _check(bytes(content), image.where or image.name or "the image given as bytes")
    from phi3v_data.media.images import probe

    data, suffix = _encode(image)
    info = probe(data)
    return data, hashlib.sha256(data).hexdigest(), (suffix, info.width, info.height)


def _check(data: bytes, where: str) -> tuple[bytes, str, _Kind]:
    """Check bytes like the validator, once for equal bytes; a HEIC photo becomes a JPEG.

    Returns the bytes to store, their digest, and the facts about the image.
    """
    from phi3v_data.media.formats import HEIC, UnreadableImageError, identify
    from phi3v_data.media.heic import heic_to_jpeg
    from phi3v_data.media.integrity import check_content

    try:
        if identify(data) == HEIC:
            data = heic_to_jpeg(data)
        digest = hashlib.sha256(data).hexdigest()
        if digest not in _verified:
            info = check_content(data)
            if len(_verified) >= MAX_VERIFIED:
                _verified.clear()
            _verified[digest] = STORED_IMAGES[info.format][0], info.width, info.height
    except UnreadableImageError as error:
        raise Reject(error.code, f"{where} {error}") from None
    return data, digest, _verified[digest]


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
            "draft-invalid", f"a {type(content).__name__} is not an image; give a path, bytes, a PIL image or an array"
        )
    if image.format not in ENCODED:
        raise Reject("draft-invalid", f"DraftImage.format is {image.format!r}; it can be {', '.join(ENCODED)}")
    if not isinstance(image.quality, int) or not 0 <= image.quality <= 100:
        raise Reject("draft-invalid", f"DraftImage.quality is {image.quality!r}; it can be 0 (the default) to 100")
    try:
        with decoding():  # an opened PIL image is only now read completely
            return encode(content, cast("ImageFormat", image.format), image.quality), ENCODED[image.format]
    except UnreadableImageError as error:
        raise Reject(error.code, f"an image cannot be encoded as {image.format}: it {error}") from None
