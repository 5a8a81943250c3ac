"""One pass over the JSONL files: each row checked, and its columns entered in the table."""

import difflib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from msgspec import UNSET

from phi3v_data.engine.base import FunctionWork, WorkerDiedError
from phi3v_data.engine.local import CAN_FORK, LocalEngine
from phi3v_data.errors import UserError
from phi3v_data.json_text import invalid_character
from phi3v_data.jsonl import Block, cut_file, read_blocks
from phi3v_data.messages import escaped, shown
from phi3v_data.validate.badrow import BadRows, check_blank, check_offsets, check_rejected, report_nothing_trained
from phi3v_data.validate.batch import Batch, count_lines, read_batch, sum_turns, text_bytes
from phi3v_data.validate.control import ControlTokens
from phi3v_data.validate.findings import Findings
from phi3v_data.validate.hashes import hash_texts, pair_hashes
from phi3v_data.validate.rowtypes import Row
from phi3v_data.validate.table import RowTable
from phi3v_data.validate.templates import TemplateRows, Templates
from phi3v_data.validate.tree import ImageTree

Ints = npt.NDArray[np.int64]

MAX_LABELS = 10_000
"""Different answers of a split that are counted; a split with more has no labels."""

PART_BYTES = 32 << 20
"""Size of the parts that a large file is read in by several processes."""

_MIX = np.int64(-7046029254386353131)  # odd: multiplying by it loses nothing

_BLOCK_BYTES = 1 << 20
"""Read at a time: rows of one template cost less the more of them there are."""

_get_id = attrgetter("id")
_get_user = attrgetter("user")
_get_assistant = attrgetter("assistant")


class Units(Protocol):
    """Size of the text of each row of a batch, in tokens or in bytes."""

    def __call__(self, batch: Batch, users: list[str], answers: list[str]) -> Ints: ...


