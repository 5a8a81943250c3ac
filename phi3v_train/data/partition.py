"""Who computes what of a step: micro-batches of a global batch and their process, a pure function of costs.

The samples of a step are divided into micro-batches first and those among the processes after, so that one process
with four micro-batches, two with two and four with one compute the very same micro-batches. The costliest come first:
what does not fit the memory fails at once, and processes wait little for each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TypeAlias

from phi3v_data.errors import UserError

TOKENS_PER_TILE = 50
"""What a tile costs in the vision tower, as decoder tokens; from the floating-point work of both at full size."""

MicroBatches: TypeAlias = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """Work of one sample: its length in tokens, and tiles with a picture on them."""

    tokens: int
    tiles: int = 0

    @property
    def work(self) -> int:
        """One number, in tokens."""
        return self.tokens + TOKENS_PER_TILE * self.tiles


def accumulation_steps(batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Micro-batches of each process in a full step.

    Raises:
        UserError: the global batch does not divide.
    """
    together = micro_batch_size * world_size
    if batch_size % together:
        lower = batch_size // together * together
        choices = " or ".join(str(size) for size in (lower, lower + together) if size)
        raise UserError(
            f"--batch_size {batch_size} does not divide into --batch_size_per_gpu {micro_batch_size} on {world_size} "
            f"process{'es' if world_size > 1 else ''}: use --batch_size {choices}"
        )
    return batch_size // together


def partition(
    costs: Sequence[Cost], *, micro_batch_size: int, world_size: int = 1, pack: bool = False
) -> tuple[MicroBatches, ...]:
    """Divide a step: for each process its micro-batches, for each of those the positions of its samples.

    All processes get the same number of micro-batches, as many as `micro_batch_size` asks for; in a short step some
    may be empty. Padded micro-batches hold samples of like length, at most `micro_batch_size` of them; packed ones
    hold like amounts of work, whatever the number of samples in one of them.
    """
    steps = max(1, ceil(len(costs) / (micro_batch_size * world_size)))
    divide = _balanced if pack else _by_length
    batches = divide(costs, steps * world_size)
    work = {batch: _batch_work(costs, batch, pack) for batch in batches}
    batches = sorted(batches, key=lambda batch: (-work[batch], batch))
    loads = [0] * world_size
    result: list[list[tuple[int, ...]]] = [[] for _ in range(world_size)]
    for start in range(0, len(batches), world_size):
        together = batches[start : start + world_size]
        idlest = sorted(range(world_size), key=lambda process: (loads[process], process))
        for process, batch in zip(idlest, together, strict=True):
            result[process].append(batch)
            loads[process] += work[batch]
    return tuple(tuple(batches) for batches in result)


def _by_length(costs: Sequence[Cost], number: int) -> list[tuple[int, ...]]:
    """Neighbours in length together; where the samples do not come out even, short ones share."""
    order = sorted(range(len(costs)), key=lambda index: (-costs[index].tokens, -costs[index].tiles, index))
    base, extra = divmod(len(order), number)
    batches, start = [], 0
    for batch in range(number):
        size = base + (batch >= number - extra)
        batches.append(tuple(order[start : start + size]))
        start += size
    return batches


def _balanced(costs: Sequence[Cost], number: int) -> list[tuple[int, ...]]:
    """The costliest sample first, each to the micro-batch with the least work: within 4/3 of the best division."""
    order = sorted(range(len(costs)), key=lambda index: (-costs[index].work, index))
    loads = [0] * number
    batches: list[list[int]] = [[] for _ in range(number)]
    for index in order:
        idlest = loads.index(min(loads))
        batches[idlest].append(index)
        loads[idlest] += costs[index].work
    return [tuple(batch) for batch in batches]


def _batch_work(costs: Sequence[Cost], batch: Sequence[int], pack: bool) -> int:
    """Work of a micro-batch; padding is computed too."""
    if not batch:
        return 0
    tokens = [costs[index].tokens for index in batch]
    tiles = sum(costs[index].tiles for index in batch)
    return (sum(tokens) if pack else max(tokens) * len(tokens)) + TOKENS_PER_TILE * tiles
