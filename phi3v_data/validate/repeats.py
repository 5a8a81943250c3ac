"""Finds repeated rows: equal ids, equal samples within a split and across splits, groups in several splits.

Candidates are found by hashes; two rows count as equal only if their texts, read again, are equal.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from phi3v_data.messages import counted, shown
from phi3v_data.schema import Severity
from phi3v_data.validate.badrow import image_fields
from phi3v_data.validate.findings import Findings
from phi3v_data.validate.pixels import PixelIdentity
from phi3v_data.validate.table import RowTable

Ints = npt.NDArray[np.int64]

TRAIN = "train"


def equal_groups(hashes: Ints) -> Iterator[Ints]:
    """Positions of each value that occurs more than once, in rising order; ordered by the first of them."""
    ordered = np.sort(hashes)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(repeated):
        return
    place = np.searchsorted(repeated, hashes)
    place[place == len(repeated)] = 0
    among = np.flatnonzero(repeated[place] == hashes)
    order = among[np.argsort(hashes[among], kind="stable")]
    ordered = hashes[order]
    same = ordered[1:] == ordered[:-1]
    bounds = np.flatnonzero(np.concatenate(([True], ~same, [True])))
    sizes = np.diff(bounds)
    starts = bounds[:-1][sizes > 1]
    sizes = sizes[sizes > 1]
    for index in np.argsort(order[starts], kind="stable"):
        yield order[starts[index] : starts[index] + sizes[index]]


def report_duplicate_ids(table: RowTable, findings: Findings) -> None:
    """Report every row with the id of an earlier row."""
    for rows in equal_groups(table.ids):
        first: dict[str, int] = {}
        for row in rows.tolist():
            value = table.load(row)
            row_id = value.get("id")
            if not isinstance(row_id, str) or not row_id:
                continue
            if row_id in first:
                findings.add(
                    "duplicate-id",
                    f"the id {shown(row_id)} is also that of {table.name(first[row_id])}",
                    **table.place(row, value),
                    field="id",
                    hint="ids are unique within the directory",
                )
            else:
                first[row_id] = row


def report_repeated_samples(table: RowTable, pixels: PixelIdentity, findings: Findings) -> None:
    """Report rows with the texts and images of an earlier one: `leak-sample` across splits, else `duplicate-sample`.

    Within a split rows that train different turns are not duplicates.
    """
    splits = table.split_of_rows()
    for rows in equal_groups(sample_hashes(table, pixels.of_uses)):
        known: dict[Any, dict[int, int]] = {}  # content -> first row of each split
        same: dict[Any, int] = {}  # content, split and trained turns -> first row
        for row in rows.tolist():
            value = table.load(row)
            content = sample_content(value, row, table, pixels.exact)
            if content is None:
                continue
            split = int(splits[row])
            trained = (content, split, _trained_turns(value))
            if trained in same:
                findings.add(
                    "duplicate-sample",
                    f"has the same texts and images as {table.name(same[trained])}",
                    **table.place(row, value),
                    hint="drop one of them: it counts twice in training and in scores",
                )
                continue
            same[trained] = row
            first = known.setdefault(content, {})
            elsewhere = {other: place for other, place in first.items() if other != split}
            if elsewhere:
                _report_across(table, findings, "leak-sample", row, value, elsewhere, "texts and images are also in")
            first.setdefault(split, row)


def _report_across(
    table: RowTable,
    findings: Findings,
    code: str,
    row: int,
    value: dict[str, Any],
    first: dict[int, int],
    words: str,
) -> None:
    """Report a sample that is also in other splits; the message names train if it is one of them."""
    names = {table.splits[split]: other for split, other in first.items()}
    here = table.splits[table.split_of_row(row)]
    other = names.get(TRAIN, next(iter(names.values())))
    other_split = TRAIN if TRAIN in names else next(iter(names))
    findings.add(
        code,
        f"{words} split {shown(other_split)} ({table.name(other)})",
        **table.place(row, value),
        severity="error" if TRAIN in (here, other_split) else "warning",
        hint="keep it in one split: scores on samples seen in training are meaningless",
    )


def report_straddling_groups(table: RowTable, findings: Findings) -> None:
    """Report groups with rows in more than one split, at the first such row of each further split."""
    grouped = np.flatnonzero(table.groups)
    if not len(grouped):
        return
    splits = table.split_of_rows()
    keys = table.groups[grouped]
    order = np.lexsort((grouped, splits[grouped], keys))
    ordered, by_split = grouped[order], splits[grouped][order]
    keys = keys[order]
    new_key = np.concatenate(([True], keys[1:] != keys[:-1]))
    new_part = new_key | np.concatenate(([True], by_split[1:] != by_split[:-1]))
    starts = np.flatnonzero(new_part)
    sizes = np.diff(np.append(starts, len(ordered)))
    key_numbers = np.cumsum(new_key)[starts]
    straddling = np.flatnonzero(np.bincount(key_numbers) > 1)
    where = np.searchsorted(key_numbers, straddling)
    for begin, number in zip(where.tolist(), straddling.tolist(), strict=True):
        parts = []  # (first row, split, rows), train first
        for part in range(begin, len(starts)):
            if key_numbers[part] != number:
                break
            parts.append((int(ordered[starts[part]]), table.splits[by_split[starts[part]]], int(sizes[part])))
        parts.sort(key=lambda entry: (entry[1] != TRAIN, entry[0]))
        _report_group(table, findings, parts)


def _report_group(table: RowTable, findings: Findings, parts: Sequence[tuple[int, str, int]]) -> None:
    first_row, first_split, first_size = parts[0]
    group = table.load(first_row).get("group")
    for row, split, size in parts[1:]:
        value = table.load(row)
        if value.get("group") != group:
            continue
        severity: Severity = "error" if first_split == TRAIN else "warning"
        findings.add(
            "leak-group",
            f"group {shown(group)} has {counted(size, 'row')} in split {shown(split)} and {first_size} in "
            f"{shown(first_split)} ({table.name(first_row)})",
            **table.place(row, value),
            field="group",
            severity=severity,
            hint="keep a group in one split: `phi3v-data split` does",
        )


def sample_hashes(table: RowTable, of_uses: Callable[[npt.NDArray[np.int32]], Ints]) -> Ints:
    """Hash of each row's texts and of its images in order, of which `of_uses` gives a number."""

    def mixed(uses: npt.NDArray[np.int32], position: Ints) -> Ints:
        value: Ints = (of_uses(uses) + 2) * np.int64(-7046029254386353131) * (2 * position + 3)
        value ^= value >> 29
        return value

    with np.errstate(over="ignore"):
        texts: Ints = table.texts
        return 3 * texts + table.sum_uses(mixed)


