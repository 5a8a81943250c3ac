"""Handwritten digits, from scratch: `python benchmarks/real/digits.py [--work DIR] [--seed 0]`.

The 8 x 8 images are those of scikit-learn's `load_digits` (UCI, CC BY 4.0): the first 1,000 train, the next 300 test.
They are written as PNG files with a table, which the converter `table` reads, and a small Phi-3-vision is trained on
them by `phi3v-train run` and scored by `phi3v-train eval`. A run that was interrupted resumes with the same command.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

sys.path.append(str(Path(__file__).parent))

from small_model import Recipe, Sizes, save_small

import phi3v_data

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
    """Run the benchmark and print the accuracy on the test images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/digits"), help="data, model and run")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"accuracy on {NUM_TEST} test images: {accuracy(args.work, args.seed):.1%}")


def accuracy(work: Path, seed: int) -> float:
    """Convert, train and evaluate in `work`; the share of test images answered correctly."""
    data, start, run = work / "data", work / f"start-{seed}", work / f"run-{seed}"
    if not (work / "table").is_dir():
        write_table(work / "table")
    phi3v_data.convert("table", work / "table" / "rows.csv", data, options={"map": work / "table" / "map.yaml"})
    if not start.is_dir():
        save_small(start, SIZES, seed)
    where = ["--data_dir", str(data), "--model_name_or_path", str(start), "--output_dir", str(run)]
    train("run", *where, *RECIPE.options(), "--seed", str(seed))
    scores = work / f"eval-{seed}"
    model = ["--model_name_or_path", str(run / "model"), "--max_new_tokens", "4", "--device", "cpu"]
    train("eval", "--data_dir", str(data), "--eval_split", "test", *model, "--output_dir", str(scores))
    found: float = json.loads((scores / "eval.json").read_text(encoding="utf-8"))["metrics"]["accuracy"]
    return found


def write_table(folder: Path) -> None:
    """Write the images, a table of them and the map of its columns."""
    partial = folder.with_name(f".{folder.name}.partial")
    (partial / "images").mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    with (partial / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("image", "digit", "part"))
        for index in range(NUM_TRAIN + NUM_TEST):
            name = f"images/{index:04d}.png"
            grey = (digits.images[index] * 255 / 16).round().astype("uint8")
            Image.fromarray(grey).save(partial / name)
            rows.writerow((name, digits.target[index], "train" if index < NUM_TRAIN else "test"))
    (partial / "map.yaml").write_text(MAP, encoding="utf-8")
    partial.rename(folder)


def train(*arguments: str) -> None:
    """Run `phi3v-train` in a process of its own; exit if it fails."""
    code = subprocess.run([sys.executable, "-m", "phi3v_train", *arguments], check=False).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
