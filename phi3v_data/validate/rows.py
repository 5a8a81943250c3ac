"""One pass over the JSONL files: each row checked, and its columns entered in the table."""

import difflib
import multiprocessing
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain
from operator import attrgetter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from msgspec import UNSET

from phi3v_data.jsonl import cut_file, read_blocks
from phi3v_data.validate.badrow import BadRows, check_blank, check_offsets
from phi3v_data.validate.batch import Batch, count_lines, read_batch
from phi3v_data.validate.control import find_control, invalid_character
from phi3v_data.validate.findings import Findings, escaped, shown
from phi3v_data.validate.rowtypes import Row
from phi3v_data.validate.table import RowTable
from phi3v_data.validate.tree import ImageTree

Ints = npt.NDArray[np.int64]

MAX_LABELS = 10_000
"""Different answers of a split that are counted; a split with more has no labels."""

PART_BYTES = 32 << 20
"""Size of the parts that a large file is read in by several processes."""

_CAN_FORK = sys.platform == "linux"
_MIX = np.int64(-7046029254386353131)  # odd: multiplying by it loses nothing

_get_id = attrgetter("id")
_get_user = attrgetter("user")
_get_assistant = attrgetter("assistant")


class Units(Protocol):
    """Size of the text of each row of a batch, in tokens or in bytes."""

    def __call__(self, batch: Batch, users: list[str], answers: list[str]) -> Ints: ...


