"""Pairs of nearly equal 64-bit difference hashes between two sets, without comparing all with all.

Two hashes that differ in at most 4 bits agree on at least two of six bands of 10 or 11 bits. For each of the 15 pairs
of bands, one set is sorted by those bits and the other looked up in it; few pairs come up by chance, and each is then
counted exactly. Equal hashes are taken once, so a crowd of copies costs nothing.
"""

from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt

MAX_DISTANCE = 4

Hashes = npt.NDArray[np.uint64]
Indexes = npt.NDArray[np.int64]

_BAND_EDGES = (0, 11, 22, 33, 44, 54, 64)
_BANDS = [np.uint64((1 << high) - (1 << low)) for low, high in pairwise(_BAND_EDGES)]
_MAX_PAIRS = 4_000_000  # looked at together


def near_pairs(left: Hashes, right: Hashes) -> tuple[Indexes, Indexes]:
    """Positions (i, j) with `left[i]` and `right[j]` at most 4 bits apart, each pair once; both must be free of
    repeats.

    Memory besides the result: about 50 bytes a hash and a fixed 300 MB at most.
    """
    found: list[npt.NDArray[np.int64]] = []
    for first, second in combinations(_BANDS, 2):
        mask = first | second
        keys = right & mask
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        wanted = left & mask
        starts = np.searchsorted(keys, wanted, side="left")
        counts = np.searchsorted(keys, wanted, side="right") - starts
        hits = np.flatnonzero(counts)
        begin = 0
        ends = np.cumsum(counts[hits])
        while begin < len(hits):
            base = int(ends[begin - 1]) if begin else 0
            end = max(int(np.searchsorted(ends, base + _MAX_PAIRS, side="right")), begin + 1)
            part = hits[begin:end]
            i = np.repeat(part, counts[part])
            within = np.arange(len(i)) - np.repeat(np.cumsum(counts[part]) - counts[part], counts[part])
            j = order[np.repeat(starts[part], counts[part]) + within]
            near = np.bitwise_count(left[i] ^ right[j]) <= MAX_DISTANCE
            found.append(np.stack([i[near], j[near]], axis=1))
            begin = end
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    pairs = np.unique(np.concatenate(found), axis=0)
    return pairs[:, 0], pairs[:, 1]
