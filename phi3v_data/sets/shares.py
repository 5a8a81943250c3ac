"""Assigns rows to splits: quotas that add up, filled with whole groups in the order of their hashes."""

from collections.abc import Callable, Mapping, Sequence
from math import floor

import numpy as np
import numpy.typing as npt

from phi3v_data.errors import UserError
from phi3v_data.messages import counted
from phi3v_data.schema import Manifest
from phi3v_data.sets.components import Ints

MAX_LABELS = 10_000
"""With more different answers than this, answers are free text."""

SLACK = 0.1
"""Fraction of all rows by which rows that belong together may exceed the share of a split."""

FEW_ROWS = 5
"""A split with fewer rows gets a note: its scores would be meaningless."""

Splits = npt.NDArray[np.uint8]


def quotas(exact: Sequence[float], total: int) -> list[int]:
    """Integers nearest to `exact` that add up to `total`, by largest remainder; earlier ones win ties."""
    result = [max(0, floor(each)) for each in exact]
    by_remainder = sorted(range(len(exact)), key=lambda split: (result[split] - exact[split], split))
    for index in range(total - sum(result)):
        result[by_remainder[index % len(result)]] += 1
    while sum(result) > total:
        result[result.index(max(result))] -= 1
    return result


def divide(
    sizes: Ints,
    points: npt.NDArray[np.float64],
    labels: Ints,
    shares: Sequence[float],
) -> Splits:
    """The split (by number) of each component of rows.

    Each label has its own quotas, which add up to the quotas of the whole set. Within a label, components are assigned
    from the largest to the smallest, and in the order of their hashes if they have the same size. The hash draws one of
    the splits that still have room for the component; if none has, it goes to the split with most rows missing. Single
    rows come last: they fill the splits one after another up to their quotas.

    Args:
        sizes: number of rows of each component.
        points: hash of each component's name, in [0, 1).
        labels: number of each component's label; all 0 without labels.
    """
    result = np.zeros(len(sizes), np.uint8)
    rows = 0
    given = np.zeros(len(shares), np.int64)
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        total = int(sizes[members].sum())
        rows += total
        wanted = np.array(quotas([share * rows - have for share, have in zip(shares, given, strict=True)], total))
        order = members[np.lexsort((points[members], -sizes[members]))]
        for component in order.tolist():
            size = int(sizes[component])
            fits = np.flatnonzero(wanted >= size)
            if not len(fits):
                split = int(wanted.argmax())
            else:
                split = int(fits[0]) if size == 1 else _drawn(fits, wanted, float(points[component]))
            result[component] = split
            wanted[split] -= size
            given[split] += size
    return result


def _drawn(fits: Ints, wanted: Ints, point: float) -> int:
    """One of the splits that have room, with probabilities proportional to their room."""
    edges = np.cumsum(wanted[fits])
    return int(fits[min(int(np.searchsorted(edges, point * edges[-1], side="right")), len(fits) - 1)])


def refuse_misfits(sizes: Ints, splits: Splits, shares: Mapping[str, float], *, name: Callable[[int], str]) -> None:
    """Reject a division that misses the shares by far because of rows that belong together.

    `sizes`: for the first row of each component, its number of rows; 0 for the others.

    Raises:
        UserError: a component exceeds the share of its split by far, or a split is empty.
    """
    total = len(splits)
    first = np.flatnonzero(sizes)
    names = list(shares)
    wanted = np.array(list(shares.values())) * total
    too_big = first[sizes[first] > wanted[splits[first]] + SLACK * total]
    empty = [names[split] for split in range(len(names)) if not (splits == split).any()]
    if len(too_big):
        worst = too_big[np.argsort(-sizes[too_big], kind="stable")][:3].tolist()
        words = "; ".join(
            f"{name(row)}: {sizes[row]:,} of {counted(total, 'row')}, but split {names[splits[row]]} should have "
            f"{wanted[splits[row]]:,.0f}"
            for row in worst
        )
        more = f"; and {len(too_big) - 3:,} more" if len(too_big) > 3 else ""
        raise UserError(
            f"these shares cannot be met without a leak, because too many rows belong together: {words}"
            f"{more}; change the shares, or remove such rows"
        )
    if empty and len(first) < len(names):
        biggest = int(first[np.argmax(sizes[first])])
        raise UserError(
            f"{len(names)} splits cannot be made from {counted(len(first), 'group')} of rows "
            f"that belong together without a leak; the largest is {name(biggest)}: {sizes[biggest]:,} of "
            f"{counted(total, 'row')}"
        )
    if empty:
        raise UserError(
            f"split {', '.join(empty)} would be empty: its share of {counted(total, 'row')} in "
            f"{counted(len(first), 'group')} is less than one group; choose larger shares"
        )


def note_few_rows(rows: Mapping[str, int]) -> list[str]:
    """A note for each split with fewer than 5 rows."""
    return [
        f"split {name} has only {counted(count, 'row')}, too few for a meaningful score"
        for name, count in rows.items()
        if count < FEW_ROWS
    ]


def share_notes(
    shares: Mapping[str, float], manifest: Manifest, limit: int | None = None, *, grouped: bool = True
) -> list[str]:
    """Notes on the shares that hashing the groups gave, and on splits that are small, missing or may share images.

    `grouped`: rows have groups.
    """
    rows = {name: manifest.splits[name].rows for name in shares if name in manifest.splits}
    total = sum(rows.values())
    got = ", ".join(f"{name} {100 * rows.get(name, 0) / total:.1f} %" for name in shares)
    asked = ", ".join(f"{name} {100 * share:g} %" for name, share in shares.items())
    empty = [name for name in sorted(shares) if name not in rows]
    exact = quotas([share * total for share in shares.values()], total)
    is_off = [rows.get(name, 0) for name in shares] != exact
    rejected = sum(manifest.rejects.values())
    if limit is not None and any(count + rejected >= limit for count in rows.values()):
        off = f"--limit {limit}, which is per split, gave {got} instead of {asked}; leave out --limit"
    else:
        off = f"hashing the groups gave {got} instead of {asked}; `phi3v-data split` meets shares exactly"
    num_images = sum(manifest.splits[name].images for name in rows)
    if 0 < num_images < total and not grouped:
        shared = (
            f"{counted(total, 'row')} without groups share {counted(num_images, 'image')}, and those of one image may "
            "be in different splits; `phi3v-data split` keeps them together"
        )
    else:
        shared = ""
    return [
        *([off] if is_off else []),
        *([shared] if shared else []),
        *(f"split {name} has no samples: there are too few groups for its share" for name in empty),
        *note_few_rows(rows),
    ]
