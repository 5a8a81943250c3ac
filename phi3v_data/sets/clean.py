"""A sound copy of a set, and a list of what was left out and why.

What the validator calls an error is left out row by row (`removed.jsonl` has each with its code), first what is wrong
with a row itself, then what only shows between the rows that are left. The rest is copied as it stands.
"""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phi3v_data.errors import UserError
from phi3v_data.jsonl import encode_line
from phi3v_data.media.formats import UnreadableImageError
from phi3v_data.problems import PROBLEMS
from phi3v_data.schema import ConverterInfo, Diagnostic, Manifest, Severity
from phi3v_data.sets.fix import Mends, fixed_image
from phi3v_data.sets.place_images import place_images
from phi3v_data.sets.reading import (
    Progress,
    SourceSet,
    decode_row,
    refuse_closed,
    refuse_closed_images,
    row_images,
    set_name,
    table_lines,
)
from phi3v_data.sets.writing import ImageMode, SetResult, Stage, check_places, make_set
from phi3v_data.tokens.registry import default_family
from phi3v_data.validate.badrow import load_row
from phi3v_data.validate.findings import Findings
from phi3v_data.validate.images import used_images
from phi3v_data.validate.receipt import load_images
from phi3v_data.validate.survey import Survey, paused_collector, report_repeats
from phi3v_data.writing.publish import REJECTS, REMOVED

VERSION = "1"

DROPPABLE = (
    "control-token",
    "duplicate-sample",
    "image-animated",
    "image-format-mismatch",
    "image-mode",
    "image-only-turn",
    "image-orientation",
    "leak-group",
    "leak-image",
    "leak-near-image",
    "leak-sample",
)
"""Codes that can be warnings about a row."""

Flags = npt.NDArray[np.bool_]


