"""The one path from settings to a finished run.

    settings -> plan (data, model, machine; refuses mistakes) -> build (data, model, engine, session) -> drive (steps)

Every process runs this same path; the main one prints and writes.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3v_data.dataset import list_directory, read_manifest
from phi3v_data.errors import UserError
from phi3v_data.files import read_stored
from phi3v_data.lock import lock_file
from phi3v_data.remote.address import spelled
from phi3v_data.shards.view import data_directory
from phi3v_train.config import RunConfig
from phi3v_train.data.sources import require_data_dir, require_valid, resolve_num_crops, use_cache
from phi3v_train.distributed.rank_info import RankInfo
from phi3v_train.plan import Plan, locate_base, make_plan
from phi3v_train.settings import Settings, resolve
from phi3v_train.start import Start, find_start, refuse_changed
from phi3v_train.training import folder
from phi3v_train.training.card import card_text
from phi3v_train.training.checkpoints import sweep

if TYPE_CHECKING:
    from phi3v_train.build import BuiltRun
    from phi3v_train.training.session import Hook

LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of a run.

    `stopped` is the signal that ended it early, 0 if it is complete; `unsaved`: the last checkpoint or
    lines of `metrics.jsonl` could not be written. `done`: contents of `complete.json`, empty if it is not complete.
    """

    output_dir: Path
    step: int
    already_complete: bool
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    stopped: int = 0
    unsaved: bool = False
    done: Mapping[str, Any] = field(default_factory=dict)


def check_data(config: RunConfig, progress: Callable[[str, int, int | None], None] | None = None) -> dict[str, str]:
    """Refuse directories with errors; a validated one that has not changed is known by its receipt.

    Returns the digest of the images that the trained split of each directory uses (`Start.images`).

    Raises:
        UserError: the first error, or no directory is given.
    """
    require_data_dir(config.data.data_dir)
    use_cache(config.data.data_cache_gb)
    for directory in config.data.data_dir:
        list_directory(data_directory(directory))  # before a model is asked of the Hub
    files = locate_base(config.model.model_name_or_path, weights=False)
    options = dict(config.model.image_options)
    files.family.image_budget(options)
    tuned, own = (None, None) if options else (files.tuned_num_crops, files.stored_num_crops)
    num_crops = options.pop("num_crops", None)
    images = {}
    for directory in config.data.data_dir:
        budget = num_crops
        if tuned is not None or own is not None:
            budget, _ = resolve_num_crops(None, read_manifest(data_directory(directory)), tuned, own)
        name = files.family.name
        report = require_valid(directory, num_crops=budget, image_options=options, model=name, progress=progress)
        if digest := report.stats["image_digests"].get(config.data.train_split):
            images[spelled(directory)] = digest
    return images


def train(plan: Plan, start: Start, *, quiet: bool = False, hooks: "Sequence[Hook]" = ()) -> Outcome:
    """Train as planned, on this process: build, then drive.

    SIGTERM or Ctrl-C ends it after the step it is in, with a checkpoint. So may `hooks`, see `training.session.Hook`;
    the run is then complete.

    Raises:
        UserError: the run cannot continue; the message says what to do.
    """
    from phi3v_train.build import build_run

    config = plan.config
    output_dir = config.output.output_dir
    is_main = RankInfo.from_environment().is_main
    with ExitStack() as stack:
        if is_main:
            output_dir.mkdir(parents=True, exist_ok=True)
            busy = f"{output_dir}: another run is writing there; wait for it, or choose another --output_dir"
            stack.enter_context(lock_file(output_dir / LOCK, busy))
            refuse_changed(start, output_dir)
            if config.output.overwrite:
                folder.clear(output_dir)
            sweep(output_dir)
        return drive(build_run(plan, start, stack, hooks=hooks, quiet=quiet or not is_main))


def drive(run: "BuiltRun") -> Outcome:
    """Go through the steps that are left, and write the finished model; on a signal, save a checkpoint instead.

    Raises:
        UserError: a step, an evaluation or the disk failed; the message says what to do.
    """
    plan, session = run.plan, run.session
    output_dir = plan.config.output.output_dir
    if session.is_main:
        (output_dir / folder.DONE).unlink(missing_ok=True)
        device = session.loop.group.device.type
        folder.write_start(output_dir, plan.settings, run.start.identity["data"], device, plan.deepspeed)
    run.ranks.begin()
    session.open()
    if not session.stopped and not session.has_ended:
        session.loop.run(run.loader.steps(session.step, plan.total_steps), session.after_step)
    if session.stopped:
        session.stop()
        return Outcome(output_dir, session.step, False, None, None, session.stopped, session.unsaved)
    session.finish(partial(model_card, run))
    before, after = (read_stored(output_dir / name) for name in (folder.EVAL_BEFORE, folder.EVAL_AFTER))
    done = folder.read_finished(output_dir) or {}
    return Outcome(output_dir, session.step, False, before, after, unsaved=session.unsaved, done=done)


def model_card(run: "BuiltRun", before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    """README.md of the finished run; `before` and `after` are the scores of its evaluations."""
    plan, session = run.plan, run.session
    return card_text(
        plan.config,
        plan.files.family,
        task=plan.task,
        data=[source.manifest for source in plan.sources if source.manifest is not None],
        base=plan.files.name,
        trained=session.engine.trained.counts(),
        steps=session.step,
        samples=session.samples,
        before=before,
        after=after,
        last=session.last_line(),
        ending=session.best.outcome(session.step),
    )


def earlier_outcome(plan: Plan) -> Outcome:
    """Outcome of a run that is already complete, read from its folder.

    Raises:
        UserError: its model is not there any more.
    """
    output_dir = plan.config.output.output_dir
    if not (output_dir / folder.MODEL).is_dir():
        raise UserError(
            f"{output_dir}: the run is complete, but {folder.MODEL}/ is gone; remove {folder.DONE} to have it written "
            "again from the last checkpoint, if there is one, or start over with --overwrite"
        )
    done = folder.read_finished(output_dir)
    step = plan.total_steps if done is None else done["step"]
    before, after = (read_stored(output_dir / name) for name in (folder.EVAL_BEFORE, folder.EVAL_AFTER))
    return Outcome(output_dir, step, True, before, after, done=done or {})


def run(settings: Settings, *, quiet: bool = False, hooks: "Sequence[Hook]" = ()) -> Outcome:
    """Check the data, plan, and train; for Python. The command line shows the plan in between.

    Raises:
        UserError: a mistake or an obstacle; the message says what to do.
    """
    images = check_data(settings.config)
    plan = make_plan(settings, world_size=RankInfo.from_environment().world_size)
    start = find_start(plan, images)
    if RankInfo.from_environment().is_main:
        for warning in start.warnings(plan.config.output.output_dir, plan.total_steps):
            print(f"warning: {warning}", file=sys.stderr)
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
