"""The whole validation of a directory, from its file names to the report."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, Unpack

from phi3v_data.engine.base import Engine, EngineSettings
from phi3v_data.engine.make_engine import FEW, local_workers, open_engine
from phi3v_data.errors import UserError
from phi3v_data.messages import shown
from phi3v_data.remote.address import is_remote, spelled
from phi3v_data.schema import Level, Report, Summary
from phi3v_data.shards.view import data_directory
from phi3v_data.tokens.choose import ChosenModel, choose_model, with_image_options
from phi3v_data.tokens.registry import family_version, get_family, load_families
from phi3v_data.validate import receipt, tokens
from phi3v_data.validate.batch import text_bytes
from phi3v_data.validate.collector import paused_collector
from phi3v_data.validate.control import control_tokens
from phi3v_data.validate.findings import Findings
from phi3v_data.validate.foreign import refuse_foreign
from phi3v_data.validate.image_digests import image_digests
from phi3v_data.validate.images import ImageTable, report_orphans
from phi3v_data.validate.layout import report_empty, report_labels, report_stale
from phi3v_data.validate.rows import RowScan
from phi3v_data.validate.stats import collect_stats
from phi3v_data.validate.survey import Progress, Survey, report_repeats

Keep: TypeAlias = Callable[[ImageTable], None]


def validate(
    directory: str | Path,
    *,
    level: Level = "full",
    num_crops: int | None = None,
    image_options: Mapping[str, int] | None = None,
    max_tokens: int | None = None,
    model: str | Path | None = None,
    tokenizer: str | Path | None = None,
    strict: bool = False,
    workers: int | None = 1,
    max_problems: int = 1000,
    progress: Progress | None = None,
    use_receipt: bool = True,
    fresh: bool = False,
    **engine: Unpack[EngineSettings],
) -> Report:
    """Check everything that a training run relies on, and name all that is wrong.

    Level `quick` reads every row and the header of every image. It leaves out what needs pixels: damage behind the
    header, frames of an animation in formats that do not announce them, images that are equal or similar under
    different names. Level `full` decodes every image once.

    Args:
        num_crops: tile budget for token counts; else that of `dataset.json`, else the family's default (16).
        image_options: other options of images by name (`max_pixels`, `min_pixels`, `longest_edge`).
        max_tokens: longest sequence that training takes; longer samples are `too-long`.
        model: the model family (`phi3v`, `phi3v_data.tokens.registry`) or a model directory. It decides image tokens
            and special strings; a directory's tokenizer counts text unless `tokenizer` names another.
        tokenizer: directory with a `tokenizer.json`, for exact text tokens; else they are estimated. Without `model`,
            the family is that of this directory's config.json, else phi3v.
        strict: `ok` is false with a warning, too.
        workers: processes that decode images, and that read JSONL files of over 32 MB; None: one per core. For images,
            more than 1 starts new interpreters, so a script must call this under `if __name__ == "__main__":`.
        max_problems: findings listed of each code; all are counted.
        progress: called as `progress(stage, done, total)`, stage `rows` (in bytes) or `images`.
        use_receipt: take what an earlier run found of unchanged files from `DIR/.phi3v`, and leave the same there; of
            images also during the run, so that one that was killed is resumed.
        fresh: take nothing from there, but leave it.
        engine: images are decoded and compared there (`EngineSettings`); rows are read on this machine in any case.

    Raises:
        NotFoundError: the directory, the model or the tokenizer is not there.
        UserError: the directory cannot be listed, or has files of another tool instead; the tokenizer belongs to
            another family than the model.
        BudgetError: `num_crops` is not one that the family takes (also a ValueError).
    """
    chosen = choose_model(model, tokenizer)
    family, budget = with_image_options(chosen.family, num_crops, image_options)
    chosen = replace(chosen, family=family)
    if not is_remote(directory):
        refuse_foreign(Path(directory))
    run = _Run(Path(directory), level, max_problems, progress, chosen)
    clock, obstacle, keep = None, OSError(), None
    if use_receipt:
        try:
            clock = receipt.read_clock(run.directory)  # before anything is looked at
        except OSError as error:
            obstacle = error
    try:
        run.open(budget)
    except UserError:
        receipt.remove_empty_folders(run.directory)
        raise
    choices = {
        **run.identity,
        "max_tokens": max_tokens,
        "tokenizer": None if chosen.tokenizer is None else tokens.tokenizer_identity(chosen.tokenizer),
        "max_problems": max_problems,
        **({"settings": "defaults"} if chosen.without_settings is not None else {}),
    }
    if use_receipt:
        state = run.survey.state()
        known = None if fresh else receipt.load_report(run.directory, state, choices)
        if known is not None:
            return known.model_copy(update={"ok": _is_ok(known, strict), "dir": spelled(run.given)})
        if clock is not None:
            keep = partial(_keep, run, clock, state)
    with paused_collector(), open_engine(workers, few=FEW, **engine) as opened:
        report = run.check(max_tokens, local_workers(workers, **engine), opened, use_receipt and not fresh, keep)
    if use_receipt:
        try:
            if clock is None:
                raise obstacle
            receipt.save(run.directory, clock, state, choices, report, run.tree, run.images)
        except OSError as error:
            report = run.without_receipt(report, error)
    return report.model_copy(update={"ok": _is_ok(report, strict)})


def _keep(run: "_Run", clock: receipt.Clock, state: receipt.State, images: ImageTable) -> None:
    """Leave what is known of the images in the middle of a run; if that fails, the receipt at the end says why."""
    with suppress(OSError):
        receipt.save_images(run.directory, clock, state, run.tree, images)


def fresh_report(
    directory: str | Path,
    *,
    num_crops: int | None = None,
    image_options: Mapping[str, int] | None = None,
    model: str | Path | None = None,
) -> Report | None:
    """The report of an earlier run of level full for this model, if nothing has changed since; None if there is none.

    The run must have counted tokens with `num_crops` and `image_options`, where they are given.

    Raises NotFoundError, UserError as `validate`.
    """
    family, budget = with_image_options(choose_model(model, None).family, num_crops, image_options)
    run = _Run(Path(directory), "full", 0, None, ChosenModel(family))
    run.open(budget)
    return receipt.load_report(run.directory, run.survey.state(), run.identity)


class _Run:
    """State of one validation."""

    def __init__(
        self, directory: Path, level: Level, max_problems: int, progress: Progress | None, chosen: ChosenModel
    ) -> None:
        self.given = directory
        self.directory = data_directory(directory)
        self.level = level
        self.findings = Findings(max_problems)
        self.progress = progress
        self.chosen = chosen
        self.family = chosen.family

    def open(self, num_crops: int | None) -> None:
        self.survey = Survey(self.directory, self.findings, self.progress)
        self.layout, self.tree = self.survey.layout, self.survey.tree
        manifest = self.layout.manifest
        self.num_crops = self.family.choose_budget(num_crops, manifest.num_crops if manifest else None)
        families, problems = load_families()
        for problem in problems:
            self.findings.add(
                "check-skipped",
                f"markers of a model family are not looked for: {problem}",
                hint="repair or uninstall that package",
            )
        configured = self.family != get_family(self.family.name)
        self.identity: dict[str, Any] = {
            "level": self.level,
            "num_crops": self.num_crops,
            "image_digests": True,  # the report has them
            "model": family_version(self.family.name),
            "families": [family_version(family.name) for family in families],
            **({"settings": repr(self.family)} if configured else {}),
        }

    def check(
        self, max_tokens: int | None, workers: int, engine: Engine, use_receipt: bool, keep: Keep | None
    ) -> Report:
        findings, layout, survey, chosen = self.findings, self.layout, self.survey, self.chosen
        self.counter = None
        if chosen.tokenizer is not None:
            required = chosen.tokenizer_required
            self.counter = tokens.load_tokenizer(chosen.tokenizer, self.family, findings, required=required)
        tokens.report_settings(chosen, findings)
        survey.read_rows(self.counter or text_bytes, markers=control_tokens(self.family), workers=workers)
        self.table, scan = survey.table, survey.scan
        try:
            report_empty(layout, scan.num_lines, findings)
            report_stale(layout, scan.num_lines, self.table, findings, count_images=not self.tree.unreadable)
            report_labels(layout, scan.labels, findings)
            return self._check_images(scan, max_tokens, engine, use_receipt, keep)
        finally:
            self.table.close()

    def _check_images(
        self, scan: RowScan, max_tokens: int | None, engine: Engine, use_receipt: bool, keep: Keep | None
    ) -> Report:
        findings, tree, table, survey = self.findings, self.tree, self.table, self.survey
        pixels = self.level == "full"
        known = receipt.load_images(self.directory, tree) if use_receipt else receipt.blank(tree)
        survey.look(known, pixels=pixels, engine=engine, keep=keep)
        self.images = survey.images
        per_image = survey.report_images(self.family, self.num_crops)
        if not self.layout.unread:
            report_orphans(tree, survey.used, findings)
        exact = self.counter is not None
        lengths = tokens.row_tokens(table, tokens.text_tokens(table, self.family, self.counter), per_image)
        tokens.report_lengths(table, lengths, findings, self.family, max_tokens=max_tokens, exact=exact)
        report_repeats(table, tree, survey.images, findings, pixels=pixels, engine=engine)
        stats = collect_stats(
            table,
            survey.images,
            survey.used,
            lengths,
            per_image,
            scan.labels,
            model=self.family.name,
            num_crops=self.num_crops,
            exact_text=exact,
        )
        stats["image_digests"] = image_digests(table, tree, survey.images)
        return self._report(scan, int(survey.used.sum()), stats)

    def _report(self, scan: RowScan, num_images: int, stats: dict[str, Any]) -> Report:
        splits = {split: scan.num_lines.get(split, 0) for split in self.layout.splits.splits}
        return Report(
            dir=spelled(self.given),
            ok=self.findings.is_ok(),
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
            "the receipt could not be written, so the next run checks everything again: "
            f"{shown(error.strerror or str(error))}",
            hint="make the directory writable, or ignore this: nothing else depends on it",
        )
        summary = report.summary.model_copy(update={"problems": dict(sorted(self.findings.counts.items()))})
        return report.model_copy(update={"problems": self.findings.in_order(), "summary": summary})


def _is_ok(report: Report, strict: bool) -> bool:
    return report.ok and not (strict and any(found.severity == "warning" for found in report.problems))
