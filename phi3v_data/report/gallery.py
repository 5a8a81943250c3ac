"""Which samples a report shows: one pass over the rows, in memory that does not grow with their number.

Samples with problems come first (errors before warnings, the codes in turn, so that each is seen), then a choice that
is spread over splits and labels and is the same on every run: the rows of each with the smallest hashes.
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
"""A set with more distinct last answers has free text for answers, not labels."""

MAX_LABEL_LENGTH = 80
MAX_QUOTED_ROWS = 4000
"""Rows that are quoted beside the findings about them."""

MAX_ROW_CHARS = 1200
"""Of a longer row the report quotes the beginning."""

_SEED = 335
_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a row stands."""

    file: str
    line: int


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """One row of the gallery; `offset` is its first byte in the file."""

    place: Place
    split: str
    label: str
    offset: int


@dataclass(slots=True)
class Collected:
    """What the pass over the rows found. `labels` is empty where answers are free text."""

    samples: list[Candidate] = field(default_factory=list)
    rows: dict[Place, str] = field(default_factory=dict)  # text of the rows that findings point at
    turns: Counter[int] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)
    labels: dict[str, Counter[str]] = field(default_factory=dict)  # split -> label -> rows


class _Strata:
    """Keeps, for each split and label and for the whole, the rows with the smallest hashes.

    Labels are forgotten once there are too many to be labels.
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
        """Offer a row."""
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
        """One row of each stratum, then a second of each, and so on; at last those of the whole."""
        queues = [sorted(heap, reverse=True) for _, heap in sorted(self._heaps.items())]
        for depth in range(max(map(len, queues), default=0)):
            for queue in queues:
                if depth < len(queue):
                    yield queue[depth][1]
        for _, candidate in sorted(self._all, reverse=True):
            yield candidate


def collect(dataset: Dataset, report: Report, *, limit: int = MAX_SAMPLES) -> Collected:
    """Read all rows once and choose what to show."""
    found = Collected()
    classes = frozenset(dataset.manifest.classes) if dataset.manifest else frozenset()
    quoted = set(places_in_turn(report.problems, MAX_QUOTED_ROWS, ("error", "warning", "info")))
    first = dict.fromkeys(places_in_turn(report.problems, limit, ("error", "warning")))
    held: dict[Place, Candidate] = {}
    strata = _Strata(limit)
    for split, files in dataset.files.items():
        for file in files:
            for line in _lines(dataset.directory / file):
                place = Place(file, line.number)
                row = parse_row(line)
                turns = row_turns(row)
                label = row_label(turns, classes)
                if row is not None:
                    found.turns[len(turns)] += 1
                    found.images[sum(len(turn_images(turn)) for turn in turns)] += 1
                    strata.count(split, label)
                candidate = Candidate(place, split, label, line.offset)
                if place in quoted:
                    found.rows[place] = shorten(line.data)
                if place in first:
                    held[place] = candidate
                elif row is not None:
                    strata.add(candidate, line.data)
    chosen = {place: held[place] for place in first if place in held}
    for candidate in strata.in_turn():
        if len(chosen) >= limit:
            break
        chosen.setdefault(candidate.place, candidate)
    found.samples = list(chosen.values())
    if strata.labelled:
        found.labels = dict(strata.counts)
    else:
        found.samples = [replace(candidate, label="") for candidate in found.samples]
    return found


def parse_row(line: Line) -> Mapping[str, Any] | None:
    """The object that a line holds; None where it holds none."""
    if line.too_long:
        return None
    try:
        value = _decode(line.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def places_in_turn(problems: Sequence[Diagnostic], limit: int, severities: Sequence[Severity]) -> list[Place]:
    """Rows with findings of these severities, in this order, the codes in turn; at most `limit`."""
    chosen: dict[Place, None] = {}
    for severity in severities:
        queues: dict[str, list[Place]] = defaultdict(list)
        for problem in problems:
            if problem.severity == severity and problem.line:
                queues[problem.code].append(Place(problem.file, problem.line))
        depth = 0
        while len(chosen) < limit and any(depth < len(queue) for queue in queues.values()):
            for code in sorted(queues):
                if depth < len(queues[code]) and len(chosen) < limit:
                    chosen[queues[code][depth]] = None
            depth += 1
    return list(chosen)


def row_turns(row: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The turns of a row that may be wrong in any way: those that are objects."""
    turns = row.get("conversations") if row else None
    return [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []


def turn_images(turn: Mapping[str, Any]) -> list[str]:
    """The image paths of a turn that may be wrong in any way: those that are text."""
    images = turn.get("images")
    return [name for name in images if isinstance(name, str)] if isinstance(images, list) else []


def row_label(turns: Sequence[Mapping[str, Any]], classes: frozenset[str]) -> str:
    """The last answer where it can serve as a label: a class, or short text where no classes are named."""
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
    return f"{text[:MAX_ROW_CHARS]} … ({len(line):,} bytes in all)"


def _lines(path: Path) -> Iterator[Line]:
    """The lines that are not blank, a byte order mark left out."""
    try:
        for line in read_lines(path):
            if line.number == 1 and line.data.startswith(BOM):
                line = Line(line.data[len(BOM) :], 1, len(BOM), line.too_long)
            if line.data.strip():
                yield line
    except OSError:
        return  # the validator has said so: a file that cannot be read is a problem of its own
