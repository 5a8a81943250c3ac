"""All rows of a directory as columns of numbers: what the checks across rows need, below 100 bytes a row.

Texts are kept as 64-bit hashes of this process; whoever finds two equal ones reads both rows again and compares.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phi3v_data.jsonl import read_line_at
from phi3v_data.validate.badrow import image_fields, load_row

Ints = npt.NDArray[np.int64]
Column = npt.NDArray[Any]

_COLUMNS = {
    "lines": np.uint32,
    "offsets": np.int64,
    "ids": np.int64,  # hash of the id
    "texts": np.int64,  # hash of system, questions and answers
    "groups": np.int64,  # hash of the group, 0 for none
    "units": np.int32,  # text tokens, or bytes of text where they are estimated
    "num_turns": np.int32,
    "num_uses": np.int32,  # pictures
    "uses": np.int32,  # index into the image tree of each picture of each row, -1 where it is not there
}


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
        self._parts: dict[str, list[Column]] = {name: [] for name in _COLUMNS}
        self._num_rows = 0
        self._descriptors: dict[int, int] = {}
        self._starts: Ints | None = None

    def __len__(self) -> int:
        return self._num_rows

    def begin_file(self, file: str, split: str) -> None:
        """Rows that follow come from this file."""
        if split not in self.splits:
            self.splits.append(split)
        self.files.append(file)
        self.file_splits.append(self.splits.index(split))
        self._first_rows.append(self._num_rows)

    def append(self, **columns: Column) -> None:
        """Add a batch: all columns, equally long but for `uses`."""
        for name, values in columns.items():
            self._parts[name].append(values.astype(_COLUMNS[name], copy=False))
        self._num_rows += len(columns["ids"])

    def finish(self) -> None:
        """Join the batches; one column at a time, so that memory does not double."""
        for name, dtype in _COLUMNS.items():
            parts = self._parts.pop(name)
            setattr(self, name, np.concatenate(parts) if parts else np.empty(0, dtype))
            del parts

    @property
    def starts(self) -> Ints:
        """Where each row's pictures begin in `uses`; one more entry than rows."""
        if self._starts is None:
            self._starts = np.concatenate(([0], np.cumsum(self.num_uses, dtype=np.int64)))
        return self._starts

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
        """The file that a row stands in."""
        return self.files[bisect_right(self._first_rows, row) - 1]

    def load(self, row: int) -> dict[str, Any]:
        """The row as it stands in the file."""
        number = bisect_right(self._first_rows, row) - 1
        if number not in self._descriptors:
            self._descriptors[number] = os.open(self.directory / self.files[number], os.O_RDONLY | os.O_CLOEXEC)
            if len(self._descriptors) > 64:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
        return load_row(read_line_at(self._descriptors[number], int(self.offsets[row])))

    def place(self, row: int, value: dict[str, Any] | None = None) -> dict[str, Any]:
        """File, line and id of a row, as arguments of `Findings.add`; `value` is the row where it is at hand."""
        row_id = (self.load(row) if value is None else value).get("id")
        return {
            "file": self.file_of(row),
            "line": int(self.lines[row]),
            "id": row_id if isinstance(row_id, str) else None,
        }

    def name(self, row: int) -> str:
        """A row as a message names it: `train.jsonl:41`."""
        return f"{self.file_of(row)}:{self.lines[row]}"

    def image_field(self, row: int, position: int, value: dict[str, Any]) -> str | None:
        """The field of the picture at `position` among all of a row."""
        fields = [field for field, _ in image_fields(value)]
        return fields[position] if position < len(fields) else None

    def close(self) -> None:
        """Close the files that `load` opened."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
