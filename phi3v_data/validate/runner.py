"""The whole validation of a directory, from its file names to the report."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from phi3v_data.dataset import MANIFEST
from phi3v_data.jsonl import Block
from phi3v_data.media.geometry import MAX_NUM_CROPS, check_num_crops
from phi3v_data.schema import Level, Report, Summary
from phi3v_data.validate import receipt, tokens
from phi3v_data.validate.findings import Findings, escaped, shown
from phi3v_data.validate.images import ImageReport, check_images, report_orphans, used_images
from phi3v_data.validate.layout import (
    Layout,
    file_digest,
    read_layout,
    report_empty,
    report_labels,
    report_stale,
)
from phi3v_data.validate.leaks import ImageLeaks
from phi3v_data.validate.pixels import PixelIdentity
from phi3v_data.validate.repeats import report_duplicate_ids, report_repeated_samples, report_straddling_groups
from phi3v_data.validate.rows import RowScan
from phi3v_data.validate.stats import collect_stats
from phi3v_data.validate.table import RowTable
from phi3v_data.validate.tree import ImageTree

Progress = Callable[[str, int, int], None]


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
        workers: processes that decode pictures. More than 1 starts new interpreters, so a script must call this under
            `if __name__ == "__main__":`.
        max_problems: findings listed of each code; all are counted.
        progress: called as `progress(stage, done, total)`, stage `rows` (in bytes) or `images`.
        use_receipt: take what an earlier run found of unchanged files from `DIR/.phi3v`, and leave the same there.

    Raises:
        NotFoundError: the directory or the tokenizer is not there.
        UserError: the directory cannot be listed.
        ValueError: `num_crops` out of range.
    """
    if num_crops is not None:
        check_num_crops(num_crops)
    run = _Run(Path(directory), level, max_problems, progress)
    run.open(num_crops, tokenizer)
    options = {
        "level": level,
        "num_crops": run.num_crops,
        "max_tokens": max_tokens,
        "tokenizer": None if tokenizer is None else receipt.content_digest(Path(tokenizer) / "tokenizer.json"),
        "max_problems": max_problems,
    }
    if use_receipt:
        state = run.state()
        known = receipt.load_report(run.directory, state, options)
        if known is not None:
            return known.model_copy(update={"ok": _is_ok(known, strict)})
    with _paused_collector():
        report = run.check(max_tokens, workers, use_receipt)
    if use_receipt:
        try:
            receipt.save(run.directory, state, options, report, run.tree, run.images)
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
    return receipt.load_report(run.directory, run.state(), options)


class _Run:
    """What one validation holds."""

    def __init__(self, directory: Path, level: Level, max_problems: int, progress: Progress | None) -> None:
        self.directory = directory
        self.level = level
        self.findings = Findings(max_problems)
        self.progress = progress

    def open(self, num_crops: int | None, tokenizer: str | Path | None) -> None:
        self.layout: Layout = read_layout(self.directory, self.findings)
        manifest = self.layout.manifest
        self.num_crops = num_crops or (manifest.num_crops if manifest else None) or MAX_NUM_CROPS
        self.counter = None if tokenizer is None else tokens.load_tokenizer(tokenizer, self.findings)
        self.tree = ImageTree(self.directory / "images")
        for folder, reason in self.tree.unreadable:
            self.findings.add(
                "check-skipped",
                f"the folder cannot be read ({reason}): the files in it count as missing",
                file=f"images/{escaped(folder)}".rstrip("/"),
            )

    def state(self) -> receipt.State:
        files = [file for split in self.layout.splits.splits.values() for file in split.files]
        digests = {file: receipt.content_digest(self.directory / file) for file in files}
        if (self.directory / MANIFEST).exists():
            digests[MANIFEST] = receipt.content_digest(self.directory / MANIFEST)
        names = [*files, *self.layout.splits.unnamed]
        return receipt.State(
            {escaped(file): digest for file, digest in digests.items()},
            sorted(map(escaped, names)),
            receipt.tree_digest(self.tree),
            receipt.checker_version(),
        )

    def check(self, max_tokens: int | None, workers: int, use_receipt: bool) -> Report:
        findings, layout, tree = self.findings, self.layout, self.tree
        self.table = table = RowTable(self.directory)
        classes = frozenset(layout.manifest.classes if layout.manifest else ())
        scan = RowScan(table, tree, findings, self.counter or tokens.text_bytes, classes)
        try:
            self._scan_files(scan)
            table.finish()
            report_empty(layout, scan.num_lines, findings)
            report_stale(layout, scan.num_lines, table, findings)
            report_labels(layout, scan.labels, findings)
            report_duplicate_ids(table, findings)
            return self._check_images(scan, max_tokens, workers, use_receipt)
        finally:
            table.close()

    def _scan_files(self, scan: RowScan) -> None:
        files = [(split.split, file) for split in self.layout.splits.splits.values() for file in split.files]
        sizes = {file: _size(self.directory / file) for _, file in files}
        total, done = sum(sizes.values()), 0
        bytes(8 << 20)  # freed at once: from then on glibc keeps blocks of this size instead of mapping each anew

        def observe(block: Block) -> None:
            if self.progress is not None:
                self.progress("rows", done + block.offset + block.length, total)

        for split, file in files:
            try:
                scan.scan(file, split, labelled=self.layout.is_labelled(split), observe=observe)
                if self.layout.wants_digest(split, file):
                    self.layout.digests[file] = file_digest(self.directory / file)
            except OSError as error:
                self.findings.add(
                    "shard-missing",
                    f"the file cannot be read: {error.strerror or error}",
                    file=file,
                    hint="make it a readable file",
                )
            done += sizes[file]

    def _check_images(self, scan: RowScan, max_tokens: int | None, workers: int, use_receipt: bool) -> Report:
        findings, tree, table = self.findings, self.tree, self.table
        pixels = self.level == "full"
        used = used_images(table, tree)
        self.images = images = receipt.load_images(self.directory, tree) if use_receipt else receipt.blank(tree)
        check_images(tree, used, images, pixels=pixels, workers=workers, progress=self.progress)
        image_report = ImageReport(table, tree, images, findings)
        image_report.report()
        report_orphans(tree, used, findings)
        per_image = tokens.image_tokens(images, self.num_crops)
        tokens.report_aspect(image_report, tree, table, per_image, self.num_crops)
        exact = self.counter is not None
        text = table.units.astype(np.int64) if exact else tokens.estimate(table)
        lengths = tokens.row_tokens(table, text, per_image)
        tokens.report_lengths(table, lengths, findings, max_tokens=max_tokens, exact=exact)
        identity = PixelIdentity(tree, images, pixels=pixels)
        report_repeated_samples(table, identity, findings)
        report_straddling_groups(table, findings)
        leaks = ImageLeaks(table, tree, identity, image_report, findings)
        leaks.report_same()
        if pixels:
            leaks.report_near()
        stats = collect_stats(
            table,
            images,
            used,
            lengths,
            per_image,
            scan.labels,
            num_crops=self.num_crops,
            exact_text=exact,
        )
        return self._report(scan, int(used.sum()), stats)

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


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


@contextmanager
def _paused_collector() -> Iterator[None]:
    """Rows hold no cycles, and looking for some among millions of them takes longer than reading them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