class RowScan:
    """Reads files into a table; findings about single rows go to `findings`."""

    def __init__(
        self, table: RowTable, tree: ImageTree, findings: Findings, units: Units, classes: frozenset[str]
    ) -> None:
        self.table = table
        self.tree = tree
        self.findings = findings
        self.units = units
        self.classes = classes
        self.labels: dict[str, Counter[str] | None] = {}  # per split; None where there are too many
        self.num_lines: Counter[str] = Counter()  # per split: lines that are not blank
        self.num_read = 0  # lines

    def scan(
        self, file: str, split: str, *, labelled: bool, workers: int = 1, observe: Callable[[int], None] | None = None
    ) -> None:
        """Read one file; `observe` is told how many bytes have been read. Raises OSError.

        A large file is read by `workers` processes, each a part of it, where the platform can fork.
        """
        self.table.begin_file(file, split)
        self.labels.setdefault(split, Counter())
        path = self.table.directory / file
        parts = cut_file(path, PART_BYTES) if workers > 1 and _CAN_FORK else []
        if len(parts) < 2:
            self._scan_part(file, split, labelled, 0, None, observe)
            return
        num_lines = 0
        for (_, end), part in zip(parts, self._scan_parts(file, split, labelled, parts, workers), strict=True):
            self.findings.extend(part.findings, num_lines)
            self.table.extend(part.table, num_lines)
            self.num_lines.update(part.num_lines)
            self._add_labels(split, part.labels[split])
            num_lines += part.num_read
            if observe is not None:
                observe(end)

    def _scan_parts(
        self, file: str, split: str, labelled: bool, parts: list[tuple[int, int]], workers: int
    ) -> Iterator["RowScan"]:
        """Scans of the parts, in order. The processes are forked, so hashes of texts agree in all of them."""
        self.tree.find(np.empty(0, np.int64))  # sorts its table once, for all of them
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(workers, context, initializer=_remember, initargs=(self,)) as pool:
            running: list[Future[RowScan]] = []
            for start, end in parts:
                running.append(pool.submit(_scan_remembered, file, split, labelled, start, end))
                if len(running) > 2 * workers:
                    yield running.pop(0).result()
            for future in running:
                yield future.result()

    def _scan_part(
        self,
        file: str,
        split: str,
        labelled: bool,
        start: int,
        end: int | None,
        observe: Callable[[int], None] | None = None,
    ) -> None:
        bad = BadRows(self.findings, file, labelled=labelled)
        path = self.table.directory / file
        for block in read_blocks(path, count_lines=count_lines, start=start, end=end):
            blank = self.findings.counts["blank-line"]
            batch = read_batch(block, bad)
            self.num_read += block.num_lines
            self.num_lines[split] += block.num_lines - (self.findings.counts["blank-line"] - blank)
            if batch.rows:
                self._enter(batch, file, split, labelled)
            if observe is not None:
                observe(block.offset + block.length)

    def _add_labels(self, split: str, more: Counter[str] | list[str] | None) -> None:
        labels = self.labels[split]
        if labels is None or more is None:
            self.labels[split] = None
            return
        labels.update(more)
        if len(labels) > MAX_LABELS:
            self.labels[split] = None

    def _enter(self, batch: Batch, file: str, split: str, labelled: bool) -> None:
        users: list[str] = list(map(_get_user, batch.turns))
        answers: list[str] = list(map(_get_assistant, batch.turns))
        num_rows, num_turns = len(batch.rows), len(batch.turns)
        first_turns = np.cumsum(batch.num_turns) - batch.num_turns
        if (labelled and not all(map(str.strip, answers))) or not all(map(str.strip, users)):
            self._check_blank(batch, file, labelled)
        if batch.has_offsets:
            self._check_offsets(batch, file)
        for position in batch.suspects:
            self._check_text(batch.rows[position], _place(batch, position, file))
        self._check_labels(batch, file, split, answers, first_turns)
        paths = np.fromiter(map(hash, chain.from_iterable(batch.images)), np.int64, int(batch.num_images.sum()))
        turn_hashes = np.fromiter(map(hash, zip(users, answers, strict=True)), np.int64, num_turns)
        more = {}
        groups = batch.column("group")
        if groups is not None:
            more["groups"] = np.fromiter((hash(group) if group else 0 for group in groups), np.int64, num_rows)
        self.table.append(
            lines=batch.lines,
            offsets=batch.offsets,
            ids=np.fromiter(map(hash, map(_get_id, batch.rows)), np.int64, num_rows),
            texts=_row_hashes(batch, turn_hashes, first_turns),
            units=self.units(batch, users, answers),
            num_turns=batch.num_turns,
            num_uses=sum_turns(batch.num_images, batch.num_turns, first_turns),
            uses=self.tree.find(paths),
            **more,
        )

    def _check_blank(self, batch: Batch, file: str, labelled: bool) -> None:
        for position, row in enumerate(batch.rows):
            if position in batch.bad:
                continue
            for index, turn in enumerate(row.conversations):
                if not turn.assistant.strip() or not turn.user.strip():
                    answer = turn.assistant if labelled else None
                    check_blank(
                        self.findings, index, turn.user, answer, bool(turn.images), _place(batch, position, file)
                    )

    def _check_offsets(self, batch: Batch, file: str) -> None:
        for position, row in enumerate(batch.rows):
            if position in batch.bad:
                continue
            for index, turn in enumerate(row.conversations):
                if turn.image_offsets is not UNSET:
                    images = [] if turn.images is UNSET else turn.images
                    check_offsets(
                        self.findings, index, turn.user, images, turn.image_offsets, _place(batch, position, file)
                    )

    def _check_text(self, row: Row, place: dict[str, Any]) -> None:
        """Control tokens where the model would read them, invalid characters anywhere."""
        prompt = [] if row.system is UNSET else [("system", row.system)]
        for index, turn in enumerate(row.conversations):
            prompt.append((f"conversations[{index}].user", turn.user))
            prompt.append((f"conversations[{index}].assistant", turn.assistant))
        for field, text in prompt:
            found = find_control(text)
            if found is not None:
                token, own = found
                self.findings.add(
                    "control-token",
                    f"the text holds {shown(token)}, "
                    + ("which the model reads as a control token" if own else "a marker of another model or format"),
                    **place,
                    field=field,
                    severity="error" if own else "warning",
                    hint="remove it"
                    if own
                    else "remove it: the model reads it as plain letters; pictures go into 'images'",
                )
        others = [("id", row.id), ("source", row.source)]
        if row.group is not UNSET:
            others.append(("group", row.group))
        if row.answers is not UNSET:
            others += [(f"answers[{index}]", text) for index, text in enumerate(row.answers)]
        if row.meta is not UNSET:
            for key, value in row.meta.items():
                others.append((f"meta.{escaped(key[:60])}", key))
                if isinstance(value, str):
                    others.append((f"meta.{escaped(key[:60])}", value))
        for field, text in (*prompt, *others):
            problem = invalid_character(text)
            if problem is not None:
                self.findings.add("invalid-text", f"the text holds {problem}", **place, field=field)

    def _check_labels(self, batch: Batch, file: str, split: str, answers: list[str], first_turns: Ints) -> None:
        """Count last answers, and compare them with the class names."""
        labels = self.labels[split]
        if labels is None and not self.classes:
            return
        last_turns = first_turns + batch.num_turns - 1
        if len(answers) == len(batch.rows):
            last = answers
        else:
            last = [answers[turn] if turn >= first else "" for first, turn in zip(first_turns, last_turns, strict=True)]
        if labels is not None:
            self._add_labels(split, last)
        if self.classes and not self.classes.issuperset(last):
            for position, label in enumerate(last):
                if label and label not in self.classes and position not in batch.bad:
                    self._report_label(
                        label, len(batch.rows[position].conversations) - 1, _place(batch, position, file)
                    )

    def _report_label(self, label: str, turn: int, place: dict[str, Any]) -> None:
        if not self.findings.has_room("label-unknown"):
            self.findings.count("label-unknown")
            return
        near = difflib.get_close_matches(label[:200], self.classes, 1)
        self.findings.add(
            "label-unknown",
            f"the answer {shown(label)} is not among the {len(self.classes)} class names of dataset.json",
            **place,
            field=f"conversations[{turn}].assistant",
            hint=f"meant {shown(near[0])}?" if near else "",
        )


