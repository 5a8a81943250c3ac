"""Equal ids and equal samples of a file, found by hashes; 32 bytes are kept per row.

The hash of a row of text is one of a few words of it; rows with equal ones are read again and hashed wholly. From a
block on in which several rows have equal ones, rows are hashed wholly at once.
"""

from array import array
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from phi3v_data.lint.elements import element_field
from phi3v_data.schema import Severity
from phi3v_data.validate.findings import Findings
from phi3v_data.validate.hashes import hash_texts, sample_spans
from phi3v_data.validate.repeats import equal_groups

Ints = npt.NDArray[np.int64]

NONE = int(hash_texts(["\0"])[0])
"""Hash of nothing; no id and no row is a NUL."""


_FEW = 2  # equal hashes in a block by chance; were there more in each, many of a large file would be


class Repeats:
    """Ids and contents of all rows; `report` names the rows that repeat an earlier one.

    Args:
        read: the bytes of the file at an offset; not called if `content_hashes` is not.
    """

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        self._read = read
        self._samples = True
        self._num_sampled = 0  # of the first rows, only a few words have been hashed
        self._starts = array("q")
        self._lengths = array("I")
        self._ids = array("q")
        self._contents = array("q")
        self._lines = array("I")

    def add(self, lines: Ints, ids: Ints, contents: Ints, starts: Ints, lengths: Ints) -> None:
        """Add rows: hashes of their ids and of their contents, `NONE` for rows without; where contents are."""
        self._starts.frombytes(starts.view(np.uint8).data)
        self._lengths.frombytes(lengths.astype(np.uint32).view(np.uint8).data)
        self._ids.frombytes(ids.view(np.uint8).data)
        self._contents.frombytes(contents.view(np.uint8).data)
        self._lines.frombytes(lines.astype(np.uint32).view(np.uint8).data)

    def content_hashes(self, padded: bytes, starts: Ints, lengths: Ints) -> Ints:
        """Hashes for `add` of the contents of a block of text that ends in `PADDING`."""
        if self._samples:
            hashes = sample_spans(padded, starts, lengths)
            self._samples = len(_repeated(hashes)) < _FEW
            if self._samples:
                self._num_sampled += len(hashes)
                return hashes
        spans = map(slice, starts.tolist(), (starts + lengths).tolist())
        return _whole_hashes(map(memoryview(padded).__getitem__, spans), len(starts))

    def report(self, file: str, findings: Findings) -> None:
        """Report rows with the content or the id of an earlier row."""
        self._report(_CONTENT, self._whole(), file, findings)
        self._report(_ID, np.array(self._ids, np.int64), file, findings)

    def _whole(self) -> Ints:
        """Hashes of contents that are equal for equal contents only."""
        hashes = np.array(self._contents, np.int64)
        sampled = hashes[: self._num_sampled]
        again = sampled != NONE
        if self._samples:  # all rows are
            again &= _among(sampled, _repeated(sampled))
        rows = np.flatnonzero(again)
        texts = (self._read(self._starts[row], self._lengths[row]) for row in rows.tolist())
        hashes[rows] = _whole_hashes(texts, len(rows))
        return hashes

    def place(self, row: int) -> tuple[int, str | None]:
        """The line of a row, and its element if others are on that line."""
        line = self._lines[row]
        beside = self._lines[max(row - 1, 0) : row] + self._lines[row + 1 : row + 2]
        return line, element_field(row) if line in beside else None

    def _report(self, kind: "_Kind", hashes: Ints, file: str, findings: Findings) -> None:
        for rows in equal_groups(hashes):
            if hashes[rows[0]] == NONE:
                continue
            line, element = self.place(int(rows[0]))
            message = f"{kind.words} {f'element {element}' if element else f'line {line}'}"
            for row in findings.up_to_limit(kind.code, rows[1:].tolist(), severity=kind.severity):
                line, element = self.place(row)
                findings.add(
                    kind.code,
                    message,
                    file=file,
                    line=line,
                    field=element_field(row, kind.field) if element else kind.field,
                    hint=kind.hint,
                    severity=kind.severity,
                )


def _repeated(hashes: Ints) -> Ints:
    """Hashes that occur more than once."""
    ordered = np.sort(hashes)
    repeated: Ints = ordered[1:][ordered[1:] == ordered[:-1]]
    return repeated


def _among(hashes: Ints, ordered: Ints) -> npt.NDArray[np.bool_]:
    """Which hashes are among others in rising order."""
    if not len(ordered):
        return np.zeros(len(hashes), np.bool_)
    places = np.searchsorted(ordered, hashes)
    places[places == len(ordered)] = 0
    among: npt.NDArray[np.bool_] = ordered[places] == hashes
    return among


def _whole_hashes(texts: Iterable[bytes | memoryview], count: int) -> Ints:
    hashes: Ints = np.fromiter(map(xxhash.xxh3_64_intdigest, texts), np.uint64, count).view(np.int64)
    return hashes


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
