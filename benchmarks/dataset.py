"""Opens and reads a split of a million rows: `python benchmarks/dataset.py [--rows N] [--no-save]`.

Each measurement runs in a new process, after the imports; memory is the growth of its resident set. The comparison is a
list of all lines, as in a loader without an index.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import machine, save

PROBE = """
import resource, sys, time, random, json
directory, mode, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
import numpy
from phi3v_data.dataset import Dataset
from phi3v_data.schema import Sample
def resident():
    with open("/proc/self/statm") as file: return int(file.read().split()[1]) * resource.getpagesize() / 2**20
before = resident()
start = time.perf_counter()
if mode == "lines":
    with open(directory + "/bench_train.jsonl", "rb") as file: split = file.readlines()
    get = lambda i: Sample.from_json(split[i])
else:
    split = Dataset(directory)["train"]
    get = split.__getitem__
opened = time.perf_counter() - start
at_open = resident() - before
assert len(split) == rows
rng = random.Random(0)
some = [rng.randrange(rows) for _ in range(20000)]
start = time.perf_counter()
for i in some: get(i)
random_rate = len(some) / (time.perf_counter() - start)
result = {"open_ms": opened * 1000, "memory_at_open_mib": at_open}
result |= {"memory_after_20000_rows_mib": resident() - before, "random_rows_per_s": random_rate}
print(json.dumps(result))
"""


def write_rows(path: Path, rows: int) -> None:
    """Write rows like those of a video set: 8 frames, the class list in the prompt."""
    names = [f"train/Class{i:02d}" for i in range(101)]
    prompt = "Classify the video into one of the following classes: " + ", ".join(f"Class{i:02d}" for i in range(10))
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for n in range(rows):
            images = [f"{names[n % 101]}/v_{n}.{k}.jpg" for k in range(8)]
            turn = {"images": images, "user": prompt, "assistant": f"Class{n % 10:02d}"}
            file.write(json.dumps({"id": f"train-{n:010d}", "source": "bench", "conversations": [turn]}) + "\n")


def probe(directory: Path, mode: str, rows: int) -> dict[str, float]:
    """Run one measurement in its own process."""
    command = [sys.executable, "-c", PROBE, str(directory), mode, str(rows)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        write_rows(directory / "bench_train.jsonl", args.rows)
        size = (directory / "bench_train.jsonl").stat().st_size
        first = probe(directory, "index", args.rows)
        again = [probe(directory, "index", args.rows) for _ in range(5)]
        lines = probe(directory, "lines", args.rows)
    median = {key: statistics.median(run[key] for run in again) for key in first}
    result = {
        "command": f"python benchmarks/dataset.py --rows {args.rows}",
        "machine": machine("phi3v", "pydantic", "numpy"),
        "rows": args.rows,
        "file_mib": round(size / 2**20, 1),
        "first_open": {key: round(value, 2) for key, value in first.items()},
        "second_open_median_of_5": {key: round(value, 2) for key, value in median.items()},
        "list_of_lines": {key: round(value, 2) for key, value in lines.items()},
    }
    if args.no_save:
        print(json.dumps(result, indent=2))
    else:
        save("dataset", result)


if __name__ == "__main__":
    main()
