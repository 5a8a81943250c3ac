"""`phi3v-train run`."""

import json
import os
import sys
from typing import Annotated, Any

import typer

from phi3v_data.cli.base import Quiet, command_info, make_command
from phi3v_data.errors import COULD_NOT_RUN, GOOD, PROBLEMS
from phi3v_data.messages import counted
from phi3v_train.cli.push import PUSH_TO_HUB, upload_finished
from phi3v_train.cli.run_options import SettingsCommand, with_settings
from phi3v_train.settings import Settings

WARNING = "warning"
"""Lines of the plan that --quiet does not hide."""


@with_settings
@command_info(
    examples=[
        "phi3v-train run --data_dir demo_out/ucf101 --model_name_or_path tiny",
        "phi3v-train run --data_dir docvqa --recipe docvqa-lora-bf16 --output_dir out",
        "phi3v-train run --data_dir A --data_dir B --mix 3 --mix 1 --use_qlora",
        "phi3v-train run --config out/config.yaml --num_train_epochs 5",
        "phi3v-train run --data_dir DIR --num_processes 8 --parallel fsdp",
        "phi3v-train run --data_dir DIR --nnodes 2 --node_rank 0 --master_addr 10.0.0.1",
        "torchrun --nproc_per_node 8 -m phi3v_train run --data_dir DIR",
    ],
    interrupted="The same command resumes from the last checkpoint, if there is one.",
)
def run(
    dry_run: Annotated[bool, typer.Option("--dry_run", help="Stop after the plan.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the plan as one JSON document on stdout.")] = False,
    skip_validation: Annotated[
        bool, typer.Option("--skip_validation", help="Do not check the data first; a bad sample then stops the run.")
    ] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option("--push_to_hub", metavar="OWNER/NAME", help="Upload the finished model and its card to the Hub."),
    ] = None,
    quiet: Quiet = False,
    *,
    settings: Settings,
) -> None:
    """Fine-tune on any directory that `phi3v-data validate` passes.

    Prints the plan, then one progress line. Stopped or killed at any moment, the same command resumes from the newest
    checkpoint, with the same losses as if it had never stopped.

    Other trainers' names are taken too: --lr, --weight_decay, --per_device_train_batch_size, --lora_r, --epochs,
    --output.
    """
    if "RANK" in os.environ:
        # torch's own log of lost connections, a page each; we report them in one line.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if "RANK" not in os.environ and settings.config.parallel.nnodes == 1:  # of several, the others must hear of it
        check_paths(settings)
    from phi3v_train.data.sources import require_data_dir
    from phi3v_train.distributed.agreement import broadcast_refusals
    from phi3v_train.distributed.rank_info import RankInfo
    from phi3v_train.launch import LAUNCHED, launch, launched_images, obey_launcher, open_meeting, processes_to_start
    from phi3v_train.plan import make_plan
    from phi3v_train.run import check_data, earlier_outcome, train
    from phi3v_train.start import find_start, resume_hint

    if LAUNCHED in os.environ:
        obey_launcher()
    config = settings.config
    if push_to_hub is not None:
        from phi3v_train.push import check_repo, read_token

        check_repo(PUSH_TO_HUB, push_to_hub)
        read_token()  # a run that has none would find out at its end
    require_data_dir(config.data.data_dir)
    rank_info = RankInfo.from_environment()
    number = processes_to_start(config)
    world_size = number * config.parallel.nnodes or rank_info.world_size
    meeting = open_meeting(config.parallel) if number and not dry_run else None
    shown = not rank_info.is_main or LAUNCHED in os.environ or config.parallel.node_rank > 0
    images = launched_images()
    if not shown and not skip_validation:
        images = validate(check_data, settings, quiet=quiet)
    with broadcast_refusals(config.parallel):
        plan = make_plan(settings, world_size=world_size, weights=not dry_run)
        start = find_start(plan, images)
    if not shown:
        show(plan, start.words(plan.total_steps), as_json=json_output, quiet=quiet)
        for warning in start.warnings(config.output.output_dir, plan.total_steps):
            print(f"{WARNING:<8} {warning}", file=sys.stderr)
    if dry_run:
        return
    upload_options = {"quiet": quiet, "to_stderr": json_output}
    if start.complete:
        if not shown and not json_output:
            print(summary(earlier_outcome(plan)))
        raise typer.Exit(GOOD if shown else upload_finished(config.output.output_dir, push_to_hub, **upload_options))
    if number:
        code = launch(number, sys.argv[1:], config.parallel, meeting, images=images)
        if code not in (GOOD, COULD_NOT_RUN):
            print(resume_hint(config.output.output_dir), file=sys.stderr)
        if code == GOOD and not shown:
            code = upload_finished(config.output.output_dir, push_to_hub, **upload_options)
        raise typer.Exit(code)
    from phi3v_train.training.session import UnsavedError

    try:
        outcome = train(plan, start, quiet=quiet)
    except UnsavedError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(PROBLEMS) from None
    if outcome.stopped and rank_info.is_main and LAUNCHED not in os.environ:
        print(resume_hint(config.output.output_dir), file=sys.stderr)
    if rank_info.is_main and not json_output and not outcome.stopped:
        print(summary(outcome))
    if outcome.unsaved:
        raise typer.Exit(PROBLEMS)
    if outcome.stopped:
        raise typer.Exit(128 + outcome.stopped)
    raise typer.Exit(GOOD if shown else upload_finished(config.output.output_dir, push_to_hub, **upload_options))


