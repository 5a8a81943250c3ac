"""The one path from settings to a finished run.

    settings -> plan (data, model, machine; refuses mistakes) -> model made ready for its method -> steps -> folder

Every process runs this same path; the main one speaks and writes.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3v_data.dataset import read_manifest
from phi3v_data.files import read_json
from phi3v_data.lock import lock_file
from phi3v_train.config import RunConfig
from phi3v_train.data.identity import data_identity
from phi3v_train.data.loader import TrainLoader
from phi3v_train.data.sources import require_data_dir, require_sound, resolve_num_crops
from phi3v_train.distributed.rank_info import RankInfo
from phi3v_train.plan import Plan, locate_base, make_plan
from phi3v_train.settings import Settings, resolve
from phi3v_train.start import Start, find_start, read_finished, refuse_other_start, resume_hint, verified_start
from phi3v_train.training import folder
from phi3v_train.training.checkpoints import prune, sweep
from phi3v_train.training.parallel.strategy import SINGLE
from phi3v_train.training.work import work_rates

if TYPE_CHECKING:
    from phi3v_train.distributed.agreement import Facts
    from phi3v_train.distributed.stopping import StopRequest
    from phi3v_train.evaluation.during import RunEvaluation
    from phi3v_train.training.progress import ProgressLine
    from phi3v_train.training.session import Hook

LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run.

    `stopped` is the signal that ended it before its time, 0 where it is complete; `unsaved`: the last checkpoint or
    lines of `metrics.jsonl` could not be written.
    """

    output_dir: Path
    step: int
    already_complete: bool
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    stopped: int = 0
    unsaved: bool = False


def check_data(config: RunConfig, progress: Callable[[str, int, int | None], None] | None = None) -> None:
    """Refuse directories with errors; a validated one that has not changed costs a look at its receipt.

    Raises:
        UserError: the first error, or no directory is given.
    """
    require_data_dir(config.data.data_dir)
    num_crops = config.model.num_crops
    tuned = locate_base(config.model.model_name_or_path, weights=False).tuned_num_crops if num_crops is None else None
    for directory in config.data.data_dir:
        budget = num_crops
        if tuned is not None:
            budget, _ = resolve_num_crops(None, read_manifest(directory), tuned)
        require_sound(directory, num_crops=budget, progress=progress)


def train(plan: Plan, start: Start, *, quiet: bool = False, hooks: "Sequence[Hook]" = ()) -> Outcome:
    """Train as planned, on this process.

    SIGTERM or Ctrl-C ends it after the step it is in, with a checkpoint. So may `hooks`, see `training.session.Hook`;
    the run is then complete.

    Raises:
        UserError: the run cannot go on; the message says what to do.
    """

    config = plan.config
    output_dir = config.output.output_dir
    place = RankInfo.from_environment()
    with ExitStack() as stack:
        if place.is_main:
            output_dir.mkdir(parents=True, exist_ok=True)
            busy = f"{output_dir}: another run is writing there; wait for it, or choose another --output_dir"
            stack.enter_context(lock_file(output_dir / LOCK, busy))
            if config.output.overwrite:
                folder.clear(output_dir)
            sweep(output_dir)
        return _train(plan, start, stack, hooks, quiet=quiet or not place.is_main)


def _train(plan: Plan, start: Start, stack: ExitStack, hooks: "Sequence[Hook]", *, quiet: bool) -> Outcome:
    import torch

    from phi3v_train.distributed.group import make_group
    from phi3v_train.distributed.rank_errors import report_rank_errors
    from phi3v_train.distributed.stopping import StopRequest
    from phi3v_train.models.loading import load_base
    from phi3v_train.precision import Precision
    from phi3v_train.training.loop import TrainLoop
    from phi3v_train.training.methods import apply_method
    from phi3v_train.training.parallel.make_engine import first_device, make_engine
    from phi3v_train.training.progress import ProgressLine
    from phi3v_train.training.session import RunIdentity, Session

    config = plan.config
    place = RankInfo.from_environment()
    on_gpu = plan.compute.device.value == "cuda"
    device = torch.device("cuda", place.local_rank) if on_gpu else torch.device("cpu")
    loader = stack.enter_context(make_loader(plan, place.rank, place.world_size, pin_memory=on_gpu))
    loader.start()
    group = stack.enter_context(make_group(place, device, lambda: facts_of(plan, start)))
    ranks = stack.enter_context(report_rank_errors(group, lambda: resume_hint(config.output.output_dir)))
    request = stack.enter_context(StopRequest(is_main=place.is_main))
    refuse_other_start(group, start)
    start = verified_start(group, start, config)
    if place.is_main:
        prune(config.output.output_dir, keep=config.output.save_total_limit, spare=start.checkpoint)
    precision = Precision(plan.compute.dtype.value, device.type, cache_casts=not config.model.gradient_checkpointing)
    progress = ProgressLine(
        plan.total_steps,
        start=start.checkpoint.step if start.checkpoint else 0,
        quiet=quiet or config.output.no_tqdm,
    )
    stack.callback(progress.close)
    evaluation = None
    if plan.eval_source is not None:
        evaluation = make_evaluation(plan, progress, request, quiet=quiet or config.output.no_tqdm)
    model = load_base(plan.place, plan.compute, seed=config.optim.seed)
    kind = plan.strategy.name.value
    # Some machines may have less memory than others: all divide gradients, or none does.
    keep_unsharded_grads = all(group.all_gather(plan.strategy.keep_unsharded_grads))
    first = torch.device(first_device(kind, str(device)))
    trained = apply_method(model, config.method, precision, seed=config.optim.seed, device=first)
    if config.model.gradient_checkpointing:
        enable_checkpointing(model)
    engine = make_engine(
        kind,
        group,
        trained,
        precision,
        config,
        deepspeed=plan.deepspeed,
        keep_unsharded_grads=keep_unsharded_grads,
    )
    loop = TrainLoop(engine, config, total_steps=plan.total_steps, source_names=plan.source_names)
    session = Session(
        loop,
        plan.processor,
        identity=RunIdentity(start.identity["settings"], start.identity["data"]),
        title=f"{config.method.name} on {plan.task}",
        epoch_steps=plan.order.epoch_steps,
        evaluate=partial(evaluation, engine) if evaluation is not None else None,
        progress=progress,
        request=request,
        hooks=hooks,
    )
    loop.flags = session.flags
    if start.checkpoint is not None:
        session.restore(start.checkpoint)
    output_dir = config.output.output_dir
    if place.is_main:
        (output_dir / folder.DONE).unlink(missing_ok=True)
        folder.write_start(output_dir, plan.settings, start.identity["data"], device.type, plan.deepspeed)
    ranks.begin()
    session.open()
    if not session.stopped and not session.has_ended:
        loop.run(loader.steps(session.step, plan.total_steps), session.after_step)
    if session.stopped:
        session.stop()
        return Outcome(output_dir, session.step, False, None, None, session.stopped, session.unsaved)
    session.finish(
        lambda before, after: folder.card_text(
            config,
            task=plan.task,
            data=[source.manifest for source in plan.sources if source.manifest is not None],
            base=plan.place.name,
            trained=trained.counts(),
            steps=session.step,
            samples=session.samples,
            before=before,
            after=after,
            last=session.last_line(),
        )
    )
    return Outcome(
        output_dir,
        session.step,
        False,
        read_json(output_dir / folder.EVAL_BEFORE),
        read_json(output_dir / folder.EVAL_AFTER),
        unsaved=session.unsaved,
    )