def clean_set(
    directory: str | Path,
    out_dir: str | Path,
    *,
    fix: bool = False,
    drop: Collection[str] = (),
    num_crops: int | None = None,
    images: ImageMode = ImageMode.link,
    overwrite: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> SetResult:
    """Copy what is sound of a directory; the copy validates without an error.

    Args:
        fix: mend what needs no guessing (`phi3v_data.sets.mend`) instead of leaving it out or as it is.
        drop: codes of warnings whose rows are left out as well, such as `duplicate-sample`.

    Raises:
        UserError: an unknown code, or no row is sound.
    """
    for code in drop:
        if code not in DROPPABLE:
            raise UserError(f"--drop {code}: no code of a warning about a row; it can be {', '.join(DROPPABLE)}")
    source = Path(directory)
    target = check_places(Path(out_dir), [source])
    progress = progress or (lambda stage, done, total: None)
    with paused_collector():
        work = _Clean(source, fix, frozenset(drop), num_crops, workers, progress)
        identity = {
            "command": "clean",
            "version": VERSION,
            "options": work.options,
            "input": SourceSet(work.survey, work.name).identity(),
        }
        return make_set(target, identity, work.build, name=work.name, images=images, overwrite=overwrite)


def count_removed(out_dir: Path) -> Counter[str]:
    """Rows that `removed.jsonl` of a cleaned set lists, by code."""
    try:
        entries = list(map(json.loads, (out_dir / REMOVED).read_bytes().splitlines()))
    except FileNotFoundError:
        return Counter()
    return Counter(entry["code"] for entry in entries if entry["line"])


class RowFindings(Findings):
    """Keeps every finding that leaves a row out, and counts the others."""

    def __init__(self, drop: Collection[str]) -> None:
        super().__init__(1)
        self.drop = drop
        self.decisive: list[Diagnostic] = []

    @property
    def wants_each(self) -> bool:
        """Whether each occurrence must be added, even if one finding could summarize them."""
        return True

    def has_room(self, code: str) -> bool:
        """Whether findings of this code can matter."""
        return PROBLEMS[code].severity == "error" or code in self.drop

    def add(self, code: str, message: str, *, severity: Severity | None = None, **place: Any) -> None:
        """Count a finding, and keep it where it is an error or to be dropped."""
        severity = severity or PROBLEMS[code].severity
        self.count(code, severity=severity)
        if severity == "error" or code in self.drop:
            file = place.get("file", "")
            self.decisive.append(Diagnostic(code=code, severity=severity, message=message, **{**place, "file": file}))


class _Clean:
    """One cleaning of a directory."""

    def __init__(
        self,
        directory: Path,
        fix: bool,
        drop: frozenset[str],
        num_crops: int | None,
        workers: int,
        progress: Progress,
    ) -> None:
        self.fix = fix
        self.drop = drop
        self.workers = workers
        self.progress = progress
        self.findings = RowFindings(drop)
        self.survey = Survey(directory, self.findings, progress)
        refuse_closed(self.survey)
        self.name = set_name(self.survey)
        manifest = self.survey.layout.manifest
        self.family = default_family()
        self.num_crops = self.family.choose_budget(num_crops, manifest.num_crops if manifest else None)
        self.mends = Mends(self.survey)

    @property
    def options(self) -> dict[str, Any]:
        """What decides which rows are left out."""
        return {"fix": self.fix, "drop": sorted(self.drop), "num_crops": self.num_crops}

    def build(self, stage: Stage) -> Manifest:
        """Find, leave out, mend, write."""
        survey = self.survey
        survey.read_rows()
        try:
            refuse_closed(survey)
            if self.fix:
                self.mends.correct_paths()
            survey.look(load_images(survey.directory, survey.tree), pixels=True, workers=self.workers)
            refuse_closed_images(survey)
            survey.report_images(self.family, self.num_crops)
            keep = self.keep_sound(self.findings.decisive, np.ones(len(survey.table), np.bool_))
            keep = self.keep_unrelated(keep)
            if not keep.any():
                raise UserError(
                    f"{survey.directory}: not one of its rows is sound, so nothing was written; "
                    f"`phi3v-data validate {survey.directory}` says what is wrong with them"
                )
            survey.used = used_images(survey.table.subset(keep), survey.tree)
            if self.fix:
                self.mends.plan()
            self.write(stage, keep)
            reasons = self.write_removed(stage)
            self.place(stage)
        finally:
            survey.table.close()
        self.note(stage)
        return self.manifest(stage, reasons)

    def keep_sound(self, found: Sequence[Diagnostic], keep: Flags) -> Flags:
        """Without the rows that findings point at."""
        keep = keep.copy()
        for row in self.rows_of(found):
            if row is not None:
                keep[row] = False
        return keep

    def rows_of(self, found: Sequence[Diagnostic]) -> list[int | None]:
        """The table's row at each finding; None where the line is no row, or the finding is of no line."""
        table = self.survey.table
        bounds = {file: (first, end) for file, (_, first, end) in zip(table.files, table.split_rows(), strict=True)}
        result: list[int | None] = []
        for each in found:
            first, end = bounds.get(each.file, (0, 0))
            row = first + int(np.searchsorted(table.lines[first:end], each.line)) if each.line else end
            result.append(row if row < end and table.lines[row] == each.line else None)
        return result

    def keep_unrelated(self, keep: Flags) -> Flags:
        """Without the rows that repeat or leak others that are kept."""
        survey = self.survey
        known = len(self.findings.decisive)
        part = survey.table.subset(keep)
        try:
            report_repeats(part, survey.tree, survey.images, self.findings, pixels=True)
        finally:
            part.close()
        found = self.findings.decisive[known:]
        self.findings.decisive += self.whole_groups(found, keep)
        return self.keep_sound(self.findings.decisive[known:], keep)

    def whole_groups(self, found: Sequence[Diagnostic], keep: Flags) -> list[Diagnostic]:
        """A `leak-group` names the first row of a split; all others of the group there leak as well."""
        table = self.survey.table
        splits = table.split_of_rows()
        more = []
        leaking = [each for each in found if each.code == "leak-group"]
        for each, row in zip(leaking, self.rows_of(leaking), strict=True):
            assert row is not None
            others = np.flatnonzero((table.groups == table.groups[row]) & (splits == splits[row]) & keep)
            more += [each.model_copy(update=table.place(other)) for other in others.tolist() if other != row]
        return more

    def write(self, stage: Stage, keep: Flags) -> None:
        """Write the kept rows, with the names of mended pictures."""
        table = self.survey.table
        row_splits = table.split_of_rows()
        changed = self.changed_rows()
        for row, line in table_lines(table):
            if not keep[row]:
                continue
            if changed[row]:
                value = load_row(line)
                self.mends.correct_row(row, value)
                line = encode_line(value)[:-1]
            stage.write(table.splits[row_splits[row]], line, row_images(decode_row(line)))
            if row % 4096 == 0:
                self.progress("write", row, len(table))
        source = SourceSet(self.survey, self.name)
        stage.write_file(REJECTS, source.rejects())

    def changed_rows(self) -> Flags:
        """Rows that name a picture otherwise than the new set does."""
        table = self.survey.table
        result = np.zeros(len(table), np.bool_)
        result[list(self.mends.rows)] = True
        if self.mends.names:
            uses = np.flatnonzero(np.isin(table.uses, list(self.mends.names)))
            result[np.searchsorted(table.starts, uses, side="right") - 1] = True
        return result

    def write_removed(self, stage: Stage) -> Counter[str]:
        """One line for each row or file that was left out; returns the reasons of rows."""
        by_place: dict[tuple[str, int], list[Diagnostic]] = {}
        for each in self.findings.decisive:
            by_place.setdefault((each.file, each.line or 0), []).append(each)
        reasons: Counter[str] = Counter()
        lines = []
        for (file, line), found in sorted(by_place.items()):
            first = found[0]
            entry: dict[str, Any] = {
                "file": file,
                "line": line or None,
                "id": first.id,
                "code": first.code,
                "field": first.field,
                "message": first.message,
            }
            if more := sorted({each.code for each in found} - {first.code}):
                entry["also"] = more
            lines.append(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            reasons[first.code] += bool(line)
        stage.write_file(REMOVED, b"".join(lines))
        return +reasons

    def place(self, stage: Stage) -> None:
        """Bring in the pictures of kept rows, mended or as they are."""
        source = SourceSet(self.survey, self.name)
        for entry in sorted(self.mends.contents):
            try:
                stage.place_bytes(fixed_image(self.mends.path(entry)), self.mends.name(entry))
            except (UnreadableImageError, OSError) as error:
                self.mends.contents.discard(entry)
                stage.notes.append(f"{self.survey.tree.path(entry)} could not be mended and is as it was: {error}")
        place_images(
            stage,
            source,
            self.progress,
            rename=lambda entry: None if entry in self.mends.contents else self.mends.name(entry),
        )

    def note(self, stage: Stage) -> None:
        """What a person should know besides the numbers of the last line."""
        layout, counts = self.survey.layout, self.findings.counts
        if counts["manifest-invalid"]:
            stage.notes.append("dataset.json was not valid and was written anew: task, metrics and classes are lost")
        for code in ("split-name", "shard-missing", "file-encoding"):
            if counts[code]:
                stage.notes.append(f"{counts[code]} {code}: files that are not, or not wholly, in the new set")
        for split in layout.splits.splits:
            if split not in stage.splits(layout.is_labelled):
                stage.notes.append(f"split {split} has no sound row and was left out")
        if not self.fix and counts["image-name-mismatch"]:
            stage.notes.append("--fix corrects the letter case of paths instead of leaving the rows out")

    def manifest(self, stage: Stage, reasons: Counter[str]) -> Manifest:
        """The manifest with what was left out and mended."""
        layout = self.survey.layout
        old = layout.manifest or Manifest(name=self.name, task="chat", splits={})
        mended = {f"mended-{code}": count for code, count in self.mends.counts.items()}
        return old.model_copy(
            update={
                "splits": stage.splits(layout.is_labelled),
                "rejects": dict(sorted((Counter(old.rejects) + reasons).items())),
                "notes": dict(sorted((Counter(old.notes) + Counter(mended)).items())),
                "history": (*old.history, ConverterInfo(name="clean", version=VERSION, options=self.options)),
            }
        )