class RowScan:
    """Reads files into a table; findings about single rows go to `findings`."""

    def __init__(
        self,
        table: RowTable,
        tree: ImageTree,
        findings: Findings,
        units: Units,
        classes: frozenset[str],
        markers: ControlTokens,
    ) -> None:
        self.table = table
        self.tree = tree
        self.findings = findings
        self.units = units
        self.classes = classes
        self.markers = markers
        self.labels: dict[str, Counter[str] | None] = {}  # per split; None if there are too many
        self.num_lines: Counter[str] = Counter()  # per split: lines that are not blank
        self.num_read = 0  # lines
        self._templates = Templates(markers)

    def scan(
        self, file: str, split: str, *, labelled: bool, workers: int = 1, observe: Callable[[int], None] | None = None
    ) -> None:
        """Read one file; `observe` is told how many bytes have been read. Raises OSError.

        A large file is read by `workers` processes, each a part of it, where the platform can fork.
        """
        self.table.begin_file(file, split)
        self.labels.setdefault(split, Counter())
        path = self.table.directory / file
        parts = cut_file(path, PART_BYTES) if workers > 1 and CAN_FORK else []
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
        work = FunctionWork(partial(self._scan_apart, file, split, labelled))

        def died(death: WorkerDiedError) -> "RowScan":
            raise UserError(
                f"{file}: a worker {death.how} while it read this file; run the same command again with --workers 1"
            )

        with closing(LocalEngine(workers, forked=True).run(work, parts, on_death=died)) as results:
            for _, scan in results:
                yield scan

    def _scan_apart(self, file: str, split: str, labelled: bool, part: tuple[int, int]) -> "RowScan":
        """Check one part in a forked process; only the results are sent back."""
        table = RowTable(self.table.directory)
        findings = Findings(self.findings.max_problems)
        scan = RowScan(table, self.tree, findings, self.units, self.classes, self.markers)
        table.begin_file(file, split)
        scan.labels[split] = Counter()
        scan._scan_part(file, split, labelled, *part)
        scan.tree = scan.units = None  # type: ignore[assignment]  # the parent has them
        return scan

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
        blocks = read_blocks(path, block_bytes=_BLOCK_BYTES, count_lines=count_lines, start=start, end=end)
        for block in blocks:
            blank = self.findings.counts["blank-line"]
            groups, left = self._templates.sort(block, labelled=labelled) if self.units is text_bytes else ([], None)
            entries = [self._enter_template_rows(group, block, file, split) for group in groups]
            if left is None or len(left):
                batch = read_batch(block, bad, self.markers, left)
                if batch.rows:
                    entries.append(self._enter(batch, file, split, labelled))
            self.num_read += block.num_lines
            self.num_lines[split] += block.num_lines - (self.findings.counts["blank-line"] - blank)
            if entries:
                self.table.append(**merge_rows(entries))
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

    def _enter(self, batch: Batch, file: str, split: str, labelled: bool) -> dict[str, Ints]:
        """Columns of rows that were parsed, which are checked on the way."""
        users: list[str] = list(map(_get_user, batch.turns))
        answers: list[str] = list(map(_get_assistant, batch.turns))
        first_turns = np.cumsum(batch.num_turns) - batch.num_turns
        if (labelled and not all(map(str.strip, answers))) or not all(map(str.strip, users)):
            self._check_blank(batch, file, labelled)
        if batch.has_offsets:
            self._check_offsets(batch, file)
        if batch.has_weights:
            self._check_weights(batch, file)
        if batch.column("rejected") is not None:
            self._check_rejected(batch, file)
        for position in batch.suspects:
            self._check_text(batch.rows[position], _place(batch, position, file))
        self._check_labels(batch, file, split, answers, first_turns)
        more = {}
        groups = batch.column("group")
        if groups is not None:
            more["groups"] = _hash_optional(groups)
        return {
            "lines": batch.lines,
            "offsets": batch.offsets,
            "ids": hash_texts(list(map(_get_id, batch.rows))),
            "texts": _row_hashes(batch, hash_texts(users), hash_texts(answers), first_turns),
            "units": self.units(batch, users, answers),
            "num_turns": batch.num_turns,
            "num_uses": sum_turns(batch.num_images, batch.num_turns, first_turns),
            "uses": self.tree.find(hash_texts(list(chain.from_iterable(batch.images)))),
            **more,
        }

    def _enter_template_rows(self, group: TemplateRows, block: Block, file: str, split: str) -> dict[str, Ints]:
        """Columns of rows with one template."""
        template, num_rows = group.template, len(group.lines)
        self._check_template_labels(group, block, file, split)
        texts = np.zeros(num_rows, np.int64)
        units = np.zeros(num_rows, np.int64)
        for turn, (user, answer) in enumerate(zip(template.users, template.answers, strict=True)):
            texts += _turn_hashes(group.hashes(user), group.hashes(answer), turn, template.num_images[turn])
            units += group.lengths(user) + group.lengths(answer)
        more = {}
        if template.system is not None:
            texts += group.optional_hashes(template.system)
            units += group.lengths(template.system)
        if template.group is not None:
            more["groups"] = group.optional_hashes(template.group)
        return {
            "lines": group.lines + block.first_line,
            "offsets": group.starts + block.offset,
            "ids": group.hashes(template.id),
            "texts": texts,
            "units": units,
            "num_turns": np.full(num_rows, len(template.users), np.int64),
            "num_uses": np.full(num_rows, len(template.images), np.int64),
            "uses": self.tree.find(group.hashes(list(template.images)).T.reshape(-1)),
            **more,
        }

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

    def _check_weights(self, batch: Batch, file: str) -> None:
        for position, row in enumerate(batch.rows):
            if position not in batch.bad and all(turn.weight == 0 for turn in row.conversations):
                report_nothing_trained(self.findings, len(row.conversations), _place(batch, position, file))

    def _check_rejected(self, batch: Batch, file: str) -> None:
        for position, row in enumerate(batch.rows):
            if position not in batch.bad and row.rejected is not UNSET:
                check_rejected(self.findings, row.rejected, _place(batch, position, file))

    def _check_text(self, row: Row, place: dict[str, Any]) -> None:
        """Control tokens where the model would read them, invalid characters anywhere."""
        prompt = [] if row.system is UNSET else [("system", row.system)]
        for index, turn in enumerate(row.conversations):
            prompt.append((f"conversations[{index}].user", turn.user))
            prompt.append((f"conversations[{index}].assistant", turn.assistant))
        prompt += row.new_texts()
        for field, text in prompt:
            found = self.markers.find(text)
            if found is not None:
                token, own = found
                self.findings.add(
                    "control-token",
                    f"the text contains {shown(token)}, "
                    + ("which the model reads as a control token" if own else "a marker of another model or format"),
                    **place,
                    field=field,
                    severity="error" if own else "warning",
                    hint="remove it" if own else "remove it: the model reads it as plain text; images go into 'images'",
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
                self.findings.add("invalid-text", f"the text contains {problem}", **place, field=field)

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

    def _check_template_labels(self, group: TemplateRows, block: Block, file: str, split: str) -> None:
        """As `_check_labels`, over the different answers only."""
        labels = self.labels[split]
        if labels is None and not self.classes:
            return
        answer = group.template.answers[-1]
        _, first, which, counts = np.unique(
            group.hashes(answer), return_index=True, return_inverse=True, return_counts=True
        )
        different = [group.text(answer, position) for position in first.tolist()]
        if labels is not None:
            self._add_labels(split, Counter(dict(zip(different, counts.tolist(), strict=True))))
        if not self.classes or self.classes.issuperset(different):
            return
        unknown = np.array([bool(label) and label not in self.classes for label in different])
        for position in np.flatnonzero(unknown[which]).tolist():
            place = {
                "file": file,
                "line": int(group.lines[position]) + block.first_line,
                "id": group.text(group.template.id, position),
            }
            self._report_label(different[which[position]], len(group.template.answers) - 1, place)

    def _report_label(self, label: str, turn: int, place: dict[str, Any]) -> None:
        near = (
            difflib.get_close_matches(label[:200], self.classes, 1) if self.findings.has_room("label-unknown") else []
        )
        self.findings.add(
            "label-unknown",
            f"the answer {shown(label)} is not among the {len(self.classes)} class names of dataset.json",
            **place,
            field=f"conversations[{turn}].assistant",
            hint=f"did you mean {shown(near[0])}?" if near else "",
        )


def merge_rows(entries: list[dict[str, Ints]]) -> dict[str, Ints]:
    """Columns of several entries as one, in order of lines."""
    if len(entries) == 1:
        return entries[0]
    if any("groups" in entry for entry in entries):
        entries = [{"groups": np.zeros(len(entry["ids"]), np.int64), **entry} for entry in entries]
    columns = {name: np.concatenate([entry[name] for entry in entries]) for name in entries[0]}
    order = np.argsort(columns["lines"], kind="stable")
    uses, num_uses = columns.pop("uses"), columns["num_uses"]
    columns = {name: column[order] for name, column in columns.items()}
    moved = columns["num_uses"]
    begins = (np.cumsum(num_uses) - num_uses)[order]
    position = np.arange(len(uses)) - np.repeat(np.cumsum(moved) - moved, moved)
    return {**columns, "uses": uses[np.repeat(begins, moved) + position]}


def _turn_hashes(users: Ints, answers: Ints, turn: "int | Ints", num_images: "int | Ints") -> Ints:
    """The part of a turn in the hash of a row's texts: question, answer, index, number of images."""
    result: Ints = (pair_hashes(users, answers) * _MIX + num_images) * (2 * turn + 3)
    return result


def _row_hashes(batch: Batch, users: Ints, answers: Ints, first_turns: Ints) -> Ints:
    """Hash of a row's texts, turn by turn, with the number of images in each."""
    position = np.arange(len(users)) - np.repeat(first_turns, batch.num_turns)
    hashes = _turn_hashes(users, answers, position, batch.num_images)
    hashes = sum_turns(hashes, batch.num_turns, first_turns)
    if (new := batch.new_texts()) is not None:
        hashes = hashes + _hash_optional(["\0".join(chain.from_iterable(texts)) for texts in new]) * np.int64(5)
    systems = batch.column("system")
    return hashes if systems is None else hashes + _hash_optional(systems)


def _hash_optional(texts: list[Any]) -> Ints:
    """Hashes of texts, 0 for those left out or empty."""
    given = [text or "" for text in texts]
    hashes = hash_texts(given)
    hashes[[not text for text in given]] = 0
    return hashes


def _place(batch: Batch, position: int, file: str) -> dict[str, Any]:
    return {"file": file, "line": int(batch.lines[position]), "id": batch.rows[position].id or None}
