"""One evaluation or prediction from files to files: what `phi3v-train eval` and `predict` do."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3v_train.data.model_settings import ModelNote, model_notes
from phi3v_train.data.sources import Source
from phi3v_train.distributed.agreement import Fact, Facts
from phi3v_train.distributed.facts import compute_facts, data_facts, package_facts, setting_facts
from phi3v_train.distributed.group import make_group
from phi3v_train.distributed.rank_errors import report_rank_errors
from phi3v_train.distributed.rank_info import RankInfo
from phi3v_train.evaluation.choose_metrics import Choice
from phi3v_train.evaluation.evaluate import Evaluator, Progress
from phi3v_train.evaluation.identity import images_identity, make_identity, model_identity
from phi3v_train.evaluation.predictions import PREDICTIONS, PredictionFolder
from phi3v_train.evaluation.records import Prediction
from phi3v_train.evaluation.result import write_scores
from phi3v_train.evaluation.subject import Subject
from phi3v_train.models.directory import ModelFiles
from phi3v_train.models.loading import load_model, load_processor
from phi3v_train.models.machine import Compute, choose_compute
from phi3v_train.models.registry import make_renderer
from phi3v_train.precision import Precision
from phi3v_train.settings import Settings


@dataclass(frozen=True)
class Job:
    """Everything that is known before weights are loaded."""

    settings: Settings
    evaluator: Evaluator
    choice: Choice | None
    files: ModelFiles
    processor: Any
    compute: Compute
    folder: PredictionFolder

    @property
    def source(self) -> Source:
        """The split."""
        return self.evaluator.source

    def notes(self) -> list[ModelNote]:
        """Every difference among model, dataset and options; each row is checked."""
        origin = self.settings.budget_origin(self.source.num_crops_from)
        return model_notes(
            self.files,
            self.processor,
            [(self.source, origin)],
            compute=self.compute,
            longest=max(spec.num_tokens for spec in self.evaluator.specs),
        )


def prepare(settings: Settings, subject: Subject, output_dir: Path, *, progress: Progress | None = None) -> Job:
    """Choose how to compute, and check every row; no weights are loaded.

    Args:
        settings: of model, evaluation and data.
        subject: see `find_subject`.
        output_dir: where predictions go.
        progress: called as `progress(stage, done, total)`.

    Raises:
        UserError: whatever would stop the evaluation later and can be seen now.
    """
    config = settings.config
    source, choice, files = subject.source, subject.choice, subject.files
    compute = choose_compute(config.model)
    processor = load_processor(files, budget=source.num_crops, options=config.model.image_options)
    evaluator = Evaluator(
        source,
        make_renderer(files.family, processor),
        config.eval,
        metrics=choice.metrics if choice else (),
        num_workers=config.data.num_workers,
        progress=progress,
    )
    if choice:
        evaluator.check()
    identity = make_identity(
        source,
        config.eval,
        model=model_identity(files, seed=config.optim.seed),
        dtype=compute.dtype.value,
        rows=evaluator.num_rows,
    )
    if RankInfo.from_environment().is_main:  # which alone compares it
        identity["data"]["images"] = images_identity(source, evaluator.num_rows)
    return Job(settings, evaluator, choice, files, processor, compute, PredictionFolder(output_dir, identity))


@dataclass(frozen=True)
class Outcome:
    """Predictions, what `eval.json` holds where they were scored, and the files written, by name.

    All are empty on other processes than the main one.
    """

    records: list[Prediction]
    result: dict[str, Any]
    files: dict[str, Path]


def facts_of(job: Job) -> Facts:
    """Facts that all processes of an evaluation must agree on."""
    identity = job.folder.identity
    return {
        **dict(setting_facts(job.settings.config)),
        **dict(compute_facts(job.compute)),
        "--model_name_or_path": Fact(identity["model"]),
        **dict(data_facts("evaluation data", [identity["data"]])),
        **dict(package_facts(job.settings.config)),
    }


def run_job(job: Job, *, overwrite: bool = False, with_loss: bool = False) -> Outcome:
    """Predict what the folder does not hold yet, score, write; a folder that is complete needs no model.

    Raises:
        UserError: the folder holds another evaluation, or generation failed.
    """
    import torch

    rank_info = RankInfo.from_environment()
    kind = job.compute.device.value
    device = torch.device(kind, rank_info.local_rank) if kind == "cuda" else torch.device(kind)
    with ExitStack() as stack:
        if rank_info.is_main:
            stack.enter_context(job.folder.lock())
            job.folder.begin(overwrite=overwrite)
        group = stack.enter_context(make_group(rank_info, device, lambda: facts_of(job)))
        stack.enter_context(report_rank_errors(group))
        model = None
        if with_loss or not group.broadcast(job.folder.is_complete):
            model = load_model(job.files, job.compute, seed=job.settings.config.optim.seed)
            job.files.family.match_processor(model, job.processor)
        precision = Precision(job.compute.dtype.value, kind)
        evaluator = job.evaluator
        files = {"predictions": job.folder.path / PREDICTIONS}
        if job.choice is None:
            records = evaluator.predict(model, job.folder, precision=precision, group=group)
            return Outcome(records, {}, files if rank_info.is_main else {})
        records, result = evaluator.evaluate(
            model,
            job.folder,
            model_name=job.files.name,
            step=None,
            precision=precision,
            group=group,
            with_loss=with_loss,
        )
        if not rank_info.is_main:
            return Outcome([], {}, {})
        return Outcome(records, result, {**files, **write_scores(records, result, job.folder.path)})
