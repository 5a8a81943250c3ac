"""Rows of a file of another tool: JSON Lines, a JSON array, gzip of both, parquet.

    for row in read_rows(path):
        row.place      # where it is: any process can read it again with `place.read()`
        row.value      # the object, None if it cannot be read
        row.faults     # what is wrong with its text

Memory is bounded by the longest row and a few megabytes; a row over 64 MB is not read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias

import msgspec

from phi3v_data.encodings import HEAD_BYTES, encoding_of, file_encoding, open_utf8
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.files import unreadable
from phi3v_data.formats.json_array import ArrayReader
from phi3v_data.formats.line_blocks import line_blocks
from phi3v_data.formats.row_block import RowBlock, read_row
from phi3v_data.json_text import BLANK, JsonFault
from phi3v_data.jsonl import BOM
from phi3v_data.messages import shown
from phi3v_data.sources.reads import state_of
from phi3v_data.sources.tables import RowLocation, open_tables

VALUES_BYTES = 1 << 18
"""Of rows whose values are wanted: these stay in the processor's cache."""

Layout: TypeAlias = Literal["lines", "array", "parquet"]

_LOOK_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 21
_AHEAD_BYTES = 1 << 17


class RowPlace(NamedTuple):
    """Place of a row in a JSON file; picklable. `offset` and `length` are bytes of the decompressed text."""

    file: str
    line: int
    offset: int
    length: int
    name: str = "line"  # of its text in messages: `row` in an array

    def read(self) -> tuple[Any, list[JsonFault]]:
        """Read the row again: its value (None if it has none) and the faults of its text. In order, it is fast.

        Raises:
            UserError: the file is gone, unreadable or shorter.
        """
        value, faults = read_row(self.text(_reader(self.file, state_of(self.file))), self.name)
        return (value[0] if value else None), faults

    def text(self, reader: "RowReader") -> bytes:
        """The bytes of the row, from a reader of its file. Raises as `read`."""
        return reader.read(self.offset, self.length)


class FileRow(NamedTuple):
    """One row. `line` is its line, or its number from 1 on in a parquet file.

    If `place` is None, there is no row, only what is wrong with the text between rows.
    """

    line: int
    place: RowPlace | RowLocation | None
    value: Any
    faults: list[JsonFault]


@dataclass(frozen=True, slots=True)
class RowFile:
    """A file of rows whose layout is known."""

    path: Path
    layout: Layout

    def blocks(self, size: int = _BLOCK_BYTES) -> Iterator[RowBlock]:
        """Yield the rows of a JSON file as bytes, about `size` bytes at a time.

        Raises:
            UserError: the file cannot be read, or is a damaged gzip file.
        """
        try:
            with open_utf8(self.path) as file:
                if self.layout == "array":
                    yield from ArrayReader(file, size).blocks()
                else:
                    yield from line_blocks(file, size)
        except OSError as error:
            raise unreadable(self.path, error) from None

    def rows(self) -> Iterator[FileRow]:
        """Yield the rows in order.

        Raises:
            UserError: as `blocks`; a parquet file is damaged, or pyarrow is not installed.
        """
        if self.layout == "parquet":
            yield from self._table_rows()
            return
        path = str(self.path)
        for block in self.blocks(VALUES_BYTES):
            for line, fault in block.faults:
                yield FileRow(line, None, None, [fault])
            places = zip(block.starts.tolist(), block.ends.tolist(), block.lines.tolist(), strict=True)
            offset, name = block.offset, block.name
            for (start, end, line), (value, faults) in zip(places, block.values(), strict=True):
                place = RowPlace(path, line, offset + start, end - start, name)
                yield FileRow(line, place, value[0] if value else None, faults)

    def _table_rows(self) -> Iterator[FileRow]:
        tables = open_tables("parquet", self.path)
        for split in tables.names():
            for number, (place, value) in enumerate(zip(tables.places(split), tables.rows(split), strict=True), 1):
                yield FileRow(number, place, value, [])


def read_rows(path: str | Path) -> Iterator[FileRow]:
    """Yield the rows of a file. Raises as `open_rows` and `RowFile.rows`."""
    return open_rows(path).rows()


