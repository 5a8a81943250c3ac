"""Writes a valid copy of a set, and a list of what was left out and why.

Rows with errors of the validator are left out (`removed.jsonl` lists each with its code): first rows with problems of
their own, then rows that repeat or leak others. The rest is copied unchanged.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from phi3v_data.choices import ImageMode
from phi3v_data.engine.base import Engine, EngineSettings
from phi3v_data.engine.make_engine import FEW, open_engine
from phi3v_data.errors import UserError
from phi3v_data.files import open_regular
from phi3v_data.jsonl import encode_line
from phi3v_data.media.formats import UnreadableImageError
from phi3v_data.problems import PROBLEMS
from phi3v_data.schema import ConverterInfo, Diagnostic, Manifest, Severity
from phi3v_data.sets.fix import Fixes, fixed_image
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
from phi3v_data.sets.writing import SetResult, Stage, check_places, make_set
from phi3v_data.tokens.choose import choose_model, with_image_options
from phi3v_data.tokens.family import TokenFamily
from phi3v_data.tokens.registry import DEFAULT
from phi3v_data.validate.badrow import load_row
from phi3v_data.validate.batch import text_bytes
from phi3v_data.validate.collector import paused_collector
from phi3v_data.validate.control import control_tokens
from phi3v_data.validate.findings import Findings
from phi3v_data.validate.images import used_images
from phi3v_data.validate.receipt import load_images
from phi3v_data.validate.survey import Survey, report_repeats
from phi3v_data.writing.publish import REJECTS, REMOVED
from phi3v_data.writing.request import StoreName

VERSION = "1"

_MAX_REMOVED = 1 << 16
"""Bytes of a line of `removed.jsonl` that are read at once; its lines are shorter."""

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
    image_options: Mapping[str, int] | None = None,
    model: str | Path | None = None,
    images: ImageMode = ImageMode.link,
    store: StoreName = "files",
    overwrite: bool = False,
    workers: int | None = 1,
    progress: Progress | None = None,
    **engine: Unpack[EngineSettings],
) -> SetResult:
    """Copy the valid rows of a directory; the copy validates without errors.

    Args:
        model: model family or model directory for which rows are valid, as in `validate`.
        fix: fix what is unambiguous (`phi3v_data.sets.fix`) instead of leaving it out or as it is.
        drop: codes of warnings whose rows are also left out, such as `duplicate-sample`.
        engine: images are decoded and compared there (`EngineSettings`).

    Raises:
        NotFoundError: no such directory or model.
        UserError: a code is unknown, or no row is valid.
        BudgetError: `num_crops` is not one that the family takes (also a ValueError).
    """
    for code in drop:
        if code not in DROPPABLE:
            raise UserError(f"--drop {code}: not a code of a warning about a row; it can be {', '.join(DROPPABLE)}")
    source = Path(directory)
    target = check_places(Path(out_dir), [source])
    progress = progress or (lambda stage, done, total: None)
    with paused_collector(), open_engine(workers, few=FEW, **engine) as opened:
        family, budget = with_image_options(choose_model(model, None).family, num_crops, image_options)
        work = _Clean(source, fix, frozenset(drop), family, budget, image_options or {}, opened, progress)
        identity = {
            "command": "clean",
            "version": VERSION,
            "options": work.options,
            "input": SourceSet(work.survey, work.name).identity(),
        }
        return make_set(target, identity, work.build, name=work.name, images=images, store=store, overwrite=overwrite)


def count_removed(out_dir: Path) -> Counter[str]:
    """Number of rows in `removed.jsonl` of a cleaned set, by code."""
    removed: Counter[str] = Counter()
    try:
        with open_regular(out_dir / REMOVED) as file:
            while line := file.readline(_MAX_REMOVED):
                with suppress(ValueError, TypeError, KeyError):  # a directory from elsewhere may have any file there
                    entry = json.loads(line)
                    if entry["line"] and entry["code"] in PROBLEMS:
                        removed[entry["code"]] += 1
    except OSError:  # none was left out, or the file is not ours
        return Counter()
    return removed


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
        """Count a finding, and keep it if its row is to be left out."""
        severity = severity or PROBLEMS[code].severity
        self.count(code, severity=severity)
        if severity == "error" or code in self.drop:
            file = place.get("file", "")
            self.decisive.append(Diagnostic(code=code, severity=severity, message=message, **{**place, "file": file}))


class _Clean:
    """Cleans one directory."""

    def __init__(
        self,
        directory: Path,
        fix: bool,
        drop: frozenset[str],
        family: TokenFamily,
        budget: int | None,
        image_options: Mapping[str, int],
        engine: Engine,
        progress: Progress,
    ) -> None:
        self.family = family
        self.image_options = dict(image_options)
        self.fix = fix
        self.drop = drop
        self.engine = engine
        self.progress = progress
        self.findings = RowFindings(drop)
        self.survey = Survey(directory, self.findings, progress)
        refuse_closed(self.survey)
        self.name = set_name(self.survey)
        manifest = self.survey.layout.manifest
        self.num_crops = self.family.choose_budget(budget, manifest.num_crops if manifest else None)
        self.fixes = Fixes(self.survey)

    @property
    def options(self) -> dict[str, Any]:
        """The options that determine which rows are left out."""
        model = {"model": self.family.name} if self.family.name != DEFAULT else {}
        return {"fix": self.fix, "drop": sorted(self.drop), "num_crops": self.num_crops, **model, **self.image_options}

    def build(self, stage: Stage) -> Manifest:
        """Find problems, leave out or fix, and write the copy."""
        survey = self.survey
        survey.read_rows(text_bytes, markers=control_tokens(self.family))
        try:
            refuse_closed(survey)
            if self.fix:
                self.fixes.correct_paths()
            survey.look(load_images(survey.directory, survey.tree), pixels=True, engine=self.engine)
            refuse_closed_images(survey)
            survey.report_images(self.family, self.num_crops)
            keep = self.keep_valid(self.findings.decisive, np.ones(len(survey.table), np.bool_))
            keep = self.keep_unrelated(keep)
            if not keep.any():
                raise UserError(
                    f"{survey.directory}: none of its rows is valid, so nothing was written; "
                    f"`phi3v-data validate {survey.directory}` reports the problems"
                )
            survey.used = used_images(survey.table.subset(keep), survey.tree)
            if self.fix:
                self.fixes.plan()
            self.write(stage, keep)
            reasons = self.write_removed(stage)
            self.place(stage)
        finally:
            survey.table.close()
        self.note(stage)
        return self.manifest(stage, reasons)

    def keep_valid(self, found: Sequence[Diagnostic], keep: Flags) -> Flags:
        """`keep` without the rows of these findings."""
        keep = keep.copy()
        for row in self.rows_of(found):
            if row is not None:
                keep[row] = False
        return keep

    def rows_of(self, found: Sequence[Diagnostic]) -> list[int | None]:
        """The table's row of each finding; None if the line is not a row, or the finding has no line."""
        table = self.survey.table
        bounds = {file: (first, end) for file, (_, first, end) in zip(table.files, table.split_rows(), strict=True)}
        result: list[int | None] = []
        for each in found:
            first, end = bounds.get(each.file, (0, 0))
            row = first + int(np.searchsorted(table.lines[first:end], each.line)) if each.line else end
            result.append(row if row < end and table.lines[row] == each.line else None)
        return result

    def keep_unrelated(self, keep: Flags) -> Flags:
        """`keep` without rows that repeat or leak others that are kept."""
        survey = self.survey
        known = len(self.findings.decisive)
        part = survey.table.subset(keep)
        try:
            report_repeats(part, survey.tree, survey.images, self.findings, pixels=True, engine=self.engine)
        finally:
            part.close()
        found = self.findings.decisive[known:]
        self.findings.decisive += self.whole_groups(found, keep)
        return self.keep_valid(self.findings.decisive[known:], keep)

    def whole_groups(self, found: Sequence[Diagnostic], keep: Flags) -> list[Diagnostic]:
        """Add findings for all rows of a leaking group: `leak-group` is only reported at the first row of a split."""
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
        """Write the kept rows, with the names of fixed images."""
        table = self.survey.table
        row_splits = table.split_of_rows()
        changed = self.changed_rows()
        for row, line in table_lines(table):
            if not keep[row]:
                continue
            if changed[row]:
                value = load_row(line)
                self.fixes.correct_row(row, value)
                line = encode_line(value)[:-1]
            stage.write(table.splits[row_splits[row]], line, row_images(decode_row(line)))
            if row % 4096 == 0:
                self.progress("write", row, len(table))
        source = SourceSet(self.survey, self.name)
        stage.write_file(REJECTS, source.rejects())

    def changed_rows(self) -> Flags:
        """Rows with an image that has another name in the new set."""
        table = self.survey.table
        result = np.zeros(len(table), np.bool_)
        result[list(self.fixes.rows)] = True
        if self.fixes.names:
            uses = np.flatnonzero(np.isin(table.uses, list(self.fixes.names)))
            result[np.searchsorted(table.starts, uses, side="right") - 1] = True
        return result

    def write_removed(self, stage: Stage) -> Counter[str]:
        """Write one line for each row or file that was left out; return the reasons of rows."""
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
        """Link, copy or fix the images of kept rows."""
        source = SourceSet(self.survey, self.name)
        for entry in sorted(self.fixes.contents):
            try:
                stage.place_bytes(fixed_image(self.fixes.path(entry)), self.fixes.name(entry))
            except (UnreadableImageError, OSError) as error:
                self.fixes.contents.discard(entry)
                stage.notes.append(f"{self.survey.tree.path(entry)} could not be fixed and is unchanged: {error}")
        place_images(
            stage,
            source,
            self.progress,
            rename=lambda entry: None if entry in self.fixes.contents else self.fixes.name(entry),
        )

    def note(self, stage: Stage) -> None:
        """Add notes for the user, besides the numbers of the last line."""
        layout, counts = self.survey.layout, self.findings.counts
        if counts["manifest-invalid"]:
            stage.notes.append("dataset.json was not valid and was written again: task, metrics and classes are lost")
        for code in ("split-name", "shard-missing", "file-encoding"):
            if counts[code]:
                stage.notes.append(f"{counts[code]} {code}: files that are not, or not completely, in the new set")
        for split in layout.splits.splits:
            if split not in stage.splits(layout.is_labelled):
                stage.notes.append(f"split {split} has no valid rows and was left out")
        if not self.fix and counts["image-name-mismatch"]:
            stage.notes.append("--fix corrects the letter case of paths instead of leaving the rows out")

    def manifest(self, stage: Stage, reasons: Counter[str]) -> Manifest:
        """The manifest with the counts of what was left out and fixed."""
        layout = self.survey.layout
        old = layout.manifest or Manifest(name=self.name, task="chat", splits={})
        fixed = {f"mended-{code}": count for code, count in self.fixes.counts.items()}
        return old.model_copy(
            update={
                "format": stage.format,
                "splits": stage.splits(layout.is_labelled),
                "rejects": dict(sorted((Counter(old.rejects) + reasons).items())),
                "notes": dict(sorted((Counter(old.notes) + Counter(fixed)).items())),
                "history": (*old.history, ConverterInfo(name="clean", version=VERSION, options=self.options)),
            }
        )
