"""Reads images from table cells: paths, URLs, base64 text, encoded bytes, or several of these."""

import ast
import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from phi3v_data.converters.helpers.image_names import stored_format, stored_name
from phi3v_data.converters.helpers.values import is_absent
from phi3v_data.draft import DraftImage
from phi3v_data.errors import Reject
from phi3v_data.files import unsafe_reason
from phi3v_data.media.formats import UnreadableImageError
from phi3v_data.media.images import read_image_file, refusal
from phi3v_data.messages import shown
from phi3v_data.suffixes import SOURCE_IMAGE_SUFFIXES

MAX_PATH = 4096
"""Longest text that is treated as a path, in characters."""

WRITE_BASE64 = "write data:image/jpeg;base64,..."
"""Advice about a data URL that is not base64."""

DATA_URL = re.compile(r"data:([^;,]{0,100})[^,]{0,200};base64,", re.IGNORECASE)
"""Start of a data URL in base64, with the type that it names."""


_BASE64 = re.compile(r"[A-Za-z0-9+/]{32,}")
_HEAD = 32  # characters of base64: 24 bytes


def image_values(value: Any, separator: str = "") -> list[Any]:
    """Split a cell into images: one, a list, a list written as text (`['a.png', 'b.png']`), or separated paths."""
    if isinstance(value, str) and value[:1] == "[" and value[-1:] == "]":
        value = _listed(value)
    if isinstance(value, str) and separator:
        value = [piece.strip() for piece in value.split(separator)]
    values = value if isinstance(value, list) else [value]
    return [each for each in values if not is_absent(each) and each != ""]


def _listed(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return value
    return text


def cell_path(value: Any) -> str:
    """The relative path in a value, with `/`; empty if it is something else."""
    if isinstance(value, Mapping) and not value.get("bytes"):
        value = value.get("path")
    if not isinstance(value, str) or not value or len(value) > MAX_PATH or "://" in value[:10] or is_inline(value):
        return ""
    return str(PurePosixPath(value.replace("\\", "/")))


def is_data_url(text: str) -> bool:
    """Whether a text is a data URL, in base64 or not."""
    return text[:5].lower() == "data:"


def lacks_base64(text: str) -> bool:
    """Whether a text is a data URL that is not base64."""
    return is_data_url(text) and DATA_URL.match(text) is None


def is_inline(text: str) -> bool:
    """Whether a text is the image itself: a data URL, or base64 whose start decodes to that of an image."""
    if is_data_url(text):
        return True
    head = text[:_HEAD]
    if _BASE64.fullmatch(head) is None:
        return False
    data = base64.b64decode(head)
    return stored_format(data) != "" or data[4:8] == b"ftyp"


def cell_image(
    value: Any, what: str, folders: Sequence[str | Path], files: Mapping[str, str] | None = None
) -> tuple[DraftImage, tuple[str, ...]]:
    """Read an image from a cell; return it with notes on how it is stored.

    Args:
        value: encoded bytes, `{"bytes": ..., "path": ...}`, a relative path, or base64 text.
        what: name of the cell in messages.
        folders: folders to which paths are relative, in this order.
        files: other locations of some paths.

    Raises:
        Reject: `image-missing`, `image-path-unsafe`, `image-unreadable`.
    """
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if isinstance(data, bytes) and data:
        return DraftImage(data, where=what), ()
    text = value.get("path") if isinstance(value, Mapping) else value
    if not isinstance(text, str) or not text:
        raise Reject("image-missing", f"{what} contains no image")
    if is_inline(text):
        return DraftImage(_decoded(text, what), where=what), ()
    if "://" in text[:10]:
        raise Reject("image-missing", f"{what} contains a URL; download the images first")
    if len(text) > MAX_PATH:
        raise Reject("image-missing", f"{what} contains {len(text):,} characters that are neither a path nor base64")
    path = str(PurePosixPath(text.replace("\\", "/")))
    if why := unsafe_reason(path):
        raise Reject("image-path-unsafe", f"{what} contains the path {shown(path)}, which {why}; use a relative path")
    return _from_file(path, what, folders, files or {})


def _decoded(text: str, what: str) -> bytes:
    if lacks_base64(text):
        raise Reject("image-unreadable", f"{what}: the data URL {shown(text, 40)} is not base64; {WRITE_BASE64}")
    data_url = DATA_URL.match(text)
    packed = "".join(text[data_url.end() if data_url else 0 :].split())
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Reject("image-unreadable", f"{what} contains base64 text that is damaged or cut short") from None


def _from_file(
    path: str, what: str, folders: Sequence[str | Path], files: Mapping[str, str]
) -> tuple[DraftImage, tuple[str, ...]]:
    places = [Path(files[path])] if path in files else [Path(folder, path) for folder in folders]
    said = f"{what}: {shown(path)}"
    for file in places:
        try:
            data = read_image_file(file)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except UnreadableImageError as error:
            raise Reject(error.code, f"{said} {error}") from None
        except OSError as error:
            raise Reject("image-unreadable", f"{said}: {refusal(error)}") from None
        hidden = any(piece.startswith(".") for piece in path.split("/"))
        if hidden or not path.lower().endswith(SOURCE_IMAGE_SUFFIXES):
            return DraftImage(data, where=said), ()
        name, notes = stored_name(path, file)
        return DraftImage(data, name=name, where=said), notes
    raise Reject("image-missing", f"{what}: there is no image {shown(path)}")
