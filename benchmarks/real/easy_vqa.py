"""Real images and questions, from scratch: `python benchmarks/real/easy_vqa.py [--seeds 0 1 2] [--minutes M]`.

The data is easy-vqa 1.0 (MIT, Victor Zhou): 5,000 images of one coloured shape, 48,248 questions, with a train and a
test split; pip fetches the wheel by name. One question is one sample: several turns would give the answers of later
ones away. For every seed a small Phi-3-vision is trained from scratch on a CPU, twice from the same weights: by
`phi3v-train run`, and by a plain PyTorch loop (`plain_loop`). Both are scored on all test questions.

The whole benchmark takes hours. It may be stopped at any moment, and with `--minutes M` it stops by itself: the same
command resumes it. After each step the results so far are written to benchmarks/results/easy_vqa.json and .md, with the
images easy_vqa_curves.png and easy_vqa_confusion.png; they say which runs are finished.

Passed: the lower bound of the accuracy's 95 % interval is above 95 %, and the mean over the seeds is at most one point
below that of the plain loop.
"""

import argparse
import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import easy_vqa_report as report
from plain_loop import train_plain
from small_model import Recipe, Sizes, save_small
from wheels import FetchError, fetch_wheel

import phi3v_data

PACKAGE, VERSION = "easy-vqa", "1.0"
SIZES = Sizes(width=64, layers=2, heads=2, tower_width=64, tower_layers=0, tower_heads=4, initializer_range=0.08)
RECIPE = Recipe(epochs=4, batch_size=32, learning_rate=3e-3, warmup_steps=100)
MAP = """\
name: easy_vqa
task: vqa
metrics: [accuracy]
images: image
user: "{question}"
assistant: "{answer}"
split: part
group: image
source: easy-vqa 1.0, Victor Zhou
license: MIT
"""


@dataclass(frozen=True)
class Deadline:
    """The moment at which the benchmark stops by itself; None for never."""

    at: float | None

    def left(self) -> float | None:
        """Seconds until then, at least 0."""
        return None if self.at is None else max(0.0, self.at - time.monotonic())

    def passed(self) -> bool:
        """Whether nothing new is to begin."""
        return self.left() == 0.0


class StoppedError(Exception):
    """The time is over; the same command resumes."""


def main() -> None:
    """Run, or resume, the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/easy_vqa"), help="data, models and runs")
    parser.add_argument("--wheels", type=Path, default=Path("build/wheels"), help="where the wheel is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, help="stop after so many minutes")
    parser.add_argument(
        "--epochs", type=float, default=RECIPE.epochs, help="of a run; shorter ones only try the script"
    )
    parser.add_argument("--limit", type=int, help="questions of each split, to try the script")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the results")
    args = parser.parse_args()
    deadline = Deadline(None if args.minutes is None else time.monotonic() + 60 * args.minutes)
    recipe = Recipe(args.epochs, RECIPE.batch_size, RECIPE.learning_rate, RECIPE.warmup_steps)
    try:
        package = fetch_wheel(PACKAGE, VERSION, args.wheels)
    except FetchError as error:
        sys.exit(str(error))
    data = make_data(package / "easy_vqa" / "data", args.work, args.limit)
    try:
        for seed in args.seeds:
            start = args.work / f"start-{seed}"
            if not start.is_dir():
                save_small(start, SIZES, seed)
            train_product(args.work, data, start, recipe, seed, deadline)
            report.write(args.work, data, recipe, SIZES, args.seeds, args.results)
            train_plain(args.work / f"plain-{seed}", data, start, recipe, seed, deadline.passed)
            if deadline.passed():
                raise StoppedError
            report.write(args.work, data, recipe, SIZES, args.seeds, args.results)
    except StoppedError:
        print("stopped: the time is over; the same command resumes", file=sys.stderr)
    finally:
        report.write(args.work, data, recipe, SIZES, args.seeds, args.results)


def make_data(source: Path, work: Path, limit: int | None) -> Path:
    """The conversations directory: one sample for each question."""
    table = work / "table"
    if not table.is_dir():
        partial = work / ".table.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with (partial / "rows.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("image", "question", "answer", "part"))
            for part in ("train", "test"):
                questions = json.loads((source / part / "questions.json").read_text(encoding="utf-8"))
                for question, answer, image in questions[:limit]:
                    rows.writerow((f"{part}/images/{image}.png", question, answer, part))
        (partial / "map.yaml").write_text(MAP, encoding="utf-8")
        partial.rename(table)
    options = {"map": table / "map.yaml", "image_dir": str(source)}
    phi3v_data.convert("table", table / "rows.csv", work / "data", options=options)
    return work / "data"


def train_product(work: Path, data: Path, start: Path, recipe: Recipe, seed: int, deadline: Deadline) -> None:
    """Train with `phi3v-train run`, then score all test questions with `phi3v-train eval`; resumes both.

    Raises:
        StoppedError: the deadline has passed.
    """
    run, scores = work / f"run-{seed}", work / f"eval-{seed}"
    if (scores / "eval.json").is_file():
        return
    phi3v_train(
        deadline,
        *("run", "--data_dir", str(data), "--model_name_or_path", str(start), "--output_dir", str(run)),
        *("--seed", str(seed), *recipe.options(), "--eval_split", "test", "--eval_limit", "500", "--eval_steps", "200"),
    )
    phi3v_train(
        deadline,
        *("eval", "--data_dir", str(data), "--eval_split", "test", "--model_name_or_path", str(run / "model")),
        *("--eval_batch_size", "32", "--max_new_tokens", "4", "--device", "cpu", "--output_dir", str(scores)),
    )


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


if __name__ == "__main__":
    main()
