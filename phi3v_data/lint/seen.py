"""A set of 64-bit hashes that takes 8 bytes for each, filled many at a time."""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_RECENT = 1 << 15


class SeenHashes:
    """Sorted arrays of rising size, two of similar size merged; in front of them the last hash of each low bits."""

    def __init__(self) -> None:
        self._arrays: list[Ints] = []
        self._recent: Ints = np.zeros(_RECENT, np.int64)
        self._recent[0] = 1  # not 0, which has not been added and would be found here

    def add(self, hashes: Ints) -> npt.NDArray[np.bool_]:
        """Add hashes; returns which of them are new, an equal one before it in `hashes` counted as known."""
        is_new = np.zeros(len(hashes), np.bool_)
        places = hashes & (_RECENT - 1)
        missed = np.flatnonzero(self._recent[places] != hashes)
        if not len(missed):
            return is_new
        hashes = hashes[missed]
        self._recent[places[missed]] = hashes
        if self._known(hashes).all():
            return is_new
        unique, first = np.unique(hashes, return_index=True)
        known = self._known(unique)
        is_new[missed[first[~known]]] = True
        fresh = unique[~known]
        if len(fresh):
            self._arrays.append(fresh)
        while len(self._arrays) > 1 and len(self._arrays[-2]) < 2 * len(self._arrays[-1]):
            merged = np.concatenate((self._arrays.pop(), self._arrays.pop()))
            merged.sort()
            self._arrays.append(merged)
        return is_new

    def _known(self, hashes: Ints) -> npt.NDArray[np.bool_]:
        """Which hashes have been added."""
        known = np.zeros(len(hashes), np.bool_)
        for array in self._arrays:
            place = np.searchsorted(array, hashes)
            place[place == len(array)] = 0
            known |= array[place] == hashes
        return known