def sum_turns(values: Ints, num_turns: Ints, first_turns: Ints) -> Ints:
    """Sum of a value over the turns of each row; 0 for a row without turns."""
    if len(values) == len(num_turns) and (num_turns == 1).all():
        return values
    sums: Ints = np.concatenate(([0], np.cumsum(values)))
    result: Ints = sums[first_turns + num_turns] - sums[first_turns]
    return result


def _row_hashes(batch: Batch, turns: Ints, first_turns: Ints) -> Ints:
    """Hash of a row's texts, turn by turn, with the number of pictures in each."""
    with np.errstate(over="ignore"):
        hashes: Ints = turns * _MIX + batch.num_images
        if len(turns) != len(batch.rows) or not (batch.num_turns == 1).all():
            position = np.arange(len(turns)) - np.repeat(first_turns, batch.num_turns)
            hashes = hashes * (2 * position + 3)
            hashes = sum_turns(hashes, batch.num_turns, first_turns)
        systems = batch.column("system")
        if systems is not None:
            hashes = hashes + np.fromiter((hash(text) if text else 0 for text in systems), np.int64, len(batch.rows))
    return hashes


def _place(batch: Batch, position: int, file: str) -> dict[str, Any]:
    return {"file": file, "line": int(batch.lines[position]), "id": batch.rows[position].id or None}


_remembered: list[RowScan] = []


def _remember(scan: RowScan) -> None:
    """In a forked process: keep what it needs, which came along with the fork."""
    _remembered.append(scan)


def _scan_remembered(file: str, split: str, labelled: bool, start: int, end: int) -> RowScan:
    """One part, in a forked process; what goes back holds no more than was found."""
    whole = _remembered[0]
    table = RowTable(whole.table.directory)
    part = RowScan(table, whole.tree, Findings(whole.findings.max_problems), whole.units, whole.classes)
    table.begin_file(file, split)
    part.labels[split] = Counter()
    part._scan_part(file, split, labelled, start, end)
    part.tree = part.units = None  # type: ignore[assignment]  # the parent has them
    return part
