"""One pass over the rows of a file: findings of each, what it repeats, the images that it uses."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from phi3v_data.formats.row_block import RowBlock
from phi3v_data.formats.rows import RowFile
from phi3v_data.json_text import JsonFault
from phi3v_data.lint.images import Uses
from phi3v_data.lint.repeats import Repeats
from phi3v_data.lint.row_check import CheckedRow, RowCheck
from phi3v_data.validate.findings import Findings

Ints = npt.NDArray[np.int64]

_TABLE_ROWS = 256  # of a parquet file that are checked together


class FileScan:
    """Reads a file; `blocks` yields the images of its rows, and the counts are right when it is exhausted."""

    def __init__(self, rows: RowFile, check: RowCheck, findings: Findings) -> None:
        self.rows = rows
        self.check = check
        self.findings = findings
        self.repeats = Repeats()
        self.file = rows.path.name
        self.num_rows = 0
        self.num_turns = 0

    def blocks(self, observe: Callable[[int], None]) -> Iterator[Uses]:
        """Yield the images of block after block; `observe` is told how many bytes have been read."""
        if self.rows.layout == "parquet":
            yield from self._table()
            return
        for block in self.rows.blocks():
            for line, fault in block.faults:
                self._add_text_fault(line, fault)
            yield self._check_block(block)
            observe(block.offset + len(block.data))

    def _check_block(self, block: RowBlock) -> Uses:
        checked = [
            self.check.check(value[0] if value else None, line, faults)
            for line, (value, faults) in zip(block.lines.tolist(), block.values(), strict=True)
        ]
        return self._enter(checked, block.lines)

    def _table(self) -> Iterator[Uses]:
        checked: list[CheckedRow] = []
        lines: list[int] = []
        for row in self.rows.rows():
            checked.append(self.check.check(row.value, row.line, row.faults))
            lines.append(row.line)
            if len(lines) == _TABLE_ROWS:
                yield self._enter(checked, np.array(lines))
                checked, lines = [], []
        yield self._enter(checked, np.array(lines, np.int64))

    def _enter(self, checked: list[CheckedRow], lines: Ints) -> Uses:
        """Report rows, and note what they repeat and use."""
        refs: list[str | bytes] = []
        owners: list[tuple[int, str]] = []
        for number, row in enumerate(checked):
            for fault in row.faults:
                self.findings.add(
                    fault.code,
                    fault.message,
                    **self._place(int(lines[number]), row.id),
                    field=fault.field or None,
                    hint=fault.hint,
                    severity=fault.severity,
                )
            for image in row.images:
                refs.append(image.value)
                owners.append((number, image.field))
            self.num_turns += row.num_turns
        self.num_rows += len(checked)
        contents = np.array([_hash(row.content) for row in checked], np.int64)
        self.repeats.add(lines, [row.id for row in checked], contents, np.array([bool(row.content) for row in checked]))
        ids = [row.id for row in checked]

        def place(use: int) -> dict[str, object]:
            number, field = owners[use]
            return {**self._place(int(lines[number]), ids[number]), "field": field or None}

        return Uses(refs, place)

    def _place(self, line: int, row_id: str) -> dict[str, Any]:
        return {"file": self.file, "line": line, "id": row_id or None}

    def _add_text_fault(self, line: int, fault: JsonFault) -> None:
        self.findings.add(fault.code, fault.message, file=self.file, line=line, hint=fault.hint)


def _hash(content: bytes) -> int:
    return xxhash.xxh3_64_intdigest(content) - (1 << 63)


def images_folder(path: Path, images_root: Path | None) -> Path:
    """The folder that paths of images are relative to."""
    return path.parent if images_root is None else images_root
