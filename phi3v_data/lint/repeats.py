"""Equal ids and equal samples of a file, found by hashes; 20 bytes are kept per row."""

from array import array
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from phi3v_data.schema import Severity
from phi3v_data.validate.findings import Findings
from phi3v_data.validate.hashes import hash_texts
from phi3v_data.validate.repeats import equal_groups

Ints = npt.NDArray[np.int64]

NONE = int(hash_texts(["\0"])[0])
"""Hash of nothing; no id and no row is a NUL."""


class Repeats:
    """Ids and contents of all rows; `report` names the rows that repeat an earlier one."""

    def __init__(self) -> None:
        self._ids = array("q")
        self._contents = array("q")
        self._lines = array("I")

    def add(self, lines: Ints, ids: Ints, contents: Ints) -> None:
        """Add rows: hashes of their ids and of their contents, `NONE` for rows without."""
        self._ids.frombytes(ids.tobytes())
        self._contents.frombytes(contents.tobytes())
        self._lines.frombytes(lines.astype(np.uint32).tobytes())

    def report(self, file: str, findings: Findings) -> None:
        """Report rows with the content or the id of an earlier row."""
        for kind, hashes in ((_CONTENT, self._contents), (_ID, self._ids)):
            self._report(kind, np.array(hashes, np.int64), file, findings)

    def _report(self, kind: "_Kind", hashes: Ints, file: str, findings: Findings) -> None:
        for rows in equal_groups(hashes):
            if hashes[rows[0]] == NONE:
                continue
            message = f"{kind.words} line {self._lines[rows[0]]}"
            for row in findings.up_to_limit(kind.code, rows[1:].tolist(), severity=kind.severity):
                findings.add(
                    kind.code,
                    message,
                    file=file,
                    line=self._lines[row],
                    field=kind.field,
                    hint=kind.hint,
                    severity=kind.severity,
                )


class _Kind(NamedTuple):
    code: str
    severity: Severity
    field: str | None
    words: str
    hint: str


_CONTENT = _Kind(
    "duplicate-sample",
    "warning",
    None,
    "the row has the same messages and images as that of",
    "drop one of them: it counts twice in training",
)
_ID = _Kind("duplicate-id", "info", "id", "the id is also that of", "trainers ignore ids; an import gives new ones")
