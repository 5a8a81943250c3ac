"""`phi3v-train eval`: predictions and scores of a model on a split, or of a file of predictions."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phi3v_data.cli.base import Quiet, command_info, make_command
from phi3v_data.errors import UserError
from phi3v_train.cli.eval_options import Base, DataDir, Overwrite, say_notes, with_eval_settings
from phi3v_train.cli.run_options import SettingsCommand
from phi3v_train.config import RunConfig
from phi3v_train.settings import Settings

if TYPE_CHECKING:
    from phi3v_train.evaluation.choose_metrics import Choice
    from phi3v_train.evaluation.records import Prediction

DEFAULT_OUTPUT = Path("evaluation")


@with_eval_settings()
@command_info(
    examples=[
        "phi3v-train eval --data_dir demo_out/ucf101 --model_name_or_path output/model --output_dir scores",
        "phi3v-train eval --data_dir docvqa --eval_split val --metric anls --metric anls_sample",
        "phi3v-train eval --predictions scores/predictions.jsonl --metric anls",
        "phi3v-train eval --predictions mine.jsonl --data_dir nlvr2 --eval_split dev",
        "phi3v-train eval --predictions scores/predictions.jsonl --metric mine.py:my_metric --json",
    ],
    interrupted="The same command resumes where it stopped.",
)
def evaluate(
    data_dir: DataDir = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output_dir", metavar="OUT", help=rf"Folder for predictions and scores. \[default: {DEFAULT_OUTPUT}]"
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", metavar="FILE", help="Score this predictions.jsonl; no model is loaded."),
    ] = None,
    loss: Annotated[bool, typer.Option("--loss", help="Also compute the loss of the stored answers.")] = False,
    base: Base = None,
    overwrite: Overwrite = False,
    json_output: Annotated[bool, typer.Option("--json", help="The result as one JSON document on stdout.")] = False,
    quiet: Quiet = False,
    *,
    settings: Settings,
) -> None:
    """Generate the answers of a split and score them, or score a file of predictions again.

    Stopped or killed at any moment, the same command resumes where it stopped. Metrics are dataset.json's unless
    --metric names others.
    """
    if predictions is not None:
        if loss:
            raise UserError("--loss needs a model: leave --predictions out")
        result, written = rescore(predictions, data_dir, output_dir, settings.config, quiet=quiet)
    elif data_dir is None:
        raise UserError("nothing to evaluate: give --data_dir, a conversations directory, or --predictions FILE")
    else:
        done = from_model(data_dir, output_dir or DEFAULT_OUTPUT, settings, base, overwrite, loss, quiet=quiet)
        if done is None:
            return
        result, written = done
    if json_output:
        files = {name: str(path) for name, path in written.items()}
        print(json.dumps({"format": 1, **result, "files": files}, ensure_ascii=False, indent=2))
    else:
        show(result, written)


def from_model(
    data_dir: Path,
    output_dir: Path,
    settings: Settings,
    base: str | None,
    overwrite: bool,
    loss: bool,
    *,
    quiet: bool,
) -> tuple[dict[str, Any], dict[str, Path]] | None:
    """Evaluate a model; None on other processes than the main one."""
    from phi3v_data.console import progress_bar
    from phi3v_train.distributed.agreement import broadcast_refusals
    from phi3v_train.distributed.rank_info import RankInfo
    from phi3v_train.evaluation.subject import find_subject
    from phi3v_train.launch import LAUNCHED, launch_evaluation, obey_launcher, processes_to_start

    if LAUNCHED in os.environ:
        obey_launcher()
    is_main = RankInfo.from_environment().is_main
    silent = quiet or not is_main
    with broadcast_refusals(settings.config.parallel):
        subject = find_subject(settings, data_dir, output_dir, scored=True, base=base)
    from phi3v_train.evaluation.job import prepare, run_job

    number = processes_to_start(settings.config)
    with progress_bar(quiet=silent or bool(number)) as progress:
        with broadcast_refusals(settings.config.parallel):
            job = prepare(settings, subject, output_dir, progress=progress)
        assert job.choice is not None
        if number:
            raise typer.Exit(launch_evaluation(number))
        say_choice(job.choice, f"{data_dir} {job.source.split.name}", quiet=silent)
        if is_main:
            say_notes(job.notes(), quiet=quiet)
        outcome = run_job(job, overwrite=overwrite, with_loss=loss)
    return (outcome.result, outcome.files) if is_main else None


def rescore(
    path: Path, data_dir: Path | None, output_dir: Path | None, config: RunConfig, *, quiet: bool
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Score a file of predictions; answers and meta come from the dataset where one is given."""
    from phi3v_data.dataset import read_manifest
    from phi3v_data.shards.view import data_directory
    from phi3v_train.evaluation.choose_metrics import choose_metrics
    from phi3v_train.evaluation.records import ids_of, read_predictions
    from phi3v_train.evaluation.result import make_result, write_scores

    records = read_predictions(path, completed=data_dir is not None)
    choice = choose_metrics(
        config.eval.metric, read_manifest(data_directory(data_dir)) if data_dir is not None else None
    )
    if data_dir is not None:
        records = with_truth(records, data_dir, config)
    say_choice(choice, str(path), quiet=quiet)
    splits = sorted({record["split"] for record in records})
    result = make_result(
        records,
        choice.metrics,
        split=" + ".join(splits),
        num_samples=sum(1 for _ in ids_of(records)),
        model=None,
        step=None,
    )
    return result, write_scores(records, result, output_dir) if output_dir is not None else {}


def with_truth(records: "list[Prediction]", data_dir: Path, config: RunConfig) -> "list[Prediction]":
    """The records with the answers of a split, which is the one they name or --eval_split."""
    from phi3v_train.evaluation.prompts import open_split, truth_of
    from phi3v_train.evaluation.records import complete_from

    named = {record["split"] for record in records} - {""}
    wanted = config.eval.eval_split or (named.pop() if len(named) == 1 else None)
    split = open_split(data_dir, wanted, num_crops=None, scored=True).split
    truth = truth_of(split, config.eval.eval_turns, config.eval.eval_limit)
    return complete_from(records, truth, f"{data_dir} {split.name}")


def say_choice(choice: "Choice", what: str, *, quiet: bool) -> None:
    """Print on stderr what is scored, by which metrics, and where that choice came from."""
    if quiet:
        return
    print(f"{what}: {choice.words()}", file=sys.stderr)


def show(result: dict[str, Any], written: dict[str, Path]) -> None:
    """Print the scores, the reasons for those that are undefined, and where the files are."""
    notes = result.get("notes", {})
    names = [*result["metrics"], *written]
    width = max(map(len, names)) + 2
    model = f"{result['model']} on " if result["model"] else ""
    print(f"{model}{result['split'] or 'predictions'}: {result['num_samples']:,} samples")
    for name, value in result["metrics"].items():
        text = f"{value:.4f}" if value is not None else f"undefined: {notes.get(name, 'no token is labelled')}"
        print(f"  {name:<{width}}{text}")
    for name, path in written.items():
        print(f"  {name:<{width}}{path}")


command = make_command(evaluate, name="eval", cls=SettingsCommand)
