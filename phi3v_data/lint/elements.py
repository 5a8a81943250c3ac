"""Names of the elements of an array, which tell rows apart where several are on one line."""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class Elements:
    """The rows of a block.

    Args:
        lines: the line of each.
        first: number of the first in the file, from 0 on.
        before: line of the row before it.
    """

    def __init__(self, lines: Ints, first: int, before: int) -> None:
        self._first = first
        self._are_alone = are_alone(lines)
        self._are_alone[:1] &= lines[:1] != before

    def field(self, row: int, field: str | None) -> str | None:
        """The field of a finding about a row of the block: with its element, unless the line tells which row it is."""
        return (field or None) if self._are_alone[row] else element_field(self._first + row, field)


def are_alone(lines: Ints) -> npt.NDArray[np.bool_]:
    """Whether each row is the only one on its line, by the rows beside it."""
    alone = np.ones(len(lines), np.bool_)
    shared = np.flatnonzero(lines[1:] == lines[:-1])
    alone[shared] = alone[shared + 1] = False
    return alone


def element_field(element: int, field: str | None = None) -> str:
    """A field of an element of an array: `[5].messages[1].content`."""
    return inside(f"[{element}]", field)


def inside(element: str | None, field: str | None) -> str:
    """A field inside an element, as `[5]`."""
    between = "." if element and field and not field.startswith("[") else ""
    return f"{element or ''}{between}{field or ''}"
