"""The objects of a run on one process: data, model, engine and session, built as planned, before the first step.

`build_run` makes them in the order in which a mistake costs least: the data workers start, the processes meet and
compare what they were started with, the checkpoint is verified, and only then the model is loaded.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from phi3v_data.console import progress_bar
from phi3v_train.data.identity import data_identity
from phi3v_train.data.loader import TrainLoader
from phi3v_train.distributed.agreement import Fact, Facts
from phi3v_train.distributed.facts import run_facts
from phi3v_train.distributed.group import Group, make_group
from phi3v_train.distributed.rank_errors import RankErrors, report_rank_errors
from phi3v_train.distributed.rank_info import RankInfo
from phi3v_train.distributed.stopping import StopRequest
from phi3v_train.evaluation.during import RunEvaluation
from phi3v_train.evaluation.evaluate import Evaluator
from phi3v_train.evaluation.identity import model_identity
from phi3v_train.models.loading import load_base, model_without_weights
from phi3v_train.plan import Plan
from phi3v_train.precision import Precision
from phi3v_train.start import Start, refuse_other_start, resume_hint, verified_start
from phi3v_train.training.best import LOSS, BestTracker
from phi3v_train.training.loop import TrainLoop
from phi3v_train.training.methods import apply_method
from phi3v_train.training.parallel.engine import Engine
from phi3v_train.training.parallel.make_engine import first_device, make_engine
from phi3v_train.training.parallel.strategy import SINGLE
from phi3v_train.training.progress import ProgressLine
from phi3v_train.training.session import RunIdentity, Session
from phi3v_train.training.work import work_rates

if TYPE_CHECKING:
    from phi3v_train.training.session import Hook


@dataclass(frozen=True, slots=True)
class BuiltRun:
    """A run on this process, ready for its next step."""

    plan: Plan
    start: Start
    loader: TrainLoader
    ranks: RankErrors
    session: Session

    @property
    def engine(self) -> Engine:
        """The model that is trained, and its optimizer."""
        return self.session.engine


def build_run(plan: Plan, start: Start, stack: ExitStack, *, hooks: "Sequence[Hook]" = (), quiet: bool) -> BuiltRun:
    """Make everything that a run needs, and take up its checkpoint.

    Args:
        plan: what the run does.
        start: how it begins.
        stack: closes workers, group, signal handlers and the progress line when the caller leaves it.
        hooks: see `training.session.Hook`.
        quiet: no progress lines.

    Raises:
        UserError: the processes do not fit together, no checkpoint is complete, or the model cannot be loaded.
    """
    config = plan.config
    rank_info = RankInfo.from_environment()
    on_gpu = plan.compute.device.value == "cuda"
    device = torch.device("cuda", rank_info.local_rank) if on_gpu else torch.device(plan.compute.device.value)
    loader = stack.enter_context(make_loader(plan, rank_info.rank, rank_info.world_size, pin_memory=on_gpu))
    loader.start()
    group = stack.enter_context(make_group(rank_info, device, lambda: facts_of(plan, start)))
    ranks = stack.enter_context(report_rank_errors(group, lambda: resume_hint(config.output.output_dir)))
    request = stack.enter_context(StopRequest(is_main=group.is_main))
    refuse_other_start(group, start)
    start = verified_start(group, start, config)
    quiet = quiet or config.output.no_tqdm
    first_step = start.checkpoint.step if start.checkpoint is not None else 0
    progress = ProgressLine(plan.total_steps, start=first_step, quiet=quiet)
    stack.callback(progress.close)
    evaluation = make_evaluation(plan, progress, request, quiet=quiet) if plan.eval_source is not None else None
    engine = build_engine(plan, group)
    loop = TrainLoop(engine, config, total_steps=plan.total_steps, source_names=plan.source_names)
    session = Session(
        loop,
        plan.processor,
        identity=RunIdentity(**start.identity),
        title=f"{config.method.name} on {plan.task}",
        epoch_steps=plan.order.epoch_steps,
        evaluate=partial(evaluation, engine) if evaluation is not None else None,
        progress=progress,
        request=request,
        hooks=hooks,
        tracker=make_tracker(plan),
    )
    loop.flags = session.flags
    if start.checkpoint is not None:
        session.restore(start.checkpoint)
    return BuiltRun(plan, start, loader, ranks, session)


def build_engine(plan: Plan, group: Group) -> Engine:
    """The model, prepared for its method, in the engine of the planned parallel strategy; called by all processes.

    Raises:
        UserError: the model cannot be loaded, or the engine cannot hold it.
    """
    config, strategy = plan.config, plan.strategy.name.value
    precision = Precision(
        plan.compute.dtype.value, group.device.type, cache_casts=not config.model.gradient_checkpointing
    )
    rows = plan.row_source if plan.row_source is not None and plan.row_source.directory is not None else None
    if rows is not None:
        model = model_without_weights(plan.files, plan.compute)
    else:
        model = load_base(plan.files, plan.compute, seed=config.optim.seed)
    plan.files.family.match_processor(model, plan.processor)
    # Some machines may have less memory than others: all shard gradients between micro-batches, or none does.
    keep_unsharded_grads = all(group.all_gather(plan.strategy.keep_unsharded_grads))
    first = torch.device(first_device(strategy, str(group.device))) if rows is None else None
    trained = apply_method(model, config.method, precision, seed=config.optim.seed, device=first)
    if config.model.gradient_checkpointing:
        enable_checkpointing(model)
    return make_engine(
        strategy,
        group,
        trained,
        precision,
        config,
        deepspeed=plan.deepspeed,
        keep_unsharded_grads=keep_unsharded_grads,
        rows=rows,
    )


def facts_of(plan: Plan, start: Start) -> Facts:
    """Facts that must be the same in all processes of a run."""
    strategy = plan.strategy.name
    return run_facts(
        plan.config,
        plan.compute,
        model=model_identity(plan.files, seed=plan.config.optim.seed),
        data=start.identity["data"],
        eval_data=data_identity([plan.eval_source] if plan.eval_source is not None else []),
        total_steps=plan.total_steps,
        parallel=Fact(strategy.value, strategy.reason),
        deepspeed=plan.deepspeed,
    )


def enable_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass; transformers has renamed the switch between supported versions."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def make_loader(plan: Plan, rank: int, world_size: int, *, pin_memory: bool) -> TrainLoader:
    """Training steps of one process."""
    config = plan.config
    return TrainLoader(
        plan.reader(),
        plan.order,
        micro_batch_size=config.optim.batch_size_per_gpu,
        rank=rank,
        world_size=world_size,
        pack=config.data.pack,
        lockstep=plan.strategy.name.value not in (SINGLE, "ddp"),
        rates=work_rates(plan.size, config.method, checkpointing=config.model.gradient_checkpointing),
        num_workers=config.data.num_workers,
        prepare=plan.files.family.prepare,
        pin_memory=pin_memory,
    )


def make_tracker(plan: Plan) -> BestTracker | None:
    """Compares the evaluations of the run, if it is to."""
    settings = plan.config.eval
    if plan.criterion is None:
        return None
    return BestTracker(
        plan.criterion, patience=settings.early_stopping_patience, min_delta=settings.early_stopping_min_delta
    )


def make_evaluation(plan: Plan, progress: ProgressLine, request: StopRequest, *, quiet: bool) -> RunEvaluation:
    """Evaluates the model before, between and after the steps; every row of the split is checked now.

    Raises:
        UserError: a row cannot be encoded or scored, or the metric that the run ends by is undefined for the rows.
    """
    config = plan.config
    assert plan.eval_source is not None
    evaluator = Evaluator(
        plan.eval_source,
        plan.renderer,
        config.eval,
        metrics=plan.metrics,
        num_workers=config.data.num_workers,
    )
    evaluator.check()
    if plan.criterion is not None and plan.criterion.metric != LOSS:
        evaluator.require_defined(plan.criterion.metric)
    return RunEvaluation(
        evaluator,
        config.output.output_dir,
        model_name=plan.files.name,
        bars=lambda: progress_bar(quiet=quiet),
        say=progress.say,
        stop=lambda: request.is_set,
    )