def sample_content(value: dict[str, Any], row: int, table: RowTable, exact: Callable[[int], Any]) -> Any:
    """The content by which two samples are compared; None for a row without turns.

    `exact` gives a value for an image of the tree that equals that of another one only if the images are equal.
    """
    turns = value.get("conversations")
    if not isinstance(turns, list) or not turns:
        return None
    texts = tuple(
        (repr(turn.get("user")), repr(turn.get("assistant")), _length(turn.get("images")))
        for turn in turns
        if isinstance(turn, dict)
    )
    start = int(table.starts[row])
    images = []
    for position, (_, path) in enumerate(image_fields(value)):
        index = int(table.uses[start + position]) if start + position < len(table.uses) else -1
        images.append(exact(index) if index >= 0 else path)
    system, *new = (value.get(key) or "" for key in ("system", "rejected", "tools"))
    steps = [repr(turn.get("steps") or ()) for turn in turns if isinstance(turn, dict)]
    return repr(system), texts, tuple(images), repr(new), tuple(steps)


def _trained_turns(value: dict[str, Any]) -> tuple[bool, ...]:
    """Whether each turn of a row is trained."""
    return tuple(turn.get("weight", 1) != 0 for turn in value["conversations"] if isinstance(turn, dict))


def _length(value: object) -> int:
    return len(value) if isinstance(value, list) else 0
