"""All rows of a directory as columns of numbers, for checks across rows, with less than 100 bytes per row.

Texts are stored as 64-bit hashes of this process; rows with equal hashes are read again and compared.
"""

import os
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phi3v_data.jsonl import read_line_at
from phi3v_data.validate.badrow import image_fields, load_row

Ints = npt.NDArray[np.int64]
Column = npt.NDArray[Any]

_COLUMNS = {
    "lines": "I",
    "offsets": "q",
    "ids": "q",  # hash of the id
    "texts": "q",  # hash of system, questions and answers
    "groups": "q",  # hash of the group, 0 for none
    "units": "i",  # text tokens, or bytes of text if they are estimated
    "num_turns": "i",
    "num_uses": "i",  # images
    "uses": "i",  # index into the image tree of each image of each row, -1 if it does not exist
}
"""Type codes of `array`: it grows in place, where joining arrays would take the memory twice."""

_ROWS_AT_ONCE = 1 << 16


class RowTable:
    """Columns over the rows of all files, in order; filled batch by batch, then `finish`ed."""

    lines: Column
    offsets: Column
    ids: Column
    texts: Column
    groups: Column
    units: Column
    num_turns: Column
    num_uses: Column
    uses: Column

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files: list[str] = []
        self.file_splits: list[int] = []  # index into `splits`, per file
        self.splits: list[str] = []
        self._first_rows: list[int] = []
        self._columns = {name: array(code) for name, code in _COLUMNS.items()}
        self._num_rows = 0
        self._descriptors: dict[int, int] = {}
        self._starts: Ints | None = None

    def __len__(self) -> int:
        return self._num_rows

    def begin_file(self, file: str, split: str) -> None:
        """Start a file: the rows that follow come from it."""
        if split not in self.splits:
            self.splits.append(split)
        self.files.append(file)
        self.file_splits.append(self.splits.index(split))
        self._first_rows.append(self._num_rows)

    def append(self, **columns: Column) -> None:
        """Add a batch: all columns, of equal length except `uses`; `groups` is omitted if no row has one."""
        if "groups" in columns:
            missing = self._num_rows - len(self._columns["groups"])
            self._columns["groups"].frombytes(bytes(8 * missing))
        for name, values in columns.items():
            self._columns[name].frombytes(values.astype(_COLUMNS[name], copy=False).tobytes())
        self._num_rows += len(columns["ids"])

    def extend(self, other: "RowTable", line_offset: int) -> None:
        """Add the rows of a part of the current file, with lines counted from the start of that part."""
        columns = {name: np.frombuffer(column, _COLUMNS[name]) for name, column in other._columns.items()}
        columns["lines"] = columns["lines"] + np.uint32(line_offset)
        groups = columns.pop("groups")
        if len(groups):
            columns["groups"] = np.concatenate((groups, np.zeros(len(other) - len(groups), "q")))
        self.append(**columns)

    def finish(self) -> None:
        """Convert the columns to arrays; after that, nothing can be appended."""
        for name, code in _COLUMNS.items():
            setattr(self, name, np.frombuffer(self._columns[name], code))
        if not len(self.groups):
            self.groups = np.zeros(self._num_rows, "q")
        elif len(self.groups) < self._num_rows:
            self.groups = np.concatenate((self.groups, np.zeros(self._num_rows - len(self.groups), "q")))

    def subset(self, keep: npt.NDArray[np.bool_]) -> "RowTable":
        """A finished table of the selected rows, over the same files."""
        result = RowTable(self.directory)
        result.files, result.file_splits, result.splits = self.files, self.file_splits, self.splits
        before = np.concatenate(([0], np.cumsum(keep)))
        result._first_rows = [int(before[first]) for first in self._first_rows]
        result._num_rows = int(before[-1])
        for name in _COLUMNS:
            column = getattr(self, name)
            setattr(result, name, column[np.repeat(keep, self.num_uses)] if name == "uses" else column[keep])
        return result

    @property
    def starts(self) -> Ints:
        """Start of each row's images in `uses`; one more entry than rows."""
        if self._starts is None:
            self._starts = np.concatenate(([0], np.cumsum(self.num_uses, dtype=np.int64)))
        return self._starts

    def sum_uses(self, value: Callable[[Column, Ints], Ints]) -> Ints:
        """Sum of `value(uses, position in the row)` over each row's images, computed in chunks to save memory."""
        sums = np.zeros(self._num_rows, np.int64)
        starts = self.starts
        for first in range(0, self._num_rows, _ROWS_AT_ONCE):
            end = min(first + _ROWS_AT_ONCE, self._num_rows)
            bounds = starts[first : end + 1]
            uses = self.uses[bounds[0] : bounds[-1]]
            position = np.arange(len(uses)) - np.repeat(bounds[:-1] - bounds[0], np.diff(bounds))
            total = np.concatenate(([0], np.cumsum(value(uses, position))))
            sums[first:end] = total[bounds[1:] - bounds[0]] - total[bounds[:-1] - bounds[0]]
        return sums

    def row_of_use(self, use: int) -> int:
        """The row that a position in `uses` belongs to."""
        return int(np.searchsorted(self.starts, use, side="right")) - 1

    def split_rows(self) -> Iterator[tuple[int, int, int]]:
        """(split index, first row, end row) of each file."""
        ends = [*self._first_rows, self._num_rows][1:]
        yield from zip(self.file_splits, self._first_rows, ends, strict=True)

    def split_of_rows(self) -> npt.NDArray[np.int16]:
        """Index of the split of every row."""
        result = np.zeros(self._num_rows, np.int16)
        for split, first, end in self.split_rows():
            result[first:end] = split
        return result

    def split_of_row(self, row: int) -> int:
        """Index of the split of one row."""
        return self.file_splits[bisect_right(self._first_rows, row) - 1]

    def file_of(self, row: int) -> str:
        """The file of a row."""
        return self.files[bisect_right(self._first_rows, row) - 1]

    def load(self, row: int) -> dict[str, Any]:
        """Read the row from its file."""
        number = bisect_right(self._first_rows, row) - 1
        if number not in self._descriptors:
            self._descriptors[number] = os.open(self.directory / self.files[number], os.O_RDONLY | os.O_CLOEXEC)
            if len(self._descriptors) > 64:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
        return load_row(read_line_at(self._descriptors[number], int(self.offsets[row])))

    def place(self, row: int, value: dict[str, Any] | None = None) -> dict[str, Any]:
        """File, line and id of a row, as arguments of `Findings.add`; `value` is the row if already loaded."""
        row_id = (self.load(row) if value is None else value).get("id")
        return {
            "file": self.file_of(row),
            "line": int(self.lines[row]),
            "id": row_id if isinstance(row_id, str) else None,
        }

    def name(self, row: int) -> str:
        """The name of a row in messages: `train.jsonl:41`."""
        return f"{self.file_of(row)}:{self.lines[row]}"

    def image_field(self, row: int, position: int, value: dict[str, Any]) -> str | None:
        """The field of the image at `position` among all images of a row."""
        fields = [field for field, _ in image_fields(value)]
        return fields[position] if position < len(fields) else None

    def close(self) -> None:
        """Close the files that `load` opened."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
