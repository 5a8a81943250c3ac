"""What the converters of annotated pictures share: JSON out of source files, fields out of rows, splits out of tables.

No message made here holds a sample's text: it may be private or hateful, and rejects and errors are shared around.
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
from phi3v_data.sources.tables import RowPlace

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JsonLine:
    """A line of a JSONL file; `problem` says why `value` is empty."""

    number: int  # from 1
    size: int  # bytes
    value: Mapping[str, Any]
    problem: str = ""


def read_json_lines(file: SourceFile) -> Iterator[JsonLine]:
    """The lines that are not blank, one at a time; one that is no JSON object is told, not passed over.

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
        raise UserError(f"cannot read '{file.path}': {error.strerror}") from error


NOT_UTF8 = "is not UTF-8; save the file again as UTF-8"
"""What is wrong with a line of a table or of annotations in another encoding."""


class _Counted:
    """Lines, and the number and size of the last one: `jsonlines` tells neither of a sound line."""

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
    """One JSON document.

    Raises:
        UserError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(read_text(file.file))
    except OSError as error:
        raise UserError(f"cannot read '{file.path}': {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"'{file.path}' is not JSON: {error.msg} in line {error.lineno}; download it again") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{file.path}' is not JSON in UTF-8; download it again") from error


def yes_or_no(value: Any) -> str:
    """`Yes`, `No`, or empty where there is no label (-1 in some mirrors).

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


def embedded_picture(value: Any, what: str, place: RowPlace | None = None) -> DraftImage:
    """An image field: its encoded bytes, or, where it holds only a path, the file of that path beside the table.

    Args:
        place: where the field's row lies.

    Raises:
        Reject: `image-missing`, `image-path-unsafe`, `image-unreadable`.
    """
    folder = place.folder if place is not None else None
    image, _ = cell_image(value, what, () if folder is None else (folder,))
    return DraftImage(image.content)


def pictures_digest(values: Iterable[Any]) -> str:
    """Names a set of pictures by content: rows with the same pictures in the same order get the same name.

    A picture of which only the path is there counts by its path.
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
    """Split -> its full name in a source with rows, out of one configuration.

    Args:
        config: folder of the configuration; needed where there are several.
        default: taken where there are several and none was named.

    Raises:
        UserError: there is no such configuration, or several and none was named.
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
        raise UserError(f"'{source.spec}' holds several configurations; choose one with --config: {names}")
    return by_config[folder]


def check_columns(source: Source, split: str, wanted: Sequence[Sequence[str]], what: str) -> None:
    """Refuse a table that lacks a field; `wanted` lists the names that each field may have.

    Raises:
        UserError: names the field and the columns that are there.
    """
    columns = source.columns(split)
    for names in wanted:
        if not any(name in columns for name in names):
            raise UserError(
                f"'{source.spec}' is no {what}: split '{split}' has no column {' or '.join(map(repr, names))}; "
                f"it has {', '.join(columns)}"
            )


def once_a_source(function: Callable[..., T]) -> Callable[..., T]:
    """Remember what `function(source, *args)` found, so that `plan` and `describe` look only once."""
    memory: WeakKeyDictionary[Source, dict[tuple[Any, ...], T]] = WeakKeyDictionary()

    @wraps(function)
    def remembering(source: Source, *args: Any) -> T:
        found = memory.setdefault(source, {})
        if args not in found:
            found[args] = function(source, *args)
        return found[args]

    return remembering
