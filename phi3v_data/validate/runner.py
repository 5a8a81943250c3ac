"""The whole validation of a directory, from its file names to the report."""

from pathlib import Path
from typing import Any

import numpy as np

from phi3v_data.messages import shown
from phi3v_data.schema import Level, Report, Summary
from phi3v_data.tokens.phi3v_geometry import MAX_NUM_CROPS, check_num_crops
from phi3v_data.tokens.registry import default_family
from phi3v_data.validate import receipt, tokens
from phi3v_data.validate.batch import text_bytes
from phi3v_data.validate.findings import Findings
from phi3v_data.validate.images import report_orphans
from phi3v_data.validate.layout import report_empty, report_labels, report_stale
from phi3v_data.validate.rows import RowScan
from phi3v_data.validate.stats import collect_stats
from phi3v_data.validate.survey import Progress, Survey, paused_collector, report_repeats


def validate(
    directory: str | Path,
    *,
    level: Level = "full",
    num_crops: int | None = None,
    max_tokens: int | None = None,
    tokenizer: str | Path | None = None,
    strict: bool = False,
    workers: int = 1,
    max_problems: int = 1000,
    progress: Progress | None = None,
    use_receipt: bool = True,
    fresh: bool = False,
) -> Report:
    """Check everything that a training run relies on, and name all that is wrong.

    Level `quick` reads every row and the header of every picture. It leaves out what needs pixels: damage behind the
    header, frames of an animation in formats that do not announce them, pictures that are equal or alike under
    different names. Level `full` decodes every picture once.

    Args:
        num_crops: tile budget for token counts; else that of `dataset.json`, else 16.
        max_tokens: longest sequence that training takes; longer samples are `too-long`.
        tokenizer: directory with the model's `tokenizer.json`, for exact text tokens; else they are estimated.
        strict: `ok` is false with a warning, too.
        workers: processes that decode pictures, and that read JSONL files of over 32 MB. For pictures, more than 1
            starts new interpreters, so a script must call this under `if __name__ == "__main__":`.
        max_problems: findings listed of each code; all are counted.
        progress: called as `progress(stage, done, total)`, stage `rows` (in bytes) or `images`.
        use_receipt: take what an earlier run found of unchanged files from `DIR/.phi3v`, and leave the same there.
        fresh: take nothing from there, but leave it.

    Raises:
        NotFoundError: the directory or the tokenizer is not there.
        UserError: the directory cannot be listed.
        ValueError: `num_crops` out of range.
    """
    if num_crops is not None:
        check_num_crops(num_crops)
    run = _Run(Path(directory), level, max_problems, progress)
    clock, obstacle = None, OSError()
    if use_receipt:
        try:
            clock = receipt.read_clock(run.directory)  # before anything is looked at
        except OSError as error:
            obstacle = error
    run.open(num_crops, tokenizer)
    options = {
        "level": level,
        "num_crops": run.num_crops,
        "max_tokens": max_tokens,
        "tokenizer": None if tokenizer is None else receipt.content_digest(Path(tokenizer) / "tokenizer.json"),
        "max_problems": max_problems,
    }
    if use_receipt:
        state = run.survey.state()
        known = None if fresh else receipt.load_report(run.directory, state, options)
        if known is not None:
            return known.model_copy(update={"ok": _is_ok(known, strict)})
    with paused_collector():
        report = run.check(max_tokens, workers, use_receipt and not fresh)
    if use_receipt:
        try:
            if clock is None:
                raise obstacle
            receipt.save(run.directory, clock, state, options, report, run.tree, run.images)
        except OSError as error:
            report = run.without_receipt(report, error)
    return report.model_copy(update={"ok": _is_ok(report, strict)})


