"""The start of `phi3v-data`: `python benchmarks/cli_help.py [--runs N] [--no-save]`.

    help     wall time of `phi3v-data --help` against that of an empty Typer application; they run alternately
    start    CPU seconds (user and system, of the process and its workers) of whole commands on a set of five rows with
             four images, best of five

Every run is a new process. Bytecode is compiled before, as installing a package does, in a folder of its own.
`convert` and `import` run without workers, and with the two that they start by default on two cores.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine, save, with_bytecode

from phi3v_data.cli.app import COMMANDS

BARE = """
import typer
app = typer.Typer()
@app.command()
def one(x: int = 1): "Do one thing."
@app.command()
def two(x: int = 1): "Do another."
app()
"""
OURS = "from phi3v_data.cli.app import main; main()"
LIBRARIES = "import msgspec, numpy, PIL.Image, rich.console, typer; from pydantic import BaseModel"
DATA = Path(__file__).parents[1] / "tests/data/chat_formats/sharegpt"
ROWS = DATA / "data_messages.json"
SCENES = Path(__file__).parents[1] / "examples/data/scenes"

READING = (
    "validate DIR",
    "validate DIR --level quick",
    "validate DIR --for trl",
    "validate DIR --html page.html",
    "validate ROWS",
    "stats DIR",
    "preview DIR",
    "preview DIR --html page.html",
    "card DIR --overwrite",
    "clean DIR OUT",
    "split DIR OUT --split train=0.6,val=0.4",
    "merge DIR DIR2 OUT",
    "export sharegpt DIR --out OUT",
    "export webdataset DIR --out OUT",
    "export hub DIR --out OUT",
)
WRITING = (
    "import sharegpt ROWS --out_dir OUT --workers 0",
    "import sharegpt ROWS --out_dir OUT --workers 2",
    "convert image_folder --source SCENES --out_dir OUT --workers 0",
    "convert image_folder --source SCENES --out_dir OUT --workers 2",
)


def python(code: str, *args: str, folder: str | Path = ".") -> None:
    """Run a program in a new interpreter."""
    command = [sys.executable, "-c", code, *args]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=folder)
    if done.returncode:
        raise SystemExit(f"{' '.join(args)} exited with {done.returncode}: {done.stderr}")


def wall_seconds(code: str) -> float:
    """Wall time of one `--help`."""
    start = time.perf_counter()
    python(code, "--help")
    return time.perf_counter() - start


def cpu_seconds(code: str, *args: str, folder: Path) -> float:
    """CPU time of the best of five runs."""
    found = []
    for _ in range(5):
        shutil.rmtree(folder / "out", ignore_errors=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        python(code, *args, folder=folder)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return round(min(found), 3)


def measure_start() -> dict[str, Any]:
    """CPU seconds of each command, and of importing the libraries alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = {"DIR": "set", "DIR2": "set2", "OUT": "out", "ROWS": str(ROWS), "SCENES": str(SCENES)}
        for target in ("set", "set2"):
            python(OURS, "import", "sharegpt", str(ROWS), "--out_dir", target, "--workers", "0", folder=folder)
        result: dict[str, Any] = {
            "interpreter": cpu_seconds("pass", folder=folder),
            "imports of msgspec, numpy, Pillow, rich, typer, pydantic": cpu_seconds(LIBRARIES, folder=folder),
        }
        for line in ("--help", *(f"{command} --help" for command in COMMANDS), *READING, *WRITING):
            words = [places.get(word, word) for word in line.split()]
            result[line] = cpu_seconds(OURS, *words, folder=folder)
    return result


def measure_help(runs: int) -> dict[str, Any]:
    """Median wall times of the help."""
    wall_seconds(BARE), wall_seconds(OURS)
    pairs = [(wall_seconds(BARE), wall_seconds(OURS)) for _ in range(runs)]
    bare, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "runs": runs,
        "bare_typer_ms": round(bare * 1000, 1),
        "phi3v_data_ms": round(ours * 1000, 1),
        "ratio": round(ours / bare, 2),
        "limit": 1.5,
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    with with_bytecode():
        result = {
            "command": f"python benchmarks/cli_help.py --runs {args.runs}",
            "machine": machine("phi3v", "typer", "rich", "pydantic", "numpy"),
            "load_average": os.getloadavg()[1],  # of other work, which slows each program
            **measure_help(args.runs),
            "start_cpu_seconds": measure_start(),
        }
    if args.no_save:
        print(json.dumps(result, indent=2))
    else:
        save("cli_help", result)


if __name__ == "__main__":
    main()
