"""Which split gets what: by hash, by hash within each label, and when shares cannot be had at all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from phi3v_data.errors import UserError
from phi3v_data.sets.components import Ints
from phi3v_data.writing.plan import choose_split, group_point

MAX_LABELS = 10_000
"""With more different answers than this, answers are free text."""

SLACK = 0.1
"""Of all rows: by how much rows that belong together may exceed a split's share."""

TRIED_SEEDS = 200


@dataclass(frozen=True, slots=True)
class Member:
    """The first of rows that belong together, and the name that they go by."""

    row: int
    key: str

    MAX_KEPT: ClassVar[int] = 20_000
    """With more of them, no seed is looked for."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """The split (by number) of each row; `members` is empty where there are too many."""

    splits: npt.NDArray[np.uint8]
    members: Sequence[Member]


def choose(key: str, shares: Mapping[str, float], seed: int) -> int:
    """Number of the split that `choose_split` names."""
    return list(shares).index(choose_split(key, shares, seed))


class StratifiedShares:
    """Gives each label's rows to the splits in turn, so that every split has its share of each at any time.

    What is next to come is drawn, by the hash of its name, among the splits that lack rows of the label, each with a
    chance in proportion to what it lacks. A choice depends on the rows before it alone.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        self.shares = shares
        self.counts: dict[str, list[int]] = {}

    def choose(self, key: str, label: str, seed: int) -> int:
        """The split of what comes next."""
        counts = self._of(label)
        total = sum(counts) + 1
        lacking = [max(0.0, share * total - count) for share, count in zip(self.shares, counts, strict=True)]
        point = group_point(key, seed) * sum(lacking)
        edges = list(accumulate(lacking))
        return next((number for number, edge in enumerate(edges) if point < edge), lacking.index(max(lacking)))

    def count(self, label: str, split: int) -> None:
        """A row of a label went to a split."""
        self._of(label)[split] += 1

    def _of(self, label: str) -> list[int]:
        counts = self.counts.get(label)
        if counts is None:
            counts = self.counts[label] = [0] * len(self.shares)
            if len(self.counts) > MAX_LABELS:
                raise UserError(
                    f"--stratify: there are more than {MAX_LABELS:,} different last answers, so they are free text and "
                    "no labels; split without --stratify"
                )
        return counts


def refuse_misfits(
    sizes: Ints,
    splits: npt.NDArray[np.uint8],
    shares: Mapping[str, float],
    *,
    better_seed: int | None,
    name: Callable[[int], str],
) -> None:
    """Refuse a division that dividing what belongs together alone could mend, naming what is too big.

    `sizes`: number of rows that go with each row which is the first of its kind, 0 for the others.

    Raises:
        UserError: rows that belong together exceed their split's share by far, or a split stays empty.
    """
    total = len(splits)
    first = np.flatnonzero(sizes)
    names = list(shares)
    wanted = np.array(list(shares.values())) * total
    own = wanted[splits[first]]
    too_big = first[exceeds(sizes[first], own, total)]
    empty = [names[split] for split in range(len(names)) if not (splits == split).any()]
    if not len(too_big) and not empty:
        return
    advice = f"; --seed {better_seed} has them fit" if better_seed is not None else ""
    if len(too_big):
        worst = too_big[np.argsort(-sizes[too_big], kind="stable")][:3].tolist()
        words = "; ".join(
            f"{name(row)}: {sizes[row]:,} of {total:,} rows, where split {names[splits[row]]} is to have "
            f"{wanted[splits[row]]:,.0f}"
            for row in worst
        )
        more = f"; and {len(too_big) - 3:,} more" if len(too_big) > 3 else ""
        raise UserError(
            f"these shares cannot be had without a leak, because rows that belong together are too many for their "
            f"split: {words}{more}{advice or '; change the shares, or take such rows out'}"
        )
    if len(first) < len(names):
        biggest = int(first[np.argmax(sizes[first])])
        raise UserError(
            f"{len(names)} splits cannot be made of {len(first)} {'group' if len(first) == 1 else 'groups'} of rows "
            f"that belong together without a leak; the largest is {name(biggest)}: {sizes[biggest]:,} of {total:,} rows"
        )
    raise UserError(
        f"split {', '.join(empty)} would stay empty: {len(first):,} groups of rows are few for its share"
        f"{advice or '; choose another --seed or larger shares'}"
    )


def exceeds(sizes: Ints, wanted: npt.NDArray[np.float64], total: int) -> npt.NDArray[np.bool_]:
    """Whether rows that belong together are far more than the share of their split."""
    result: npt.NDArray[np.bool_] = sizes > wanted + SLACK * total
    return result


def find_seed(members: Sequence[Member], sizes: Ints, shares: Mapping[str, float], seed: int) -> int | None:
    """The next seed with which everything fits; None where none of many does."""
    total = int(sizes.sum())
    wanted = np.array(list(shares.values())) * total
    counts = sizes[[member.row for member in members]]
    for other in range(seed, seed + (TRIED_SEEDS if len(members) < 1000 else 2)):
        splits = np.array([choose(member.key, shares, other) for member in members])
        if len(np.unique(splits)) == len(shares) and not exceeds(counts, wanted[splits], total).any():
            return None if other == seed else other
    return None
