"""Real images and questions, from scratch: `python benchmarks/real/easy_vqa.py [--seeds 0 1 2] [--minutes M]`.

The data is easy-vqa 1.0 (MIT, Victor Zhou): 5,000 images of one coloured shape, 48,248 questions, with a train and a
test split; pip fetches the wheel by name. A test sample is one question, as several turns would give the answers of
later ones away; a training sample is a conversation (`easy_vqa_rows`). For every seed a small Phi-3-vision is trained
from scratch on a CPU, twice from the same weights: by `phi3v-train run`, and by a plain PyTorch loop (`plain_loop`).
Both are scored on all test questions.

The whole benchmark takes hours. It may be stopped at any moment, and with `--minutes M` it stops by itself: the same
command resumes it. After each step the results so far are written to benchmarks/results/easy_vqa.json and .md, with the
images easy_vqa_curves.png and easy_vqa_confusion.png; they say which runs are finished.

A recipe is chosen with `--held_out --work DIR`, which knows nothing of the test split: it trains on the first 3,600
images of the train split and scores the questions on the other 400; its results are written to DIR.

Passed: the lower bound of the accuracy's 95 % interval is above 95 %, and the mean over the seeds is at most one point
below the best plain loop.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import easy_vqa_report as report
import scratch
from easy_vqa_rows import EasyVqa
from plain_loop import train_plain
from small_model import Recipe, Sizes
from wheels import FetchError, fetch_wheel

import phi3v_data

PACKAGE, VERSION = "easy-vqa", "1.0"
SIZES = Sizes(width=64, layers=2, heads=4, tower_width=64, tower_layers=0, tower_heads=4, initializer_range=0.2)
RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=1.5e-3, warmup_steps=100)
EVALUATION = ("--eval_split", "test", "--eval_limit", str(report.CURVE_ROWS), "--eval_steps", "500")
"""For the learning curve. Earlier recipes were compared by it (easy_vqa_recipes.md), so the other rows count apart."""


def main() -> None:
    """Run, or resume, the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/easy_vqa"), help="data, models and runs")
    parser.add_argument("--wheels", type=Path, default=Path("build/wheels"), help="where the wheel is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, help="stop after so many minutes")
    parser.add_argument("--held_out", action="store_true", help="score a part of the train split, to choose a recipe")
    parser.add_argument("--epochs", type=float, default=RECIPE.epochs, help="of a run, to choose a recipe")
    parser.add_argument("--batch_size", type=int, default=RECIPE.batch_size)
    parser.add_argument("--learning_rate", type=float, default=RECIPE.learning_rate)
    parser.add_argument("--initializer_range", type=float, default=SIZES.initializer_range)
    parser.add_argument("--limit", type=int, default=0, help="images of each split, to try the script")
    parser.add_argument("--results", type=Path, help="folder for the results")
    args = parser.parse_args()
    results = args.results or (args.work / "results" if args.held_out else report.RESULTS)
    deadline = scratch.Deadline(None if args.minutes is None else time.monotonic() + 60 * args.minutes)
    recipe = Recipe(args.epochs, args.batch_size, args.learning_rate, RECIPE.warmup_steps)
    sizes = replace(SIZES, initializer_range=args.initializer_range)
    try:
        package = fetch_wheel(PACKAGE, VERSION, args.wheels)
    except FetchError as error:
        sys.exit(str(error))
    data = args.work / "data"
    options = {"held_out": args.held_out, "limit": args.limit}
    phi3v_data.convert(EasyVqa, package / "easy_vqa" / "data", data, options=options)
    try:
        for seed in args.seeds:
            start = scratch.start_model(args.work, sizes, seed)
            scratch.train_and_score(args.work, data, start, recipe, seed, deadline, *EVALUATION)
            report.write(args.work, data, recipe, sizes, args.seeds, results)
            train_plain(args.work / f"plain-{seed}", data, start, recipe, seed, deadline.passed)
            if deadline.passed():
                raise scratch.StoppedError
            report.write(args.work, data, recipe, sizes, args.seeds, results)
    except scratch.StoppedError:
        print("stopped: the time is over; the same command resumes", file=sys.stderr)
    finally:
        report.write(args.work, data, recipe, sizes, args.seeds, results)


if __name__ == "__main__":
    main()
