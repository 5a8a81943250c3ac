"""Finds rows that belong together: rows of one group, and rows that share an image or all their text.

Rows are joined by hooking and pointer jumping over whole arrays (Shiloach and Vishkin, 1982), with 8 bytes per row.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from phi3v_data.validate.pixels import PixelIdentity
from phi3v_data.validate.table import RowTable

Ints = npt.NDArray[np.int64]
Links = tuple[Ints, Ints]

_USES_AT_ONCE = 1 << 18
_MOST_LINKS = 16  # each is joined in passes over all rows, so their number must not grow with the rows


def join_rows(num_rows: int, links: Iterable[Links]) -> Ints:
    """The first row of each row's component, given pairs of rows that belong together."""
    parent = np.arange(num_rows, dtype=np.int64)
    for left, right in links:
        while True:
            up, down = parent[left], parent[right]
            open_ = up != down
            if not open_.any():
                break
            left, right, up, down = left[open_], right[open_], up[open_], down[open_]
            np.minimum.at(parent, np.maximum(up, down), np.minimum(up, down))
            while True:
                above = parent[parent]
                if np.array_equal(above, parent):
                    break
                parent = above
    return parent


def group_links(table: RowTable) -> Iterator[Links]:
    """Yield pairs of rows with the same group."""
    yield from value_links(np.flatnonzero(table.groups), table.groups[table.groups != 0])


def text_links(table: RowTable) -> Iterator[Links]:
    """Yield pairs of rows without images whose texts are equal."""
    rows = np.flatnonzero(table.num_uses == 0)
    yield from value_links(rows, table.texts[rows])


def value_links(rows: Ints, values: Ints) -> Iterator[Links]:
    """Yield pairs of rows with equal values."""
    if len(rows):
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        first = np.maximum.accumulate(
            np.where(np.concatenate(([True], ordered[1:] != ordered[:-1])), np.arange(len(order)), 0)
        )
        yield rows[order], rows[order[first]]


def image_links(table: RowTable, identity: PixelIdentity) -> Iterator[Links]:
    """Yield pairs of rows that share an image."""
    first = np.full(len(identity.identities), len(table), np.int64)  # row of the first use
    at_once = max(_USES_AT_ONCE, -(-len(table.uses) // _MOST_LINKS))
    for uses in range(0, len(table.uses), at_once):
        images = identity.of_uses(table.uses[uses : uses + at_once])
        rows = np.searchsorted(table.starts, np.arange(uses, uses + len(images)), side="right") - 1
        there = images >= 0
        images, rows = images[there], rows[there].astype(np.int64)
        np.minimum.at(first, images, rows)
        shared = first[images] != rows
        yield rows[shared], first[images[shared]]
