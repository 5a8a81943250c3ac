"""`validate` and `datasets` on the same parquet shards, in turn: `python benchmarks/scale/against_datasets.py EXPORT`.

EXPORT is the folder `hub` that `run.py` made. Each round runs both as processes with their start-up, two workers each,
nothing cached: `validate` makes its view of the shards and checks all rows and pixels; `datasets` loads them, decodes
every image and maps (`peer.py`). As a busy machine changes its speed, a round gives a ratio; the figure is the median.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import machine, save
from meter import measure
from stages import DATA, HERE

PACKAGES = ("phi3v", "numpy", "pyarrow", "pillow", "simplejpeg", "datasets")


def run_once(name: str, export: Path, workers: int, aside: Path) -> dict[str, Any]:
    """Figures of one command."""
    shutil.rmtree(export / ".phi3v", ignore_errors=True)
    words = {
        "validate": [*DATA, "validate", str(export), "--fresh", "--quiet", "--workers", str(workers)],
        "datasets": [sys.executable, str(HERE / "peer.py"), str(export), str(aside / "cache"), str(workers)],
    }
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    found = measure(words[name], seconds=3600, log=aside / "log", good=(0, 1), env=env)
    shutil.rmtree(aside / "cache", ignore_errors=True)
    return {key: found[key] for key in ("cpu_s", "wall_s", "peak_mb")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    import pyarrow.parquet

    rows = sum(pyarrow.parquet.read_metadata(path).num_rows for path in args.export.rglob("*.parquet"))
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as aside:
        for _ in range(args.rounds):
            found: dict[str, Any] = {
                name: run_once(name, args.export, args.workers, Path(aside)) for name in ("validate", "datasets")
            }
            ours, theirs = found["validate"], found["datasets"]
            found["rows_per_cpu_s"] = round(theirs["cpu_s"] / ours["cpu_s"], 2)
            at_once = 1 + args.workers  # `datasets` starts new workers for each split
            found["memory"] = round(sum(ours["peak_mb"][:at_once]) / sum(theirs["peak_mb"][:at_once]), 2)
            rounds.append({**found, "load": round(os.getloadavg()[0], 1)})
            print(rounds[-1], flush=True)
    result = {
        "command": "python benchmarks/scale/against_datasets.py EXPORT",
        "machine": machine(*PACKAGES),
        "rows": rows,
        "workers": args.workers,
        "times_the_rows_per_cpu_s": statistics.median(each["rows_per_cpu_s"] for each in rounds),
        "share_of_the_memory": statistics.median(each["memory"] for each in rounds),
        "us_per_row": {
            name: round(statistics.median(each[name]["cpu_s"] for each in rounds) / rows * 1e6)
            for name in ("validate", "datasets")
        },
        "rounds": rounds,
    }
    if not args.no_save:
        save("scale_against_datasets", result)


if __name__ == "__main__":
    main()
