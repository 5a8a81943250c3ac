"""Index of the row offsets of a split: built in one pass, stored in `DIR/.phi3v/index/`, memory-mapped when opened.

The file of a split (`phi3v_data.columns`): a header (name, state and number of rows of each JSONL file), then for each
file its rows' byte offsets and its size. A row is a line that is not blank; a byte order mark is not part of a row. An
index is used only if size, times and inode of every file are unchanged and its checksum is correct; it is written
atomically, so several processes may build it at once.
"""

import os
import warnings
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from phi3v_data.columns import DamagedFileError, read_columns, write_columns
from phi3v_data.errors import OwnWarning, UserError
from phi3v_data.files import hidden_path, open_regular, unreadable
from phi3v_data.jsonl import BOM

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLANK = b" \t\r\n\v\f"
"""Bytes that a blank line can contain."""

_MAGIC = b"phi3vix2"
_LIMIT = 1 << 20  # bytes of an index on top of 8 for each byte of the files
_CHUNK = 1 << 24
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class FileState:
    """State of one JSONL file: another value means other content."""

    name: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, directory: Path, name: str) -> "FileState":
        """Read the state of the file.

        Raises:
            UserError: it does not exist or cannot be accessed.
        """
        try:
            status = os.stat(directory / name)
        except OSError as error:
            raise unreadable(directory / name, error) from None
        return cls(name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    @property
    def content(self) -> tuple[int, int, int]:
        """The part that differs if the file has other content or was replaced; permissions and links are ignored."""
        return self.size, self.mtime_ns, self.inode


def state_content(status: os.stat_result) -> tuple[int, int, int]:
    """`FileState.content` of a file as it is now."""
    return status.st_size, status.st_mtime_ns, status.st_ino


class LineIndex:
    """Offsets of all rows of a split. `cached`: whether they are in a file, or in the memory of this process."""

    def __init__(
        self, files: Sequence[FileState], rows: Sequence[int], offsets: "memoryview[int]", cached: bool
    ) -> None:
        self.files = tuple(files)
        self.cached = cached
        self._offsets = offsets
        self._first_row = [0]  # of each file, in the split
        self._first_offset = [0]  # of each file, in `_offsets`
        for count in rows:
            self._first_row.append(self._first_row[-1] + count)
            self._first_offset.append(self._first_offset[-1] + count + 1)

    def __len__(self) -> int:
        return self._first_row[-1]

    def locate(self, row: int) -> tuple[int, int, int]:
        """File number, first byte of the row and first byte of the next row (or the file's size)."""
        file = bisect_right(self._first_row, row) - 1
        slot = self._first_offset[file] + row - self._first_row[file]
        return file, self._offsets[slot], self._offsets[slot + 1]

    def row_bytes(self) -> "NDArray[np.int64]":
        """Bytes of each row with its line end, and of blank lines behind it."""
        import numpy as np

        sizes = np.diff(np.asarray(self._offsets).astype(np.int64))
        between = [first - 1 for first in self._first_offset[1:-1]]  # from the end of a file to the start of the next
        return np.delete(sizes, between)


def open_index(directory: Path, split: str, files: Sequence[str]) -> LineIndex:
    """Open the index of a split: load it if it is up to date, else build it and save it if DIR is writable.

    Raises:
        UserError: a file is missing, unreadable, or changes while it is read.
    """
    path = hidden_path(directory, "index", f"{quote(split, safe='', errors='surrogateescape')}.idx")
    states = [FileState.of(directory, name) for name in files]
    index = _load(path, states) if path else None
    if index is not None:
        return index
    for _ in range(_ATTEMPTS):
        built = [_scan(directory / name) for name in files]
        after = [FileState.of(directory, name) for name in files]
        if after == states:
            break
        states = after
    else:
        raise UserError(f"{directory}: the files of split {split!r} change while they are read; wait for their writer")
    rows = [len(offsets) - 1 for offsets in built]
    if path and _save(path, states, built):
        index = _load(path, states)
        if index is not None:
            return index
    joined = array("Q")
    for offsets in built:
        joined.extend(offsets)
    return LineIndex(states, rows, memoryview(joined), cached=False)


def _load(path: Path, states: Sequence[FileState]) -> LineIndex | None:
    """Map the saved index; None if there is none, it is out of date, or damaged."""
    limit = _LIMIT + 8 * sum(state.size + 1 for state in states)
    try:
        stored = read_columns(path, _MAGIC, limit)
    except DamagedFileError as error:
        warnings.warn(f"{error}; it is rebuilt", OwnWarning, stacklevel=2)
        return None
    if stored is None:
        return None
    entries, body = stored
    try:
        saved = [FileState(*entry[:5]) for entry in entries]
        rows = [int(entry[5]) for entry in entries]
    except (ValueError, TypeError, IndexError):
        return None
    if saved != list(states) or min(rows, default=0) < 0 or len(body) != 8 * sum(count + 1 for count in rows):
        return None
    return LineIndex(states, rows, body.cast("Q"), cached=True)


def _save(path: Path, states: Sequence[FileState], built: Sequence["array[int]"]) -> bool:
    """Write the index atomically; False if DIR is not writable (read-only, full, a name too long)."""
    entries = [
        [state.name, state.size, state.mtime_ns, state.ctime_ns, state.inode, len(offsets) - 1]
        for state, offsets in zip(states, built, strict=True)
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_columns(path, _MAGIC, entries, built)
    except OSError:
        return False
    return True


def _scan(path: Path) -> "array[int]":
    """Byte offsets of the rows of one file, then its size."""
    import numpy as np

    parts = []
    position = 0
    after_newline = True
    suspects: list[int] = []
    try:
        with open_regular(path, buffering=0) as file:
            while chunk := file.read(_CHUNK):
                data = np.frombuffer(chunk, np.uint8)
                starts = np.flatnonzero(data == 10) + 1
                if after_newline:
                    starts = np.concatenate([np.zeros(1, starts.dtype), starts])
                after_newline = chunk[-1] == 10
                starts = starts[: len(starts) - after_newline]
                suspects += (starts[np.isin(data[starts], np.frombuffer(BLANK, np.uint8))] + position).tolist()
                parts.append(starts.astype(np.uint64) + np.uint64(position))
                position += len(chunk)
            offsets = np.concatenate(parts) if parts else np.zeros(0, np.uint64)
            if position and os.pread(file.fileno(), 3, 0) == BOM:
                offsets[0] = 3
                suspects.insert(0, 3)
            blank = [start for start in suspects if _is_blank(file.fileno(), start)]
    except OSError as error:
        raise unreadable(path, error) from None
    if blank:
        offsets = offsets[~np.isin(offsets, np.array(blank, np.uint64))]
    result = array("Q")
    result.frombytes(offsets.astype(np.uint64).tobytes())
    result.append(position)
    return result


def _is_blank(descriptor: int, start: int) -> bool:
    """Whether there is only white space between `start` and the end of the line."""
    while piece := os.pread(descriptor, 4096, start):
        line, newline, _ = piece.partition(b"\n")
        if line.strip(BLANK):
            return False
        if newline:
            return True
        start += len(piece)
    return True
