"""A set of many rows through every command: `python benchmarks/scale/run.py --rows 1000000 --work DIR [--minutes 60]`.

Makes small JPEGs in parquet shards, then converts, validates (quick, full, unchanged), counts, trains a step and
resumes, exports, splits and merges; `datasets` loads and decodes the same parquet for comparison. Each command is a
process with its start-up. Its figures are appended to `benchmarks/results/scale.jsonl`:

cpu_us_per_row  processor time of the command and its processes, per row: the figure to compare, as other work may run
wall_s          from start to end
peak_mb         peak resident memory of each process, the command's own first; anonymous_mb is without mapped files

A stage whose figures of this number of rows are in the file is not run again, and what it made is kept in DIR: the same
command resumes after an interruption, within a stage too where the command itself does. After `--minutes` the running
stage is interrupted. `--direct` writes the set without a conversion (`write_set.py`), `--again STAGE` measures a stage
again, `--tidy` removes what no later stage needs, `--table` prints the results as a table.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import RESULTS, machine
from meter import measure
from stages import STAGES, Stage, Work
from tables import table

PACKAGES = ("phi3v", "numpy", "pyarrow", "pillow", "simplejpeg", "datasets", "torch")


def read(path: Path) -> list[dict[str, Any]]:
    """All records of a results file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a record to a results file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def commit() -> str:
    """The commit that is measured, with a + if files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return done.stdout.strip()


def run_stage(stage: Stage, work: Work, records: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Run one stage and return its record, with the time of attempts that were interrupted before."""
    before = [each for each in records if key(each) == (stage.name, work.rows)]
    earlier = []
    for each in reversed(before):
        if not each.get("interrupted"):
            break
        earlier.append(each)
    if stage.makes and not earlier and not stage.resumes:
        shutil.rmtree(work.folder / stage.makes, ignore_errors=True)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    work.folder.mkdir(parents=True, exist_ok=True)
    figures = measure(
        stage.command(work), seconds=seconds, log=work.folder / f"{stage.name}.log", good=stage.good, env=env
    )
    for each in earlier:
        figures["cpu_s"] = round(figures["cpu_s"] + each["own_cpu_s"], 2)
    rows = work.rows * stage.rows
    return {
        "stage": stage.name,
        "rows": work.rows,
        "cpu_us_per_row": round(figures["cpu_s"] / rows * 1e6, 1),
        **figures,
        **({"own_cpu_s": figures["cpu_s"]} if figures.get("interrupted") else {}),
        **({"attempts": len(earlier) + 1} if earlier else {}),
        "load": round(os.getloadavg()[0], 1),
        "commit": commit(),
    }


def key(record: dict[str, Any]) -> tuple[str, int]:
    """Stage and number of rows."""
    return record.get("stage", ""), record.get("rows", 0)


def tidy(work: Work, rest: list[Stage]) -> None:
    """Remove what no stage of `rest` needs."""
    for name in {stage.makes for stage in STAGES if stage.makes} - {name for stage in rest for name in stage.needs}:
        shutil.rmtree(work.folder / name, ignore_errors=True)


def run(args: argparse.Namespace) -> int:
    """Run all stages that have no figures; 1 if the time ended before the last one."""
    end = time.monotonic() + args.minutes * 60
    about = {"machine": machine(*PACKAGES), "workers": args.workers}
    if not any(each.get("machine") == about["machine"] for each in read(args.results)):
        append(args.results, about)
    stages = [
        stage
        for stage in STAGES
        if args.rows <= stage.at_most
        and (not args.only or stage.name in args.only)
        and stage.direct in (None, args.direct)
    ]
    work = Work(args.work / str(args.rows), args.rows, args.workers)
    for number, stage in enumerate(stages):
        records = read(args.results)
        done = any(key(each) == (stage.name, args.rows) and not each.get("interrupted") for each in records)
        if done and stage.name not in args.again:
            continue
        seconds = end - time.monotonic()
        if seconds <= 0:
            return 1
        record = run_stage(stage, work, records, seconds)
        append(args.results, record)
        print(json.dumps(record), flush=True)
        if record.get("interrupted"):
            return 1
        if args.tidy:
            tidy(work, stages[number + 1 :])
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--work", type=Path, help="folder for all data: some 10 KB per row")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--results", type=Path, default=RESULTS / "scale.jsonl")
    parser.add_argument("--only", nargs="*", default=[], metavar="STAGE")
    parser.add_argument("--again", nargs="*", default=[], metavar="STAGE")
    parser.add_argument("--direct", action="store_true", help="write the set without a conversion")
    parser.add_argument("--tidy", action="store_true")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table:
        print(table(read(args.results)))
        return
    if args.work is None:
        parser.error("--work is missing")
    sys.exit(run(args))


if __name__ == "__main__":
    main()