def fresh_report(directory: str | Path, *, num_crops: int | None = None) -> Report | None:
    """The report of an earlier run of level full, if nothing has changed since; None where there is none.

    With `num_crops`, the run must have counted tokens with that value. Raises NotFoundError, UserError as `validate`.
    """
    run = _Run(Path(directory), "full", 0, None)
    run.open(num_crops, None)
    options: dict[str, Any] = {"level": "full", "num_crops": run.num_crops}
    return receipt.load_report(run.directory, run.survey.state(), options)


class _Run:
    """What one validation holds."""

    def __init__(self, directory: Path, level: Level, max_problems: int, progress: Progress | None) -> None:
        self.directory = directory
        self.level = level
        self.findings = Findings(max_problems)
        self.progress = progress

    def open(self, num_crops: int | None, tokenizer: str | Path | None) -> None:
        self.survey = Survey(self.directory, self.findings, self.progress)
        self.layout, self.tree = self.survey.layout, self.survey.tree
        manifest = self.layout.manifest
        self.num_crops = num_crops or (manifest.num_crops if manifest else None) or MAX_NUM_CROPS
        self.counter = None if tokenizer is None else tokens.load_tokenizer(tokenizer, default_family(), self.findings)

    def check(self, max_tokens: int | None, workers: int, use_receipt: bool) -> Report:
        findings, layout, survey = self.findings, self.layout, self.survey
        survey.read_rows(self.counter or text_bytes, workers=workers)
        self.table, scan = survey.table, survey.scan
        try:
            report_empty(layout, scan.num_lines, findings)
            report_stale(layout, scan.num_lines, self.table, findings, count_images=not self.tree.unreadable)
            report_labels(layout, scan.labels, findings)
            return self._check_images(scan, max_tokens, workers, use_receipt)
        finally:
            self.table.close()

    def _check_images(self, scan: RowScan, max_tokens: int | None, workers: int, use_receipt: bool) -> Report:
        findings, tree, table, survey = self.findings, self.tree, self.table, self.survey
        pixels = self.level == "full"
        known = receipt.load_images(self.directory, tree) if use_receipt else receipt.blank(tree)
        survey.look(known, pixels=pixels, workers=workers)
        self.images = survey.images
        per_image = survey.report_pictures(self.num_crops)
        if not self.layout.unread:
            report_orphans(tree, survey.used, findings)
        exact = self.counter is not None
        text = table.units.astype(np.int64) if exact else tokens.estimate(table)
        lengths = tokens.row_tokens(table, text, per_image)
        tokens.report_lengths(table, lengths, findings, max_tokens=max_tokens, exact=exact)
        report_repeats(table, tree, survey.images, findings, pixels=pixels)
        stats = collect_stats(
            table,
            survey.images,
            survey.used,
            lengths,
            per_image,
            scan.labels,
            num_crops=self.num_crops,
            exact_text=exact,
        )
        return self._report(scan, int(survey.used.sum()), stats)

    def _report(self, scan: RowScan, num_images: int, stats: dict[str, Any]) -> Report:
        splits = {split: scan.num_lines.get(split, 0) for split in self.layout.splits.splits}
        return Report(
            dir=str(self.directory),
            ok=self.findings.is_ok(strict=False),
            level=self.level,
            summary=Summary(
                samples=sum(splits.values()),
                turns=int(self.table.num_turns.sum()),
                images=num_images,
                splits=splits,
                problems=dict(sorted(self.findings.counts.items())),
            ),
            problems=self.findings.in_order(),
            stats=stats,
        )

    def without_receipt(self, report: Report, error: OSError) -> Report:
        """The report with a word on the receipt that could not be left."""
        self.findings.add(
            "check-skipped",
            f"no receipt was left, so the next run checks everything again: {shown(error.strerror or str(error))}",
            hint="make the directory writable, or carry on: nothing else depends on it",
        )
        summary = report.summary.model_copy(update={"problems": dict(sorted(self.findings.counts.items()))})
        return report.model_copy(update={"problems": self.findings.in_order(), "summary": summary})


def _is_ok(report: Report, strict: bool) -> bool:
    return report.ok and not (strict and any(found.severity == "warning" for found in report.problems))