def facts_of(plan: Plan, start: Start) -> "Facts":
    """What all processes must have the same."""
    from phi3v_train.distributed.agreement import Fact
    from phi3v_train.distributed.facts import run_facts
    from phi3v_train.evaluation.identity import model_identity

    kind = plan.strategy.name
    return run_facts(
        plan.config,
        plan.compute,
        model=model_identity(plan.place, seed=plan.config.optim.seed),
        data=start.identity["data"],
        eval_data=data_identity([plan.eval_source] if plan.eval_source is not None else []),
        total_steps=plan.total_steps,
        parallel=Fact(kind.value, kind.reason),
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
        pad_token_id=plan.processor.tokenizer.pad_token_id,
        rank=rank,
        world_size=world_size,
        pack=config.data.pack,
        lockstep=plan.strategy.name.value not in (SINGLE, "ddp"),
        rates=work_rates(plan.size, config.method, checkpointing=config.model.gradient_checkpointing),
        num_workers=config.data.num_workers,
        pin_memory=pin_memory,
    )


def make_evaluation(plan: Plan, progress: "ProgressLine", request: "StopRequest", *, quiet: bool) -> "RunEvaluation":
    """What evaluates the model before, between and after the steps; every row of the split is looked at now.

    Raises:
        UserError: a row cannot be encoded or scored.
    """
    from phi3v_data.console import progress_bar
    from phi3v_train.evaluation.during import RunEvaluation
    from phi3v_train.evaluation.evaluate import Evaluator

    config = plan.config
    assert plan.eval_source is not None
    evaluator = Evaluator(
        plan.eval_source,
        plan.processor,
        config.eval,
        metrics=plan.metrics,
        num_workers=config.data.num_workers,
    )
    evaluator.check()
    return RunEvaluation(
        evaluator,
        config.output.output_dir,
        model_name=plan.place.name,
        bars=lambda: progress_bar(quiet=quiet),
        say=progress.say,
        stop=lambda: request.is_set,
    )


def earlier_outcome(plan: Plan) -> Outcome:
    """Outcome of a run that is already complete, as its folder tells it."""
    output_dir = plan.config.output.output_dir
    done = read_finished(output_dir)
    step = plan.total_steps if done is None else done["step"]
    before, after = (read_json(output_dir / name) for name in (folder.EVAL_BEFORE, folder.EVAL_AFTER))
    return Outcome(output_dir, step, True, before, after)


def run(settings: Settings, *, quiet: bool = False, hooks: "Sequence[Hook]" = ()) -> Outcome:
    """Check the data, plan, and train; for Python. The command line shows the plan in between.

    Raises:
        UserError: a mistake or an obstacle; the message says what to do.
    """
    check_data(settings.config)
    plan = make_plan(settings, world_size=RankInfo.from_environment().world_size)
    start = find_start(plan)
    if start.complete:
        return earlier_outcome(plan)
    return train(plan, start, quiet=quiet, hooks=hooks)


def fine_tune(
    data_dir: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    *,
    recipe: str | None = None,
    config_file: str | Path | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Outcome:
    """Train as `phi3v-train run` does, in this process; called again after a kill, it resumes.

    Args:
        data_dir: a conversations directory, or several.
        output_dir: where checkpoints, logs and the finished model go.
        recipe: name of published settings.
        config_file: a YAML file of settings.
        quiet: no progress lines.
        settings: any option of `phi3v-train run` under its name: `use_lora=True, learning_rate=2e-4`.

    Returns:
        The output directory, the last step, and the scores before and after.

    Raises:
        UserError: a mistake or an obstacle; the message says what to do.
    """
    several = [data_dir] if isinstance(data_dir, str | Path) else data_dir
    options = {"data_dir": list(map(str, several)), "output_dir": str(output_dir), **settings}
    return run(resolve(options, config_file=Path(config_file) if config_file else None, recipe=recipe), quiet=quiet)
