"""Shared by converters of annotated images: reads JSON files, fields of rows, and splits of tables.

No message contains the text of a sample: it may be private or hateful, and rejects and errors are often passed on.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import jsonlines
import xxhash

from phi3v_data.converters.helpers.cell_images import cell_image
from phi3v_data.converters.helpers.values import is_absent
from phi3v_data.draft import DraftImage
from phi3v_data.encodings import open_utf8, read_text
from phi3v_data.errors import NotFoundError, Reject, UserError
from phi3v_data.sources.source import Source, SourceFile
from phi3v_data.sources.tables import RowLocation

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JsonLine:
    """A line of a JSONL file; `problem` is the reason for an empty `value`."""

    number: int  # from 1
    size: int  # bytes
    value: Mapping[str, Any]
    problem: str = ""


def read_json_lines(file: SourceFile) -> Iterator[JsonLine]:
    """Yield the lines that are not blank; a line that is not a JSON object has a `problem`.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open_utf8(file.file) as stream:
            lines = _Counted(stream)
            with jsonlines.Reader(lines) as reader:
                while True:
                    yield _read_line(reader, lines)
    except EOFError:
        return
    except OSError as error:
        raise UserError(f"cannot read '{file.where}': {error.strerror}") from error


NOT_UTF8 = "is not UTF-8; save the file again as UTF-8"
"""The problem of a line of a table or annotation file in another encoding."""


class _Counted:
    """Lines, with the number and size of the last one, which `jsonlines` does not report for valid lines."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = lines
        self.number = self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        for line in self._lines:
            self.number += 1
            self.size = len(line)
            yield line


def _read_line(reader: jsonlines.Reader, lines: _Counted) -> JsonLine:
    value: Mapping[str, Any] = {}
    problem = ""
    try:
        value = reader.read(type=dict, skip_empty=True)
    except jsonlines.InvalidLineError as error:
        why = error.__cause__
        problem = NOT_UTF8 if isinstance(why, UnicodeDecodeError) else "is not JSON"
        if why is None:
            problem = "is not a JSON object"
    except RecursionError:
        problem = "is not JSON"
    return JsonLine(lines.number, lines.size, value, problem)


def read_json(file: SourceFile) -> Any:
    """Read one JSON document.

    Raises:
        UserError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(read_text(file.file))
    except OSError as error:
        raise UserError(f"cannot read '{file.where}': {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"'{file.where}' is not JSON: {error.msg} in line {error.lineno}; download it again") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{file.where}' is not JSON in UTF-8; download it again") from error


def yes_or_no(value: Any) -> str:
    """`Yes`, `No`, or empty if there is no label (-1 in some mirrors).

    Raises:
        Reject: `row-invalid`: the label is something else.
    """
    word = "" if is_absent(value) else str(value).strip().lower()
    if word in ("1", "true", "yes", "1.0"):
        return "Yes"
    if word in ("0", "false", "no", "0.0"):
        return "No"
    if word in ("", "-1", "-1.0", "none", "null"):
        return ""
    raise Reject("row-invalid", "the label is neither yes nor no (1 or 0, True or False)")


def embedded_image(value: Any, what: str, place: RowLocation | None = None) -> DraftImage:
    """Read an image field: its encoded bytes, or the file of its path relative to the table.

    Args:
        place: location of the row.

    Raises:
        Reject: `image-missing`, `image-path-unsafe`, `image-unreadable`.
    """
    folder = place.folder if place is not None else None
    image, _ = cell_image(value, what, () if folder is None else (folder,))
    return DraftImage(image.content)


def images_digest(values: Iterable[Any]) -> str:
    """Digest of the content of several images: equal for rows with the same images in the same order.

    An image with only a path is identified by the path.
    """
    hasher = xxhash.xxh3_128()
    for value in values:
        data = value.get("bytes") or value.get("path") if isinstance(value, Mapping) else value
        content = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
        content = content if isinstance(content, bytes) else b""
        hasher.update(len(content).to_bytes(8, "little"))
        hasher.update(content)
    return hasher.hexdigest()


def table_splits(source: Source, config: str = "", *, default: str = "") -> dict[str, str]:
    """Map each split of one configuration to its full name in a source with rows.

    Args:
        config: folder of the configuration; required if there are several.
        default: used if there are several and none was given.

    Raises:
        UserError: the configuration does not exist, or there are several and none was given.
    """
    by_config: dict[str, dict[str, str]] = {}
    for name in source.split_names():
        folder, _, split = name.rpartition("/")
        by_config.setdefault(folder, {})[split] = name
    if len(by_config) == 1:
        return next(iter(by_config.values()))
    short = {folder.rpartition("/")[2].lower(): folder for folder in by_config}
    folder = short.get((config or default).lower(), "")
    if not folder:
        names = ", ".join(sorted(folder.rpartition("/")[2] for folder in by_config))
        if config:
            raise NotFoundError(f"'{source.spec}' has no configuration '{config}'; it has {names}")
        raise UserError(f"'{source.spec}' contains several configurations; choose one with --config: {names}")
    return by_config[folder]


def check_columns(source: Source, split: str, wanted: Sequence[Sequence[str]], what: str) -> None:
    """Reject a table without a required field; `wanted` lists the possible names of each field.

    Raises:
        UserError: naming the field and the existing columns.
    """
    columns = source.columns(split)
    for names in wanted:
        if not any(name in columns for name in names):
            raise UserError(
                f"'{source.spec}' is not {what}: split '{split}' has no column {' or '.join(map(repr, names))}; "
                f"it has {', '.join(columns)}"
            )


def once_a_source(function: Callable[..., T]) -> Callable[..., T]:
    """Cache the result of `function(source, *args)`, so that `plan` and `describe` share it."""
    memory: WeakKeyDictionary[Source, dict[tuple[Any, ...], T]] = WeakKeyDictionary()

    @wraps(function)
    def remembering(source: Source, *args: Any) -> T:
        found = memory.setdefault(source, {})
        if args not in found:
            found[args] = function(source, *args)
        return found[args]

    return remembering
