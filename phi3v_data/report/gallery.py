"""Selects the samples that a report shows, in one pass over the rows and in memory independent of their number.

Samples with problems come first (errors before warnings, round-robin over the codes), then a selection spread over
splits and labels that is the same on every run: the rows of each with the smallest hashes.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from phi3v_data.dataset import Dataset
from phi3v_data.jsonl import BOM, Line, read_lines
from phi3v_data.schema import Diagnostic, Report, Severity

MAX_SAMPLES = 500
MAX_LABELS = 1000
"""With more distinct last answers than this, the answers of a set are free text, not labels."""

MAX_LABEL_LENGTH = 80
MAX_QUOTED_ROWS = 4000
"""Rows quoted next to the findings about them."""

MAX_ROW_CHARS = 1200
"""The report quotes only the beginning of a longer row."""

_SEED = 335
_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True, order=True)
class RowLocation:
    """File and line of a row."""

    file: str
    line: int


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """One row of the gallery; `offset` is its first byte in the file."""

    location: RowLocation
    split: str
    label: str
    offset: int


@dataclass(slots=True)
class Collected:
    """Result of the pass over the rows. `labels` is empty if answers are free text."""

    samples: list[Candidate] = field(default_factory=list)
    rows: dict[RowLocation, str] = field(default_factory=dict)  # text of the rows that findings point at
    turns: Counter[int] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)
    labels: dict[str, Counter[str]] = field(default_factory=dict)  # split -> label -> rows


class _Strata:
    """Keeps the rows with the smallest hashes, for each split and label and over all rows.

    Labels are dropped once there are too many of them.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.labelled = True
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self._heaps: dict[tuple[str, str], list[tuple[int, Candidate]]] = defaultdict(list)
        self._all: list[tuple[int, Candidate]] = []
        self._labels: set[str] = set()

    def count(self, split: str, label: str) -> None:
        """Count a label."""
        if self.labelled:
            self.counts[split][label] += 1
            self._labels.add(label)
            if len(self._labels) > MAX_LABELS:
                self._forget_labels()

    def add(self, candidate: Candidate, data: bytes) -> None:
        """Add a row if its hash is small enough."""
        entry = (-xxhash.xxh3_64_intdigest(data, seed=_SEED), candidate)
        label = candidate.label if self.labelled else ""
        self._push(self._heaps[candidate.split, label], entry, max(4, 2 * self.limit // len(self._heaps)))
        self._push(self._all, entry, self.limit)

    @staticmethod
    def _push(heap: list[tuple[int, Candidate]], entry: tuple[int, Candidate], room: int) -> None:
        if len(heap) < room:
            heapq.heappush(heap, entry)
        elif entry > heap[0]:
            heapq.heapreplace(heap, entry)

    def _forget_labels(self) -> None:
        self.labelled = False
        self.counts.clear()
        self._labels.clear()
        old, self._heaps = self._heaps, defaultdict(list)
        for (split, _), heap in sorted(old.items()):
            for entry in sorted(heap):
                self._push(self._heaps[split, ""], entry, 2 * self.limit)

    def in_turn(self) -> Iterator[Candidate]:
        """Yield one row of each stratum, then a second of each, and so on, and the rows over all strata last."""
        queues = [sorted(heap, reverse=True) for _, heap in sorted(self._heaps.items())]
        for depth in range(max(map(len, queues), default=0)):
            for queue in queues:
                if depth < len(queue):
                    yield queue[depth][1]
        for _, candidate in sorted(self._all, reverse=True):
            yield candidate


def collect(dataset: Dataset, report: Report, *, limit: int = MAX_SAMPLES) -> Collected:
    """Read all rows once and select the samples to show."""
    found = Collected()
    classes = frozenset(dataset.manifest.classes) if dataset.manifest else frozenset()
    quoted = set(locations_in_turn(report.problems, MAX_QUOTED_ROWS, ("error", "warning", "info")))
    first = dict.fromkeys(locations_in_turn(report.problems, limit, ("error", "warning")))
    held: dict[RowLocation, Candidate] = {}
    strata = _Strata(limit)
    for split, files in dataset.files.items():
        for file in files:
            for line in _lines(dataset.directory / file):
                location = RowLocation(file, line.number)
                row = parse_row(line)
                turns = row_turns(row)
                label = row_label(turns, classes)
                if row is not None:
                    found.turns[len(turns)] += 1
                    found.images[sum(len(turn_images(turn)) for turn in turns)] += 1
                    strata.count(split, label)
                candidate = Candidate(location, split, label, line.offset)
                if location in quoted:
                    found.rows[location] = shorten(line.data)
                if location in first:
                    held[location] = candidate
                elif row is not None:
                    strata.add(candidate, line.data)
    chosen = {location: held[location] for location in first if location in held}
    for candidate in strata.in_turn():
        if len(chosen) >= limit:
            break
        chosen.setdefault(candidate.location, candidate)
    found.samples = list(chosen.values())
    if strata.labelled:
        found.labels = dict(strata.counts)
    else:
        found.samples = [replace(candidate, label="") for candidate in found.samples]
    return found


def parse_row(line: Line) -> Mapping[str, Any] | None:
    """The JSON object of a line; None if it is not a JSON object."""
    if line.too_long:
        return None
    try:
        value = _decode(line.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def locations_in_turn(problems: Sequence[Diagnostic], limit: int, severities: Sequence[Severity]) -> list[RowLocation]:
    """At most `limit` rows with findings of these severities, in this order, round-robin over the codes."""
    chosen: dict[RowLocation, None] = {}
    for severity in severities:
        queues: dict[str, list[RowLocation]] = defaultdict(list)
        for problem in problems:
            if problem.severity == severity and problem.line:
                queues[problem.code].append(RowLocation(problem.file, problem.line))
        depth = 0
        while len(chosen) < limit and any(depth < len(queue) for queue in queues.values()):
            for code in sorted(queues):
                if depth < len(queues[code]) and len(chosen) < limit:
                    chosen[queues[code][depth]] = None
            depth += 1
    return list(chosen)


def row_turns(row: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The turns of a row that has not been validated: those that are objects."""
    turns = row.get("conversations") if row else None
    return [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []


def turn_images(turn: Mapping[str, Any]) -> list[str]:
    """The image paths of a turn that has not been validated: those that are strings."""
    images = turn.get("images")
    return [name for name in images if isinstance(name, str)] if isinstance(images, list) else []


def row_label(turns: Sequence[Mapping[str, Any]], classes: frozenset[str]) -> str:
    """The last answer if it can serve as a label (a class, or short text if the set names no classes), else empty."""
    answer = turns[-1].get("assistant") if turns else None
    if not isinstance(answer, str):
        return ""
    if classes:
        return answer if answer in classes else ""
    return answer if len(answer) <= MAX_LABEL_LENGTH and "\n" not in answer else ""


def shorten(line: bytes) -> str:
    """The text of a row as the report shows it."""
    text = line[: 4 * MAX_ROW_CHARS].decode("utf-8", "backslashreplace").lstrip("\ufeff")
    if len(text) <= MAX_ROW_CHARS and len(line) <= 4 * MAX_ROW_CHARS:
        return text
    return f"{text[:MAX_ROW_CHARS]} … ({len(line):,} bytes in total)"


def _lines(path: Path) -> Iterator[Line]:
    """Yield the lines that are not blank, without a byte order mark."""
    try:
        for line in read_lines(path):
            if line.number == 1 and line.data.startswith(BOM):
                line = Line(line.data[len(BOM) :], 1, len(BOM), line.too_long)
            if line.data.strip():
                yield line
    except OSError:
        return  # the validator has reported it: a file that cannot be read is a separate problem