def check_paths(settings: Settings) -> None:
    """Refuse data and a model that are not there, before torch is loaded.

    Raises:
        UserError: names the first of them.
    """
    from phi3v_train.data.sources import refuse_missing_directories, require_data_dir
    from phi3v_train.models.locate import refuse_missing

    require_data_dir(settings.config.data.data_dir)
    refuse_missing_directories(settings.config.data.data_dir)
    refuse_missing(settings.config.model.model_name_or_path)


def validate(check: Any, settings: Settings, *, quiet: bool) -> dict[str, str]:
    """Check the data with a progress bar; returns the digests of their images."""
    from phi3v_data.console import progress_bar

    with progress_bar(quiet=quiet) as progress:
        images: dict[str, str] = check(settings.config, progress)
    return images


def show(plan: Any, run_state: str, *, as_json: bool, quiet: bool) -> None:
    """Print the plan on stderr, or as JSON on stdout; warnings on stderr in any case."""
    from phi3v_train.plan_report import plan_json, plan_lines

    if as_json:
        print(json.dumps(plan_json(plan, run_state=run_state), ensure_ascii=False, indent=2))
    for name, text in plan_lines(plan, run_state=run_state):
        if name == WARNING or not (as_json or quiet):
            print(f"{name:<8} {text}", file=sys.stderr)


def summary(outcome: Any) -> str:
    """The last lines: where everything is."""
    done, step = outcome.done, outcome.done.get("model_step", outcome.step)
    why = f": {done['reason']}" if "reason" in done else ""
    lines = [f"{outcome.output_dir}: complete after {counted(outcome.step, 'step')}{why}"]
    for name, result in (("before", outcome.before), ("after", outcome.after)):
        if result:
            scores = ", ".join(f"{key} {value:.4g}" for key, value in result["metrics"].items() if value is not None)
            lines.append(f"{name:<8} {result['split']}: {scores}")
    if best := done.get("best"):
        lines.append(f"best     {best['split']}: {best['metric']} {best['value']:.4g} after step {best['step']}")
    if outcome.after or step != outcome.step:
        lines.append(f"answers  {outcome.output_dir / 'predictions' / f'step-{step:06d}' / 'predictions.jsonl'}")
    of_step = f" (step {step})" if "model_step" in done else ""
    lines += [f"model    {outcome.output_dir / 'model'}{of_step}", f"plot     {outcome.output_dir / 'loss.png'}"]
    return "\n".join(lines)


command = make_command(run, name="run", cls=SettingsCommand)
