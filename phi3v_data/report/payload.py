"""The data of the page: findings, rows, samples and images, each within its share of the page's 30 MB."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from phi3v_data.dataset import Dataset
from phi3v_data.jsonl import BOM, Line, read_line_at
from phi3v_data.messages import counted
from phi3v_data.problems import PROBLEMS
from phi3v_data.report.charts import make_charts
from phi3v_data.report.console import count_kinds, count_severities, verdict
from phi3v_data.report.frame import to_script_json
from phi3v_data.report.gallery import (
    Candidate,
    Collected,
    RowLocation,
    parse_row,
    row_turns,
    shorten,
    turn_images,
)
from phi3v_data.report.thumbnails import MAX_PER_SAMPLE, Thumbnailer, count_shown
from phi3v_data.schema import Diagnostic, Report, Severity
from phi3v_data.splits import split_sort_key

FINDINGS_BYTES = 4_000_000
ROWS_BYTES = 2_500_000
SAMPLES_BYTES = 4_000_000

MAX_LISTED = 1000
"""Most findings of one code that the page lists."""

MAX_MESSAGE = 600
"""Longest message, hint or field, in characters."""

Progress: TypeAlias = Callable[[str, int, int | None], None]


def json_size(value: object) -> int:
    """Size of a value on the page, in bytes."""
    return len(to_script_json(value).encode("utf-8", "backslashreplace"))


class PagePayload:
    """Builds the data of the page; `make` returns what `page/report.js` reads."""

    def __init__(self, report: Report, dataset: Dataset | None, found: Collected, progress: Progress | None) -> None:
        self.report = report
        self.dataset = dataset
        self.found = found
        self.progress = progress or (lambda stage, done, total: None)
        self.rows_room = ROWS_BYTES
        self.severities: dict[str, Severity] = {}
        for problem in report.problems:
            known = self.severities.get(problem.code, problem.severity)
            self.severities[problem.code] = min(known, problem.severity, key=("error", "warning", "info").index)
        for code in report.summary.problems:
            self.severities.setdefault(code, PROBLEMS[code].severity if code in PROBLEMS else "error")
        self.images: list[list[Any]] = []
        self.image_numbers: dict[str, int] = {}
        self.rows: list[str] = []
        self.row_numbers: dict[RowLocation, int] = {}
        self.sample_numbers = {candidate.location: n for n, candidate in enumerate(found.samples)}
        self.by_location: dict[RowLocation, list[Diagnostic]] = {location: [] for location in self.sample_numbers}
        for problem in report.problems:
            if problem.line and (location := RowLocation(problem.file, problem.line)) in self.by_location:
                self.by_location[location].append(problem)

    def make(self) -> dict[str, Any]:
        """The data of the page, under its own short keys."""
        report, manifest = self.report, self.dataset.manifest if self.dataset else None
        folder = Path(os.path.abspath(report.dir)).name or report.dir  # a page may be passed on, so it contains no path
        name = manifest.name if manifest else ""
        totals = count_severities(report, self.severities)
        samples = self.samples()
        return {
            "name": name or folder,
            "ok": report.ok,
            "verdict": str(verdict(report.model_copy(update={"dir": folder}), self.severities)).partition(": ")[2],
            "counts": {
                "samples": report.summary.samples,
                "turns": report.summary.turns,
                "images": report.summary.images,
                **{severity: totals[severity] for severity in ("error", "warning", "info")},
            },
            "splits": sorted({*report.summary.splits, *(s["split"] for s in samples)}, key=split_sort_key),
            "charts": make_charts(report, self.found),
            "severity": self.severities,
            "problems": self.problems(),
            "rows": self.rows,
            "samples": samples,
            "images": self.images,
            "gallery_note": self.gallery_note(samples),
            "footer": f"phi3v-data validate, level {report.level}. This page is self-contained and loads nothing.",
        }

    def gallery_note(self, samples: Sequence[Mapping[str, Any]]) -> str:
        """How the samples shown were chosen."""
        if self.dataset is None:
            return "The gallery shows samples of a conversations directory only."
        if len(samples) >= self.report.summary.samples:
            return "Every sample of the directory."
        ill = sum(bool(sample["problems"]) for sample in samples)
        return (
            f"{len(samples):,} of {counted(self.report.summary.samples, 'sample')}: {ill:,} with problems, then a "
            "selection over splits and labels that is the same on every run."
        )

    def problems(self) -> list[dict[str, Any]]:
        """Findings by code and severity, the most severe first, each with its row if the page has room for it."""
        kinds = count_kinds(self.report, self.severities)
        by_kind: dict[tuple[str, Severity], list[Diagnostic]] = {kind: [] for kind in kinds}
        for problem in self.report.problems:
            by_kind[problem.code, problem.severity].append(problem)
        room = FINDINGS_BYTES // max(1, len(kinds))
        return [
            {
                "code": code,
                "severity": severity,
                "count": count,
                "title": _title(code),
                "help": _help(code),
                "list": self.findings(by_kind[code, severity], room),
            }
            for (code, severity), count in kinds.items()
        ]

    def findings(self, problems: Sequence[Diagnostic], room: int) -> list[dict[str, Any]]:
        """Findings of one code, as many as fit into `room` bytes."""
        result: list[dict[str, Any]] = []
        for problem in problems[:MAX_LISTED]:
            finding = self.finding(problem)
            room -= json_size(finding)
            if room < 0 and result:
                break
            result.append(finding)
        return result

    def finding(self, problem: Diagnostic) -> dict[str, Any]:
        """One finding, its row by number."""
        location = RowLocation(problem.file, problem.line or 0)
        return {**_words(problem), "row": self.row(location), "s": self.sample_numbers.get(location, -1)}

    def row(self, location: RowLocation) -> int:
        """Number of a quoted row; -1 if there is none, or no room for it."""
        if location not in self.row_numbers and location in self.found.rows:
            self.rows_room -= json_size(self.found.rows[location])
            if self.rows_room >= 0:
                self.row_numbers[location] = len(self.rows)
                self.rows.append(self.found.rows[location])
        return self.row_numbers.get(location, -1)

    def samples(self) -> list[dict[str, Any]]:
        """The samples of the gallery; their rows are read again one by one."""
        if self.dataset is None:
            return []
        read = [self.read(candidate) for candidate in self.found.samples]
        wanted = count_shown([sum(len(turn_images(turn)) for turn in row_turns(row)) for row, _ in read])
        thumbnailer = Thumbnailer(self.dataset.directory, wanted)
        result = []
        for n, (candidate, (row, text)) in enumerate(zip(self.found.samples, read, strict=True)):
            result.append(self.sample_within(SAMPLES_BYTES // len(read), candidate, row, text, thumbnailer))
            self.progress("gallery", n + 1, len(read))
        return result

    def read(self, candidate: Candidate) -> tuple[Mapping[str, Any] | None, str]:
        """A row and its text."""
        assert self.dataset is not None
        descriptor = os.open(self.dataset.directory / candidate.location.file, os.O_RDONLY)
        try:
            data = read_line_at(descriptor, candidate.offset).removeprefix(BOM)
        finally:
            os.close(descriptor)
        return parse_row(Line(data, candidate.location.line, candidate.offset)), shorten(data)

    def sample_within(
        self,
        room: int,
        candidate: Candidate,
        row: Mapping[str, Any] | None,
        text: str,
        thumbnailer: Thumbnailer,
    ) -> dict[str, Any]:
        """One sample of the gallery, its texts shortened until it fits into `room` bytes."""
        for limits in _LIMITS:
            sample = self.sample(candidate, row, text, thumbnailer, limits)
            if json_size(sample) <= room:
                break
        return sample

    def sample(
        self,
        candidate: Candidate,
        row: Mapping[str, Any] | None,
        text: str,
        thumbnailer: Thumbnailer,
        limits: "_Limits",
    ) -> dict[str, Any]:
        """One sample of the gallery; malformed values are shown as they are, or left out."""
        problems = self.by_location[candidate.location]
        row = row or {}
        cut = limits.cut
        turns, left = [], MAX_PER_SAMPLE
        for turn in row_turns(row)[: limits.turns]:
            names = turn_images(turn)
            numbers = [self.image(name, thumbnailer) for name in names[:left]]
            left -= len(numbers)
            turns.append(
                {
                    "u": cut(turn.get("user")),
                    "a": cut(turn.get("assistant")),
                    "i": numbers,
                    "o": _offsets(turn.get("image_offsets"))[: len(numbers)],
                    "more": len(names) - len(numbers),
                    **({} if turn.get("weight", 1) else {"w": 0}),
                    **({"t": steps} if (steps := _steps(turn.get("steps"), limits.items, cut)) else {}),
                }
            )
        answers, meta = row.get("answers"), row.get("meta")
        return {
            "id": cut(row.get("id"), 200),
            "split": candidate.split,
            "label": candidate.label,
            "at": f"{candidate.location.file}:{candidate.location.line}",
            "source": cut(row.get("source"), 200),
            "system": cut(row.get("system")),
            "answers": [cut(answer, 200) for answer in answers[: limits.items]] if isinstance(answers, list) else [],
            "group": cut(row.get("group"), 200),
            "meta": [[cut(key, 100), cut(value, 400)] for key, value in list(meta.items())[: limits.items]]
            if isinstance(meta, dict)
            else [],
            "turns": turns,
            **({"rejected": cut(row["rejected"])} if row.get("rejected") else {}),
            **({"tools": cut(row["tools"])} if row.get("tools") else {}),
            "problems": sorted({problem.code for problem in problems}),
            "found": [_words(problem) for problem in problems[: limits.items]],
            "raw": cut(text) if problems else "",
        }

    def image(self, name: str, thumbnailer: Thumbnailer) -> int:
        """Number of an image on the page."""
        number = self.image_numbers.setdefault(name, len(self.images))
        if number == len(self.images):
            thumbnail = thumbnailer.make(name)
            self.images.append([name[:200], thumbnail.width, thumbnail.height, thumbnail.uri, thumbnail.reason])
        return number


def _words(problem: Diagnostic) -> dict[str, Any]:
    where = f"{problem.file or '.'}{f':{problem.line}' if problem.line else ''}"
    return {
        "at": where,
        "id": problem.id or "",
        "field": (problem.field or "")[:MAX_MESSAGE],
        "msg": problem.message[:MAX_MESSAGE],
        "hint": problem.hint[:MAX_MESSAGE],
    }


@dataclass(frozen=True, slots=True)
class _Limits:
    """Limits on what is shown of one sample."""

    text: int
    turns: int
    items: int

    def cut(self, value: object, limit: int = 1 << 30) -> str:
        """A JSON value as text of bounded length."""
        if value is None:
            return ""
        try:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        except RecursionError:
            text = "(nested too deeply to show)"
        limit = min(limit, self.text)
        return text if len(text) <= limit else f"{text[:limit]} … ({len(text):,} characters in total)"


_LIMITS = (_Limits(4000, 40, 40), _Limits(800, 20, 20), _Limits(200, 6, 5), _Limits(60, 2, 1))


def _offsets(value: object) -> list[int]:
    if not isinstance(value, list) or not all(type(offset) is int for offset in value):
        return []
    return value[:MAX_PER_SAMPLE]


def _title(code: str) -> str:
    return PROBLEMS[code].title if code in PROBLEMS else ""


def _help(code: str) -> list[list[str]]:
    """The catalogue's entry as pairs (heading, text)."""
    if code not in PROBLEMS:
        return []
    problem = PROBLEMS[code]
    return [["What", problem.what], ["Why it matters", problem.why], ["How to fix it", problem.how_to_fix]]


def _steps(steps: object, limit: int, cut: Callable[[object], str]) -> list[list[str]]:
    """Calls of tools and their results, as kind and text."""
    found: list[list[str]] = []
    for step in steps if isinstance(steps, list) else ():
        for kind, key in (("call", "calls"), ("result", "results")):
            texts = step.get(key) if isinstance(step, dict) else None
            found += [[kind, cut(text)] for text in texts] if isinstance(texts, list) else []
    return found[:limit]
