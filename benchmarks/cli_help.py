"""`phi3v-data --help` against an empty Typer application: `python benchmarks/cli_help.py [--runs N] [--no-save]`.

Both run alternately, in a new process each time, so that other load slows both equally.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

from common import machine, save

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


def seconds(code: str) -> float:
    """Wall time of one `--help`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    seconds(BARE), seconds(OURS)
    pairs = [(seconds(BARE), seconds(OURS)) for _ in range(args.runs)]
    bare, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    result = {
        "command": f"python benchmarks/cli_help.py --runs {args.runs}",
        "machine": machine("phi3v", "typer", "rich"),
        "runs": args.runs,
        "bare_typer_ms": round(bare * 1000, 1),
        "phi3v_data_ms": round(ours * 1000, 1),
        "ratio": round(ours / bare, 2),
        "limit": 1.5,
    }
    if args.no_save:
        print(json.dumps(result, indent=2))
    else:
        save("cli_help", result)


if __name__ == "__main__":
    main()
