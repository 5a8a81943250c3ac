"""Finds pairs of nearly equal 64-bit difference hashes without comparing all pairs.

Two hashes that differ in at most 4 bits agree on at least two of six bands of 10 or 11 bits, and on at least three of
seven bands of 9 or 10 (Manku, Jain and Das Sarma, "Detecting near-duplicates for web crawling", 2007). For each choice
of so many bands the hashes are sorted by those bits, so that candidates are adjacent, and the exact distance of each
candidate is computed. If very many share these bands, like pages with white margins, the same method is applied to the
remaining bits. A pair is accepted only at its first equal bands, so that it is found once.

Candidates per hash grow with the number of hashes: two of six bands have 21 bits, which are few for millions. From
`MANY` on three of seven are used, with 27 bits and 35 sorts instead of 15: more work at first, and then no growth up to
a hundred million.

This runs in one process without an engine: it is arithmetic on whole arrays, and two million hashes take 1.25 s
(`python benchmarks/validate.py near`), about as long as starting workers and collecting their results.
"""

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MAX_DISTANCE = 4

MAX_PAIRS = 4_000_000
"""Most pairs that are collected; with more, the hashes of a set are not meaningful."""

Hashes = npt.NDArray[np.uint64]
Indexes = npt.NDArray[np.int64]
Accept = Callable[[Indexes, Indexes], None]

MANY = 1 << 21
"""Hashes from which on more bands are used."""

_FEW_BANDS, _MANY_BANDS = (6, 2), (7, 3)
"""Bands, and how many of them are equal in two hashes at most `MAX_DISTANCE` bits apart."""

_LONG_RUN = 2048  # compared all with all up to this length
_AT_ONCE = 1 << 18
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


class NearPairs(NamedTuple):
    """The positions of each pair; not `complete` if there were more than `MAX_PAIRS`."""

    left: Indexes
    right: Indexes
    complete: bool


def near_pairs(left: Hashes, right: Hashes) -> NearPairs:
    """Positions (i, j) with `left[i]` and `right[j]` at most 4 bits apart, each pair once.

    Both must be free of duplicates. Memory besides the result: about 40 bytes per hash.
    """
    side = np.arange(len(left) + len(right)) >= len(left)
    found = _Found(side)
    _search(np.concatenate((left, right)), 64, found)
    first, second, complete = found.pairs()
    return NearPairs(first, second - len(left), complete)


def near_pairs_within(hashes: Hashes) -> NearPairs:
    """Positions i < j of hashes at most 4 bits apart, each pair once; the hashes must be free of duplicates."""
    found = _Found(None)
    _search(hashes, 64, found)
    return found.pairs()


class _Found:
    """Collects pairs; with `side`, only those between the two sides."""

    def __init__(self, side: npt.NDArray[np.bool_] | None) -> None:
        self.side = side
        self.parts: list[tuple[Indexes, Indexes]] = []
        self.left = MAX_PAIRS

    def __call__(self, i: Indexes, j: Indexes) -> None:
        if self.side is not None:
            crossing = self.side[i] != self.side[j]
            i, j = i[crossing], j[crossing]
        if len(i) and self.left > 0:
            self.parts.append((np.minimum(i, j), np.maximum(i, j)))
        self.left -= len(i)

    def pairs(self) -> NearPairs:
        """All pairs in order."""
        if not self.parts:
            return NearPairs(np.empty(0, np.int64), np.empty(0, np.int64), True)
        i = np.concatenate([part[0] for part in self.parts])
        j = np.concatenate([part[1] for part in self.parts])
        order = np.lexsort((j, i))
        return NearPairs(i[order], j[order], self.left >= 0)


def _search(values: Hashes, num_bits: int, accept: Accept) -> None:
    """Pass positions of values at most `MAX_DISTANCE` bits apart to `accept`, each pair once."""
    num_bands, num_equal = _MANY_BANDS if len(values) >= MANY and num_bits == 64 else _FEW_BANDS
    long_run = _LONG_RUN if num_bits >= 2 * num_bands else len(values)  # with so few bits, none are left to compare
    edges = [num_bits * band // num_bands for band in range(num_bands + 1)]
    masks = [np.uint64((1 << edges[band + 1]) - (1 << edges[band])) for band in range(num_bands)]
    for chosen in combinations(range(num_bands), num_equal):
        earlier = [masks[band] for band in range(chosen[-1]) if band not in chosen]

        def take(i: Indexes, j: Indexes, earlier: list[np.uint64] = earlier) -> None:
            differing = values[i] ^ values[j]
            for mask in earlier:
                keep = differing & mask != 0
                i, j, differing = i[keep], j[keep], differing[keep]
            accept(i, j)

        packed = np.zeros(len(values), np.uint64)
        for band in chosen:
            packed <<= np.uint64(edges[band + 1] - edges[band])
            packed |= (values & masks[band]) >> np.uint64(edges[band])
        packed <<= _32
        packed |= np.arange(len(values), dtype=np.uint64)
        packed.sort()
        for members in _compare_runs(values, packed, long_run, take):
            rest, left = values[members], num_bits
            for band in reversed(chosen):
                rest = _without(rest, edges[band], edges[band + 1])
                left -= edges[band + 1] - edges[band]

            def take_members(i: Indexes, j: Indexes, members: Indexes = members, take: Accept = take) -> None:
                take(members[i], members[j])

            _search(rest, left, take_members)


def _are_near(left: Hashes, right: Hashes) -> npt.NDArray[np.bool_]:
    """Whether each two hashes are at most `MAX_DISTANCE` bits apart."""
    near: npt.NDArray[np.bool_] = np.bitwise_count(left ^ right) <= MAX_DISTANCE
    return near


def _compare_runs(values: Hashes, packed: Hashes, long_run: int, take: Accept) -> list[Indexes]:
    """Compare values whose keys (the upper half of `packed`) are equal; returns the members of the long runs."""
    keys = (packed >> _32).astype(np.uint32)
    same = keys[1:] == keys[:-1]
    starts = np.flatnonzero(np.concatenate(([True], ~same))) if len(keys) else np.empty(0, np.int64)
    lengths = np.diff(np.append(starts, len(keys)))
    long = np.flatnonzero(lengths > long_run)
    for run in long.tolist():
        same[starts[run] : starts[run] + lengths[run] - 1] = False
    positions = np.flatnonzero(same)
    del same
    distance = 1
    while len(positions):
        for begin in range(0, len(positions), _AT_ONCE):
            part = positions[begin : begin + _AT_ONCE]
            i = (packed[part] & _LOW).astype(np.int64)
            j = (packed[part + distance] & _LOW).astype(np.int64)
            near = _are_near(values[i], values[j])
            if near.any():
                take(i[near], j[near])
        distance += 1
        positions = positions[positions + distance < len(keys)]
        positions = positions[keys[positions + distance] == keys[positions]]
    return [(packed[starts[run] : starts[run] + lengths[run]] & _LOW).astype(np.int64) for run in long.tolist()]


def _without(values: Hashes, low: int, high: int) -> Hashes:
    """The values with bits `low` to `high` cut out."""
    below = values & np.uint64((1 << low) - 1)
    return (values >> np.uint64(high) << np.uint64(low)) | below if high < 64 else below
