"""Reads the lines of a split's files where the index says they are, one or many at a time."""

import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

from phi3v_data.errors import UserError
from phi3v_data.files import unreadable
from phi3v_data.line_index import FileState, LineIndex, state_content

_MAX_OPEN_FILES = 64
"""Most shards of a split that are kept open; with more, each read opens its file again."""

_CHUNK = 1 << 18
"""Bytes of consecutive rows that are read at once."""


class LineReader:
    """The rows of a split as bytes, without line end and byte order mark."""

    def __init__(self, directory: Path, index: LineIndex) -> None:
        self._directory = directory
        self._index = index
        self._descriptors = _Descriptors(directory, index.files)

    def read(self, file: int, start: int, size: int) -> bytes:
        """Up to `size` bytes of a file from `start`.

        Raises:
            UserError: the file cannot be read, or was changed since it was indexed.
        """
        return self._descriptors.read(file, start, size)

    def line(self, row: int) -> bytes:
        """A row. Raises as `read`."""
        file, start, end = self._index.locate(row)
        before = min(start, 1)
        return self._line(self.read(file, start - before, end - start + before), file, start - before, start, end)

    def lines(self, rows: range) -> Iterator[bytes]:
        """Yield rows; consecutive ones are read together. Raises as `read`."""
        if rows.step != 1:
            yield from map(self.line, rows)
            return
        at = rows.start
        while at < rows.stop:
            file, first, end = self._index.locate(at)
            spans = [(first, end)]
            at += 1
            while at < rows.stop and end - first < _CHUNK:
                next_file, start, end = self._index.locate(at)
                if next_file != file:
                    break
                spans.append((start, end))
                at += 1
            offset = first - min(first, 1)
            text = self.read(file, offset, spans[-1][1] - offset)
            for start, end in spans:
                yield self._line(text, file, offset, start, end)

    def _line(self, text: bytes, file: int, offset: int, start: int, end: int) -> bytes:
        """The row from `start` to `end` of a file out of its text from `offset` on, if it is a row still."""
        line = text[start - offset : end - offset]
        state = self._index.files[file]
        at_start = start == 0 or text[start - offset - 1 : start - offset] == b"\n" or start == 3
        if len(line) != end - start or not at_start or (end < state.size and line[-1:] != b"\n"):
            raise changed(self._directory / state.name)
        newline = line.find(b"\n")
        return (line if newline < 0 else line[:newline]).removesuffix(b"\r")


def changed(path: Path) -> UserError:
    """The error for a file that is not the one that was opened."""
    return UserError(f"{path}: changed since it was opened; open the directory again")


class _Descriptors:
    """File descriptors of a split's files, opened on first use. `pread` has no shared position, so forks are safe.

    A file that was changed or replaced is rejected, even if the old one is still open, so that all processes see the
    same rows or none.
    """

    def __init__(self, directory: Path, states: Sequence[FileState]) -> None:
        self._paths = [directory / state.name for state in states]
        self._states = states
        self._open: dict[int, int] = {}
        weakref.finalize(self, _close_all, self._open)

    def read(self, file: int, start: int, size: int) -> bytes:
        """Up to `size` bytes of a file from `start`."""
        path, state = self._paths[file], self._states[file]
        try:
            descriptor = self._open.get(file)
            if descriptor is not None:
                if state_content(os.stat(path)) != state.content:
                    raise changed(path)
                return _pread(descriptor, start, size)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if state_content(os.fstat(descriptor)) != state.content:
                os.close(descriptor)
                raise changed(path)
            if len(self._paths) <= _MAX_OPEN_FILES and self._open.setdefault(file, descriptor) == descriptor:
                return _pread(descriptor, start, size)
            try:
                return _pread(descriptor, start, size)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise unreadable(path, error) from None


def _pread(descriptor: int, start: int, size: int) -> bytes:
    """`os.pread` that continues after a short read (Linux returns at most 2 GiB at a time)."""
    piece = os.pread(descriptor, size, start)
    while 0 < len(piece) < size:
        more = os.pread(descriptor, size - len(piece), start + len(piece))
        if not more:
            break
        piece += more
    return piece


def _close_all(descriptors: dict[int, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
