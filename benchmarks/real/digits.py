"""Handwritten digits, from scratch: `python benchmarks/real/digits.py [--work DIR] [--seeds 0 1 2]`.

The 8 x 8 images are those of scikit-learn's `load_digits` (UCI, CC BY 4.0): the first 1,000 train, the next 300 test.
They are written as PNG files with a table, which the converter `table` reads, and a small Phi-3-vision is trained on
them by `phi3v-train run` and scored by `phi3v-train eval`. A run that was interrupted resumes with the same command.
The results are written to benchmarks/results/digits.md, with two images; they say which runs are finished.
"""

import argparse
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from numpy import bincount
from PIL import Image
from sklearn.datasets import load_digits

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import scratch
from common import RESULTS
from small_model import Recipe, Sizes

NUM_TRAIN, NUM_TEST = 1000, 300
SIZES = Sizes(width=64, layers=2, heads=2, tower_width=32, tower_layers=0, tower_heads=2, initializer_range=0.08)
RECIPE = Recipe(epochs=9, batch_size=10, learning_rate=3e-3, warmup_steps=20)
MAP = """\
name: digits
task: vqa
metrics: [accuracy]
images: image
user: Which digit is this?
assistant: "{digit}"
split: part
source: scikit-learn's load_digits
license: CC-BY-4.0
"""


def main() -> None:
    """Run, or resume, the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/digits"), help="data, models and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    args = parser.parse_args()
    for seed in args.seeds:
        print(f"seed {seed}: accuracy on {NUM_TEST} test images: {accuracy(args.work, seed):.1%}")
        write_results(args.work, args.seeds, args.results)


def accuracy(work: Path, seed: int) -> float:
    """Convert, train and evaluate in `work`; the share of test images answered correctly."""
    table = work / "table"
    scratch.write_table(table, MAP, rows(scratch.partial_folder(table)))
    scratch.convert_table(table, work / "data")
    start = scratch.start_model(work, SIZES, seed)
    scratch.train_and_score(work, work / "data", start, RECIPE, seed, scratch.Deadline())
    found: float = scratch.run_state(work, seed)["accuracy"]
    return found


def rows(folder: Path) -> Iterator[Sequence[object]]:
    """The rows of the table, its head first; each row's image is written under `folder`."""
    (folder / "images").mkdir()
    digits = load_digits()
    yield "image", "digit", "part"
    for index in range(NUM_TRAIN + NUM_TEST):
        name = f"images/{index:04d}.png"
        grey = (digits.images[index] * 255 / 16).round().astype("uint8")
        Image.fromarray(grey).save(folder / name)
        yield name, digits.target[index], "train" if index < NUM_TRAIN else "test"


def most_frequent() -> float:
    """Share of the test images that show the most frequent digit of the training images."""
    train, test = load_digits().target[:NUM_TRAIN], load_digits().target[NUM_TRAIN : NUM_TRAIN + NUM_TEST]
    share: float = (test == bincount(train).argmax()).mean()
    return share


def write_results(work: Path, seeds: Sequence[int], results: Path) -> None:
    """Write the page, the learning curve and the confusion matrix of the first finished seed."""
    steps = math.ceil(NUM_TRAIN / RECIPE.batch_size) * math.ceil(RECIPE.epochs)
    states = [scratch.run_state(work, seed) for seed in seeds]
    lines = [
        "# Handwritten digits from scratch",
        "",
        f"`python benchmarks/real/digits.py`: {NUM_TRAIN:,} training and {NUM_TEST} test images of scikit-learn's "
        f"`load_digits`, {steps:,} steps of {RECIPE.batch_size} samples, about two minutes each. The most frequent "
        f"digit of the training images is right in {most_frequent():.1%} of the test images. Few images, so that the "
        "slow tests can train on them.",
        "",
        *scratch.TABLE_HEAD,
        *(scratch.state_row("phi3v_train", state, steps) for state in states),
        "",
        "![Learning curve](digits_curve.png)",
        "![Confusion matrix](digits_confusion.png)",
        "",
    ]
    results.mkdir(parents=True, exist_ok=True)
    (results / "digits.md").write_text("\n".join(lines), encoding="utf-8")
    finished = [seed for seed, state in zip(seeds, states, strict=True) if state["finished"]]
    if finished:
        shutil.copyfile(scratch.run_folder(work, finished[0]) / "loss.png", results / "digits_curve.png")
    scratch.draw_mistakes(work, seeds, results / "digits_confusion.png", "load_digits")


if __name__ == "__main__":
    main()
