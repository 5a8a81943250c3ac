"""Training from scratch on a real set by the commands that a user has: table, conversion, run, evaluation, interval."""

import csv
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from small_model import Recipe, Sizes, save_small

import phi3v_data
from phi3v_train.evaluation.confusion import confusion
from phi3v_train.evaluation.confusion_plot import draw_confusion
from phi3v_train.evaluation.records import Prediction

Z = 1.959964
"""Two-sided 95 % of the normal distribution."""


class StoppedError(Exception):
    """The time is over; the same command resumes."""


@dataclass(frozen=True)
class Deadline:
    """The moment at which a benchmark stops by itself; None for never."""

    at: float | None = None

    def left(self) -> float | None:
        """Seconds until then, at least 0."""
        return None if self.at is None else max(0.0, self.at - time.monotonic())

    def passed(self) -> bool:
        """Whether nothing new is to begin."""
        return self.left() == 0.0


def write_table(folder: Path, column_map: str, rows: Iterable[Sequence[object]]) -> None:
    """Write `rows.csv`, whose first row names the columns, and `map.yaml` for the converter `table`.

    `rows` may write images next to them meanwhile. An existing table is kept; half of one is never left in its place.
    """
    if folder.is_dir():
        return
    partial = partial_folder(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with (partial / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    (partial / "map.yaml").write_text(column_map, encoding="utf-8")
    partial.rename(folder)


def partial_folder(folder: Path) -> Path:
    """Where `write_table` writes until the table is whole."""
    return folder.with_name(f".{folder.name}.partial")


def convert_table(table: Path, data: Path) -> None:
    """Convert a table; what is converted already is kept."""
    phi3v_data.convert("table", table / "rows.csv", data, options={"map": table / "map.yaml"})


def start_model(work: Path, sizes: Sizes, seed: int) -> Path:
    """The directory of the model with random weights from which a seed starts."""
    start = work / f"start-{seed}"
    if not start.is_dir():
        save_small(start, sizes, seed)
    return start


def train_and_score(
    work: Path, data: Path, start: Path, recipe: Recipe, seed: int, deadline: Deadline, *options: str
) -> None:
    """Train with `phi3v-train run`, then score all test rows with `phi3v-train eval`; resumes both.

    Raises:
        StoppedError: the deadline has passed.
    """
    run, scores = run_folder(work, seed), score_folder(work, seed)
    if (scores / "eval.json").is_file():
        return
    where = ("--data_dir", str(data), "--model_name_or_path")
    phi3v_train(
        deadline,
        *("run", *where, str(start), "--output_dir", str(run), "--seed", str(seed), *recipe.options(), *options),
    )
    phi3v_train(
        deadline,
        *("eval", *where, str(run / "model"), "--eval_split", "test", "--output_dir", str(scores)),
        *("--eval_batch_size", "32", "--max_new_tokens", "4", "--num_workers", "0", "--device", "cpu"),
    )


def run_folder(work: Path, seed: int) -> Path:
    """Folder of the run of a seed."""
    return work / f"run-{seed}"


def score_folder(work: Path, seed: int) -> Path:
    """Folder of the scores of a seed."""
    return work / f"eval-{seed}"


def phi3v_train(deadline: Deadline, *arguments: str) -> None:
    """Run a command in a process of its own; at the deadline it is asked to stop, and saves what it has.

    Raises:
        StoppedError: the deadline has passed.
    """
    if deadline.passed():
        raise StoppedError
    with subprocess.Popen([sys.executable, "-m", "phi3v_train", *arguments]) as process:
        try:
            process.wait(deadline.left())
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise StoppedError from None
    if process.returncode:
        sys.exit(process.returncode)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def interval(num_right: int, num_rows: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    share, spread = num_right / num_rows, Z * Z / num_rows
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / num_rows + spread / (4 * num_rows))
    return middle - half, middle + half


def run_state(work: Path, seed: int) -> dict[str, Any]:
    """State of a run of `phi3v-train`: its last logged step, and the scores if it is finished."""
    metrics, scores = run_folder(work, seed) / "metrics.jsonl", score_folder(work, seed) / "eval.json"
    lines = read_lines(metrics) if metrics.is_file() else []
    state: dict[str, Any] = {"seed": seed, "finished": scores.is_file(), "step": lines[-1]["step"] if lines else 0}
    during = [(line["step"], line["eval_accuracy"]) for line in lines if "eval_accuracy" in line]
    if during:
        state["last_evaluation"] = dict(zip(("step", "accuracy"), during[-1], strict=True))
    if scores.is_file():
        share = json.loads(scores.read_text(encoding="utf-8"))["metrics"]["accuracy"]
        num_rows = len(read_lines(score_folder(work, seed) / "predictions.jsonl"))
        state |= scored(round(share * num_rows), num_rows)
    return state


def scored(num_right: int, num_rows: int) -> dict[str, Any]:
    """Accuracy and interval, as a state has them."""
    return {"accuracy": num_right / num_rows, "interval": interval(num_right, num_rows)}


def state_row(name: str, state: dict[str, Any], total: int) -> str:
    """A state as the row of a Markdown table: name, seed, steps, accuracy, interval."""
    score, bounds = "not finished", ""
    if state["finished"]:
        low, high = state["interval"]
        score, bounds = f"{state['accuracy']:.2%}", f"{low:.2%} to {high:.2%}"
    elif "last_evaluation" in state:
        during = state["last_evaluation"]
        score = f"not finished; {during['accuracy']:.1%} of some test rows after step {during['step']:,}"
    return f"| {name} | {state['seed']} | {state['step']:,} of {total:,} | {score} | {bounds} |"


TABLE_HEAD = ("| | seed | steps | test accuracy | 95 % interval |", "| --- | --- | --- | --- | --- |")
"""Above the rows of `state_row`."""


def draw_mistakes(work: Path, seeds: Sequence[int], path: Path, title: str) -> None:
    """Draw the confusion matrix of the first seed that is finished; none without one."""
    for seed in seeds:
        predictions = score_folder(work, seed) / "predictions.jsonl"
        if (score_folder(work, seed) / "eval.json").is_file():
            draw_confusion(
                confusion(cast("list[Prediction]", read_lines(predictions))), path, title=f"{title}, test, seed {seed}"
            )
            return