def open_rows(path: str | Path) -> RowFile:
    """Find out how a file holds its rows.

    Raises:
        NotFoundError: there is no such file.
        UserError: it cannot be read, or its content is none of JSON Lines, a JSON array and parquet.
    """
    path = Path(path)
    if not path.exists():
        raise NotFoundError(f"'{path}' does not exist")
    try:
        kind = file_encoding(path)
        if kind == "parquet":
            return RowFile(path, "parquet")
        _check_kind(path, kind)
        with open_utf8(path) as file:
            head = file.read(_LOOK_BYTES)
        inner = encoding_of(head[:HEAD_BYTES])
        _check_kind(path, "" if kind == "gzip" and inner == "gzip" else inner)
    except OSError as error:
        raise unreadable(path, error) from None
    return RowFile(path, _layout(path, head))


def _check_kind(path: Path, kind: str) -> None:
    if kind not in ("", "gzip"):
        what = "save it again as UTF-8" if kind.startswith("UTF") else "unpack it"
        raise UserError(f"'{path}' is {kind}, not JSON Lines, a JSON array, gzip of these, or parquet: {what}")


def _layout(path: Path, head: bytes) -> Layout:
    """Whether a file that begins with `head` is lines or an array."""
    text = head.removeprefix(BOM).lstrip(BLANK.encode())
    if not text:
        raise UserError(f"'{path}' is empty: it has no rows" if len(head) < _LOOK_BYTES else f"'{path}' is blank")
    first, _, rest = text.partition(b"\n")
    rest = rest.lstrip(BLANK.encode())
    if text[:1] == b"[":
        is_packed = bool(rest) and _is_complete(first) and rest[:1] in (b"[", b"{")
        return "lines" if is_packed else "array"
    if text[:1] == b"{":
        if rest[:1] not in (b"{", b"", b"[") and not _is_complete(first):
            raise UserError(
                f"'{path}' begins with a JSON object over several lines, not rows: put the rows into an array, or "
                "write one object per line"
            )
        return "lines"
    if rest[:1] == b"{" and _is_complete(first):
        return "lines"  # the first of which is not a row
    hint = "; a CSV table has to be converted first" if path.suffix.lower() in (".csv", ".tsv") else ""
    if path.suffix.lower() == ".tar":
        hint = "; shards of WebDataset are validated by their folder"
    raise UserError(
        f"'{path}' is not JSON Lines, a JSON array, gzip of these, or parquet: it begins with "
        f"{shown(text[:20].decode(errors='replace'))}{hint}"
    )


def _is_complete(text: bytes) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


class RowReader:
    """Reads parts of one file, forwards; a gzip file is read again from its start to go back."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._file: BinaryIO | None = None
        self._at = 0
        self._ahead, self._ahead_at = b"", 0  # text that was read last, and its offset

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at an offset.

        Raises:
            UserError: the file is unreadable, or shorter.
        """
        start = offset - self._ahead_at
        if start < 0 or start + length > len(self._ahead):
            kept = self._ahead[start:] if start >= 0 else b""
            more = self._read(offset + len(kept), max(length - len(kept), _AHEAD_BYTES))
            self._ahead, self._ahead_at, start = kept + more, offset, 0
        data = self._ahead[start : start + length]
        if len(data) < length:
            raise UserError(f"'{self._path}' is shorter than it was: it changed while it was read")
        return data

    def _read(self, offset: int, length: int) -> bytes:
        """The bytes at an offset, fewer at the end of the file."""
        try:
            if self._file is None:
                self._file, self._at = open_utf8(self._path), 0
            if self._file.seekable():
                self._file.seek(offset)
                self._at = offset
            elif offset < self._at:
                self._file.close()
                self._file, self._at = open_utf8(self._path), 0
            while self._at < offset:
                skipped = len(self._file.read(min(offset - self._at, _LOOK_BYTES)))
                if not skipped:
                    break
                self._at += skipped
            data = self._file.read(length)
        except OSError as error:
            raise unreadable(self._path, error) from None
        self._at += len(data)
        return data


@lru_cache(maxsize=4)
def _reader(path: str, state: str | None) -> RowReader:
    """Cached reader; `state` distinguishes the contents of a file before and after it was replaced."""
    return RowReader(path)
