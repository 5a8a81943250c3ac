"""`phi3v-train predict`: the answers of a model on any split, and the files that the datasets' own evaluation takes."""

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phi3v_data.cli.base import Quiet, command_info, make_command
from phi3v_data.errors import UserError
from phi3v_train.cli.eval_options import Base, DataDir, Overwrite, say_notes, with_eval_settings
from phi3v_train.cli.run_options import SettingsCommand
from phi3v_train.settings import Settings

if TYPE_CHECKING:
    from phi3v_train.evaluation.records import Prediction

DEFAULT_OUTPUT = Path("predictions")


class SubmissionName(StrEnum):
    """Formats by the name of their dataset."""

    docvqa = "docvqa"
    hateful_memes = "hateful_memes"
    nlvr2 = "nlvr2"


@with_eval_settings(leave_out=("metric",))
@command_info(
    examples=[
        "phi3v-train predict --data_dir docvqa --eval_split test --format docvqa --output_dir submission",
        "phi3v-train predict --data_dir memes --eval_split test_unseen --format hateful_memes",
        "phi3v-train predict --predictions submission/predictions.jsonl --format nlvr2 --output_dir submission",
    ],
    interrupted="The same command resumes where it stopped.",
)
def predict(
    data_dir: DataDir = None,
    output_dir: Annotated[
        Path, typer.Option("--output_dir", metavar="OUT", help="Folder for predictions.")
    ] = DEFAULT_OUTPUT,
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", metavar="FILE", help="Only convert this predictions.jsonl to --format."),
    ] = None,
    format: Annotated[  # noqa: A002 - the option's name
        SubmissionName | None, typer.Option(help="Also write the submission file of this dataset.")
    ] = None,
    base: Base = None,
    overwrite: Overwrite = False,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    quiet: Quiet = False,
    *,
    settings: Settings,
) -> None:
    """Generate the answers of a split, with or without answers of its own.

    Stopped or killed at any moment, the same command resumes where it stopped.
    """
    from phi3v_train.evaluation.predictions import PREDICTIONS
    from phi3v_train.evaluation.submission import write_submission

    if predictions is not None:
        if format is None:
            raise UserError("--predictions needs --format: docvqa, hateful_memes or nlvr2")
        from phi3v_train.evaluation.records import read_predictions

        records, source = read_predictions(predictions, completed=True), predictions
        output_dir.mkdir(parents=True, exist_ok=True)
    elif data_dir is None:
        raise UserError("nothing to predict: give --data_dir, a conversations directory, or --predictions FILE")
    else:
        made = from_model(data_dir, output_dir, settings, base, overwrite, quiet=quiet)
        if made is None:
            return
        records, source = made, output_dir / PREDICTIONS
    files = {"predictions": source}
    if format is not None:
        files["submission"] = write_submission(records, format.value, output_dir)
    if json_output:
        document = {"format": 1, "num_predictions": len(records), "files": {k: str(v) for k, v in files.items()}}
        print(json.dumps(document, ensure_ascii=False, indent=2))
        return
    print(f"{len(records):,} predictions")
    for name, path in files.items():
        print(f"  {name:<13}{path}")


def from_model(
    data_dir: Path, output_dir: Path, settings: Settings, base: str | None, overwrite: bool, *, quiet: bool
) -> "list[Prediction] | None":
    """Predict with a model; None on other processes than the main one."""
    from phi3v_data.console import progress_bar
    from phi3v_train.distributed.agreement import broadcast_refusals
    from phi3v_train.distributed.rank_info import RankInfo
    from phi3v_train.evaluation.subject import find_subject
    from phi3v_train.launch import LAUNCHED, launch_evaluation, obey_launcher, processes_to_start

    if LAUNCHED in os.environ:
        obey_launcher()
    is_main = RankInfo.from_environment().is_main
    with broadcast_refusals(settings.config.parallel):
        subject = find_subject(settings, data_dir, output_dir, scored=False, base=base)
    from phi3v_train.evaluation.job import prepare, run_job

    number = processes_to_start(settings.config)
    with progress_bar(quiet=quiet or not is_main or bool(number)) as progress:
        with broadcast_refusals(settings.config.parallel):
            job = prepare(settings, subject, output_dir, progress=progress)
        if number:
            raise typer.Exit(launch_evaluation(number))
        if is_main:
            say_notes(job.notes(), quiet=quiet)
        outcome = run_job(job, overwrite=overwrite)
    return outcome.records if is_main else None


command = make_command(predict, name="predict", cls=SettingsCommand)
