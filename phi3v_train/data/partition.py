"""Division of a step: micro-batches of a global batch and their process, a pure function of costs.

The samples of a step are divided into micro-batches first and those among the processes after, so that one process
with four micro-batches, two with two and four with one compute the very same micro-batches. The costliest come first:
one that does not fit the memory fails at once. Then processes should wait little for each other: if they synchronise
once per step, each gets the same work in total; if they synchronise in every micro-batch, micro-batches of the same
index have similar work. All arithmetic is on integers, so that every machine divides the step in the same way.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TypeAlias

from phi3v_data.errors import UserError

MicroBatches: TypeAlias = tuple[tuple[int, ...], ...]

WAITING_ACCEPTED = 1_000
"""The division is good enough if all processes together wait less than one part in so many."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Work of one sample: its length in tokens, and tiles with a part of an image on them."""

    tokens: int
    tiles: int = 0


@dataclass(frozen=True, slots=True)
class Rates:
    """Work in the decoder's linear layers for a token, in its attention for a pair of tokens, in the tower for a tile.

    The unit does not matter. The default is that of the released models where everything is trained; of another model
    or method see `training.work`.
    """

    token: int = 36_864
    pair: int = 1
    tile: int = 52 * 36_864

    def row(self, tokens: int) -> int:
        """Work of one row of so many tokens."""
        return (self.token + self.pair * tokens) * tokens

    def sample(self, cost: Cost) -> int:
        """Work of one sample alone."""
        return self.row(cost.tokens) + self.tile * cost.tiles

    def micro_batch(self, costs: Sequence[Cost], *, pack: bool) -> int:
        """Work of samples computed at once; padding is computed too."""
        tiles = self.tile * sum(cost.tiles for cost in costs)
        if pack:
            return tiles + sum(self.row(cost.tokens) for cost in costs)
        return tiles + len(costs) * self.row(max((cost.tokens for cost in costs), default=0))


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
    costs: Sequence[Cost],
    *,
    micro_batch_size: int,
    world_size: int = 1,
    pack: bool = False,
    lockstep: bool = False,
    rates: Rates = Rates(),
) -> tuple[MicroBatches, ...]:
    """Divide a step: for each process its micro-batches, for each of those the positions of its samples.

    All processes get the same number of micro-batches, as many as `micro_batch_size` asks for; in a short step the last
    ones of some processes are empty. The contents of the others depend only on costs and `micro_batch_size`, so that
    dropout, which is drawn for a whole micro-batch, is the same for any number of processes. Padded micro-batches hold
    samples of similar length, at most `micro_batch_size` of them; packed ones hold similar amounts of work, with any
    number of samples. `lockstep` is for processes that synchronise in every micro-batch instead of once per step.
    """
    number = max(1, ceil(len(costs) / micro_batch_size))
    batches = _balanced(costs, number, rates) if pack else _by_length(costs, number)
    batches += [()] * (-number % world_size)

    def work(batch: Sequence[int]) -> int:
        return rates.micro_batch([costs[index] for index in batch], pack=pack)

    weighed = sorted(((work(batch), batch) for batch in batches), key=lambda item: (-item[0], item[1]))
    shares = _deal(weighed, world_size)
    if not lockstep and world_size > 1:
        _even_out(shares)
    return tuple(tuple(batch for _, batch in share) for share in shares)


Weighed: TypeAlias = tuple[int, tuple[int, ...]]
"""Work of a micro-batch, and the micro-batch."""


def _deal(batches: Sequence[Weighed], world_size: int) -> list[list[Weighed]]:
    """Neighbours in work to all processes, the costliest to the one with the least so far."""
    shares: list[list[Weighed]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for start in range(0, len(batches), world_size):
        idlest = sorted(range(world_size), key=lambda process: (loads[process], process))
        for process, batch in zip(idlest, batches[start : start + world_size], strict=True):
            shares[process].append(batch)
            loads[process] += batch[0]
    return shares


def _even_out(shares: list[list[Weighed]]) -> None:
    """Exchange micro-batches between the busiest process and another, as long as that lowers the highest load.

    Shares stay sorted, the costliest first, and keep their lengths. The sum of the loads' squares falls with every
    exchange, so this ends.
    """
    loads = [sum(work for work, _ in share) for share in shares]
    while True:
        busiest = loads.index(max(loads))
        if (loads[busiest] * len(loads) - sum(loads)) * WAITING_ACCEPTED <= loads[busiest] * len(loads):
            return
        best = min(
            (found for other in range(len(shares)) if (found := _exchange(shares, loads, busiest, other)) is not None),
            default=None,
        )
        if best is None:
            return
        _, other, given, taken = best
        difference = shares[busiest][given][0] - shares[other][taken][0]
        shares[busiest][given], shares[other][taken] = shares[other][taken], shares[busiest][given]
        loads[busiest] -= difference
        loads[other] += difference
        for process in (busiest, other):
            shares[process].sort(key=lambda item: (-item[0], item[1]))


def _exchange(
    shares: Sequence[Sequence[Weighed]], loads: Sequence[int], busiest: int, other: int
) -> tuple[int, int, int, int] | None:
    """The exchange that leaves the higher of both loads lowest: that load, `other`, place in the one and the other."""
    gap = loads[busiest] - loads[other]
    ascending = [work for work, _ in reversed(shares[other])]
    best: tuple[int, int, int, int] | None = None
    for given, (work, _) in enumerate(shares[busiest]):
        place = bisect_left(ascending, work - gap // 2)
        for candidate in (place - 1, place):
            if 0 <= candidate < len(ascending) and 0 < work - ascending[candidate] < gap:
                difference = work - ascending[candidate]
                higher = max(loads[busiest] - difference, loads[other] + difference)
                found = (higher, other, given, len(ascending) - 1 - candidate)
                best = found if best is None else min(best, found)
    return best


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


def _balanced(costs: Sequence[Cost], number: int, rates: Rates) -> list[tuple[int, ...]]:
    """The costliest sample first, each to the micro-batch with the least work: within 4/3 of the best division."""
    works = [rates.sample(cost) for cost in costs]
    order = sorted(range(len(costs)), key=lambda index: (-works[index], index))
    loads = [0] * number
    batches: list[list[int]] = [[] for _ in range(number)]
    for index in order:
        idlest = loads.index(min(loads))
        batches[idlest].append(index)
        loads[idlest] += works[index]
    return [tuple(batch) for batch in batches]
