"""A report as one HTML file that opens anywhere, offline: pictures, styles and script are inside it.

The data travel as JSON in a block that browsers do not run, with `<` escaped, and the page's script puts them on the
screen as text only; a content security policy allows that one script, by its hash, and no request to anywhere. So
nothing that stands in a row can run.
"""

import base64
import hashlib
import html
import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from phi3v_data.dataset import Dataset
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.jsonl import BOM, Line, read_line_at
from phi3v_data.problems import PROBLEMS
from phi3v_data.report.charts import make_charts
from phi3v_data.report.console import count_severities, verdict
from phi3v_data.report.gallery import (
    Candidate,
    Collected,
    Place,
    collect,
    parse_row,
    row_turns,
    shorten,
    turn_images,
)
from phi3v_data.report.thumbnails import MAX_PER_SAMPLE, Thumbnailer, count_shown
from phi3v_data.schema import Diagnostic, Report, Severity
from phi3v_data.splits import split_sort_key

MAX_LISTED = 1000
"""Findings of one code on the page."""

MAX_LISTED_IN_ALL = 20_000
MAX_TEXT = 2000
MAX_TURNS = 40
MAX_META = 40

Progress = Callable[[str, int, int | None], None]


def write_html(report: Report, directory: str | Path, target: str | Path, *, progress: Progress | None = None) -> None:
    """Write the page to `target`, aside first; `directory` is read for rows and pictures.

    Raises:
        UserError: `target` cannot be written.
    """
    path = Path(target)
    check_target(path)
    page = make_html(report, directory, progress=progress)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_bytes(page)
        os.replace(aside, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        aside.unlink(missing_ok=True)


def check_target(path: Path) -> None:
    """Make the folder of a page, so that a wrong path shows before the work and not after it.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file for the page")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path}: cannot be written (no permission in {path.parent})")


def make_html(report: Report, directory: str | Path, *, progress: Progress | None = None) -> bytes:
    """The page of a report."""
    dataset = _open(Path(directory))
    found = collect(dataset, report) if dataset else Collected()
    payload = _Page(report, dataset, found, progress or (lambda stage, done, total: None)).payload()
    parts = files("phi3v_data.report").joinpath("page")
    style = parts.joinpath("page.css").read_text(encoding="utf-8")
    script = parts.joinpath("page.js").read_text(encoding="utf-8")
    fields = {
        "title": html.escape(f"{payload['name']}: validation report"),
        "style": style,
        "style_hash": _digest(style),
        "script": script,
        "script_hash": _digest(script),
        "data": json.dumps(payload, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    page = parts.joinpath("page.html").read_text(encoding="utf-8")
    pieces = page.split("{{")
    text = pieces[0] + "".join(fields[name] + rest for name, rest in (piece.split("}}", 1) for piece in pieces[1:]))
    return text.encode("utf-8", "backslashreplace")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _open(directory: Path) -> Dataset | None:
    try:
        return Dataset(directory, strict=False)
    except NotFoundError:
        return None


class _Page:
    """Builds the data of the page; `payload` is what `page.js` reads."""

    def __init__(self, report: Report, dataset: Dataset | None, found: Collected, progress: Progress) -> None:
        self.report = report
        self.dataset = dataset
        self.found = found
        self.progress = progress
        self.severities: dict[str, Severity] = {}
        for problem in report.problems:
            known = self.severities.get(problem.code, problem.severity)
            self.severities[problem.code] = min(known, problem.severity, key=("error", "warning", "info").index)
        for code in report.summary.problems:
            self.severities.setdefault(code, PROBLEMS[code].severity if code in PROBLEMS else "error")
        self.images: list[list[Any]] = []
        self.image_numbers: dict[str, int] = {}
        self.rows: list[str] = []
        self.row_numbers: dict[Place, int] = {}
        self.sample_numbers = {candidate.place: n for n, candidate in enumerate(found.samples)}
        self.by_place: dict[Place, list[Diagnostic]] = {place: [] for place in self.sample_numbers}
        for problem in report.problems:
            if problem.line and (place := Place(problem.file, problem.line)) in self.by_place:
                self.by_place[place].append(problem)

    def payload(self) -> dict[str, Any]:
        """Everything, in the page's own short names."""
        report, manifest = self.report, self.dataset.manifest if self.dataset else None
        name = manifest.name if manifest else ""
        totals = count_severities(report, self.severities)
        samples = self.samples()
        return {
            "name": name or Path(os.path.abspath(report.dir)).name or report.dir,
            "ok": report.ok,
            "verdict": str(verdict(report, self.severities)).partition(": ")[2],
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
            "footer": f"phi3v-data validate, level {report.level}. Self-contained: this page loads nothing.",
        }

    def gallery_note(self, samples: Sequence[Mapping[str, Any]]) -> str:
        """How the samples shown were chosen."""
        if len(samples) >= self.report.summary.samples:
            return "Every sample of the directory."
        ill = sum(bool(sample["problems"]) for sample in samples)
        return (
            f"{len(samples):,} of {self.report.summary.samples:,} samples: {ill:,} with problems, then a choice spread "
            "over splits and labels, the same on every run."
        )

    def problems(self) -> list[dict[str, Any]]:
        """Findings by code, worst first, each with its row where the page has room for it."""
        by_code: dict[str, list[Diagnostic]] = {code: [] for code in self.report.summary.problems}
        for problem in self.report.problems:
            by_code.setdefault(problem.code, []).append(problem)
        order = sorted(by_code, key=lambda code: (("error", "warning", "info").index(self.severities[code]), code))
        room = max(1, min(MAX_LISTED, MAX_LISTED_IN_ALL // max(1, len(order))))
        return [
            {
                "code": code,
                "severity": self.severities[code],
                "count": self.report.summary.problems.get(code, len(by_code[code])),
                "title": _title(code),
                "help": _help(code),
                "list": [self.finding(problem) for problem in by_code[code][:room]],
            }
            for code in order
        ]

    def finding(self, problem: Diagnostic) -> dict[str, Any]:
        """One finding, its row by number."""
        place = Place(problem.file, problem.line or 0)
        row = -1
        if place in self.found.rows:
            row = self.row_numbers.setdefault(place, len(self.rows))
            if row == len(self.rows):
                self.rows.append(self.found.rows[place])
        return {**_words(problem), "row": row, "s": self.sample_numbers.get(place, -1)}

    def samples(self) -> list[dict[str, Any]]:
        """The gallery, its rows read again one by one."""
        if self.dataset is None:
            return []
        read = [self.read(candidate) for candidate in self.found.samples]
        wanted = count_shown([sum(len(turn_images(turn)) for turn in row_turns(row)) for row, _ in read])
        thumbnailer = Thumbnailer(self.dataset.directory, wanted)
        result = []
        for n, (candidate, (row, text)) in enumerate(zip(self.found.samples, read, strict=True)):
            result.append(self.sample(candidate, row, text, thumbnailer))
            self.progress("gallery", n + 1, len(read))
        return result

    def read(self, candidate: Candidate) -> tuple[Mapping[str, Any] | None, str]:
        """A row and its text."""
        assert self.dataset is not None
        descriptor = os.open(self.dataset.directory / candidate.place.file, os.O_RDONLY)
        try:
            data = read_line_at(descriptor, candidate.offset).removeprefix(BOM)
        finally:
            os.close(descriptor)
        return parse_row(Line(data, candidate.place.line, candidate.offset)), shorten(data)

    def sample(
        self, candidate: Candidate, row: Mapping[str, Any] | None, text: str, thumbnailer: Thumbnailer
    ) -> dict[str, Any]:
        """One sample of the gallery; whatever is not as it should be is shown as it is, or left out."""
        problems = self.by_place[candidate.place]
        row = row or {}
        turns, left = [], MAX_PER_SAMPLE
        for turn in row_turns(row)[:MAX_TURNS]:
            names = turn_images(turn)
            numbers = [self.image(name, thumbnailer) for name in names[:left]]
            left -= len(numbers)
            turns.append(
                {
                    "u": _text(turn.get("user")),
                    "a": _text(turn.get("assistant")),
                    "i": numbers,
                    "o": _offsets(turn.get("image_offsets")),
                    "more": len(names) - len(numbers),
                }
            )
        answers, meta = row.get("answers"), row.get("meta")
        return {
            "id": _text(row.get("id"))[:200],
            "split": candidate.split,
            "label": candidate.label,
            "at": f"{candidate.place.file}:{candidate.place.line}",
            "source": _text(row.get("source"))[:200],
            "system": _text(row.get("system")),
            "answers": [_text(answer) for answer in answers[:20]] if isinstance(answers, list) else [],
            "group": _text(row.get("group"))[:200],
            "meta": [[key[:200], _text(value)[:400]] for key, value in list(meta.items())[:MAX_META]]
            if isinstance(meta, dict)
            else [],
            "turns": turns,
            "problems": sorted({problem.code for problem in problems}),
            "found": [_words(problem) for problem in problems[:20]],
            "raw": text if problems else "",
        }

    def image(self, name: str, thumbnailer: Thumbnailer) -> int:
        """Number of an image on the page."""
        number = self.image_numbers.setdefault(name, len(self.images))
        if number == len(self.images):
            thumbnail = thumbnailer.make(name)
            self.images.append([name[:400], thumbnail.width, thumbnail.height, thumbnail.uri, thumbnail.reason])
        return number


def _words(problem: Diagnostic) -> dict[str, Any]:
    where = f"{problem.file or '.'}{f':{problem.line}' if problem.line else ''}"
    return {
        "at": where,
        "id": problem.id or "",
        "field": problem.field or "",
        "msg": problem.message[:MAX_TEXT],
        "hint": problem.hint[:MAX_TEXT],
    }


def _text(value: object) -> str:
    """Any JSON value as text of bounded length."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text):,} characters in all)"


def _offsets(value: object) -> list[int]:
    if not isinstance(value, list) or not all(type(offset) is int for offset in value):
        return []
    return value[:MAX_PER_SAMPLE]


def _title(code: str) -> str:
    return PROBLEMS[code].title if code in PROBLEMS else ""


def _help(code: str) -> list[list[str]]:
    """What the catalogue says, as (head, text)."""
    if code not in PROBLEMS:
        return []
    problem = PROBLEMS[code]
    return [["What", problem.what], ["Why it matters", problem.why], ["How to mend it", problem.fix]]
