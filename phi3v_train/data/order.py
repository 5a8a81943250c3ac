"""Which samples a step trains on: a pure function of seed, step, sizes and weights; nothing is read or remembered.

Epoch e is a permutation of its samples, cut into global batches of `batch_size` (the last one may be short). The
permutation sorts the samples by a hash, so it needs no generator whose state had to be saved, is the same in every
release of numpy, and a resumed run begins at any step for the price of one sort.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor

import numpy as np
import xxhash
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class SampleRef:
    """One use of a row: `row` of the source with the number `source`, in a 0-based epoch."""

    source: int
    row: int
    epoch: int


@dataclass(frozen=True)
class SampleOrder:
    """The order of a run. Steps count from 0 through all epochs.

    Args:
        sizes: rows of each source.
        batch_size: samples of a step, over all processes.
        seed: another seed, another order.
        mix: weight of each source. Without weights an epoch takes every row once. With weights an epoch has as many
            samples as all sources have rows, shared out by weight; each source is gone through without repeating a
            row before all had their turn, and continues in the next epoch where it stopped.
    """

    sizes: tuple[int, ...]
    batch_size: int
    seed: int = 0
    mix: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not self.sizes or min(self.sizes) < 1:
            raise ValueError("an order needs a batch_size of at least 1 and sources of at least one row")
        if self.mix and (len(self.mix) != len(self.sizes) or min(self.mix) <= 0):
            raise ValueError("mix needs one weight greater than 0 for each source")

    @property
    def shares(self) -> tuple[int, ...]:
        """Samples that an epoch takes from each source."""
        return share_out(sum(self.sizes), self.mix) if self.mix else self.sizes

    @property
    def epoch_samples(self) -> int:
        """Samples of an epoch."""
        return sum(self.shares)

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch."""
        return ceil(self.epoch_samples / self.batch_size)

    def total_steps(self, num_epochs: float) -> int:
        """Steps of `num_epochs` epochs, a fraction of one rounded up to a whole step."""
        whole = floor(num_epochs)
        return whole * self.epoch_steps + ceil(round((num_epochs - whole) * self.epoch_steps, 6))

    def batch(self, step: int) -> tuple[SampleRef, ...]:
        """The samples of a step, in order."""
        epoch, place = divmod(step, self.epoch_steps)
        order = _epoch_order(self.epoch_samples, self.seed, epoch)
        drawn = order[place * self.batch_size : (place + 1) * self.batch_size]
        ends = np.cumsum(self.shares)
        sources = np.searchsorted(ends, drawn, side="right")
        return tuple(
            SampleRef(source, self._row(source, int(index - ends[source]) + self.shares[source], epoch), epoch)
            for source, index in zip(sources.tolist(), drawn, strict=True)
        )

    def _row(self, source: int, draw: int, epoch: int) -> int:
        """Row of the `draw`-th sample that an epoch takes from a source."""
        if not self.mix:
            return draw
        around, place = divmod(epoch * self.shares[source] + draw, self.sizes[source])
        return int(_source_order(self.sizes[source], self.seed, source, around)[place])


def share_out(total: int, weights: Sequence[float]) -> tuple[int, ...]:
    """Divide `total` by `weights`, largest remainders first; every share is at least 1."""
    exact = [total * weight / sum(weights) for weight in weights]
    shares = [max(1, floor(part)) for part in exact]
    by_remainder = sorted(range(len(weights)), key=lambda index: (shares[index] - exact[index], index))
    for index in by_remainder[: max(0, total - sum(shares))]:
        shares[index] += 1
    while sum(shares) > total and max(shares) > 1:
        shares[shares.index(max(shares))] -= 1
    return tuple(shares)


def permutation(size: int, *key: object) -> NDArray[np.int64]:
    """The numbers below `size` in an order that `key` decides: sorted by a 64-bit hash of number and key."""
    seed = xxhash.xxh3_64_intdigest("\0".join(map(str, key)).encode())
    with np.errstate(over="ignore"):
        state = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return np.argsort(state, kind="stable")


@lru_cache(maxsize=2)
def _epoch_order(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return permutation(size, "epoch", seed, epoch)


@lru_cache(maxsize=32)
def _source_order(size: int, seed: int, source: int, around: int) -> NDArray[np.int64]:
    return permutation(size, "source", seed, source, around)
