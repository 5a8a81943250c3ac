"""The HTML report of 100,000 rows: `python benchmarks/report_html.py [--rows N] [--no-save]`.

Rows have 8 images each out of 6,000 noisy JPEGs (noise compresses badly, so the page has its maximum size), every
fiftieth row has a finding. Runs in a new process; memory is its peak resident set.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from common import machine, save

PROBE = """
import json, resource, sys, time
from phi3v_data.report.html import write_html
from phi3v_data.schema import Report
directory, target = sys.argv[1], sys.argv[2]
report = Report.model_validate_json(open(sys.argv[3]).read())
start, cpu = time.perf_counter(), time.process_time()
write_html(report, directory, target)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
result = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu, "peak_memory_mib": peak}
print(json.dumps(result))
"""


def write_directory(directory: Path, rows: int) -> None:
    """A video set: one turn of 8 frames, 101 classes."""
    from PIL import Image

    rng = random.Random(0)
    (directory / "images").mkdir()
    for n in range(6000):
        noise = Image.frombytes("RGB", (80, 60), rng.randbytes(14400)).resize((320, 240))
        noise.save(directory / "images" / f"{n}.jpg")
    with open(directory / "bench_train.jsonl", "w", encoding="utf-8", newline="\n") as file:
        for n in range(rows):
            images = [f"{rng.randrange(6000)}.jpg" for _ in range(8)]
            turn = {"images": images, "user": "Which class? " * 20, "assistant": f"Class{n % 101:03d}"}
            file.write(json.dumps({"id": f"train-{n:010d}", "source": "bench", "conversations": [turn]}) + "\n")


def make_report(directory: Path, rows: int) -> str:
    """A report with a finding in every fiftieth row, the first 1000 listed."""
    from phi3v_data.schema import Diagnostic, Report, Summary

    found = tuple(
        Diagnostic(code="control-token", severity="error", file="bench_train.jsonl", line=n, message="a marker")
        for n in range(1, min(rows, 50_000), 50)
    )
    summary = Summary(
        samples=rows, turns=rows, images=6000, splits={"train": rows}, problems={"control-token": rows // 50}
    )
    return Report(
        dir=str(directory), ok=False, level="full", summary=summary, problems=found, stats={}
    ).model_dump_json()


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory, page, report = Path(folder) / "set", Path(folder) / "page.html", Path(folder) / "report.json"
        directory.mkdir()
        write_directory(directory, args.rows)
        report.write_text(make_report(directory, args.rows))
        command = [sys.executable, "-c", PROBE, str(directory), str(page), str(report)]
        measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        size = page.stat().st_size
    result = {
        "command": f"python benchmarks/report_html.py --rows {args.rows}",
        "machine": machine("phi3v", "msgspec", "pillow"),
        "rows": args.rows,
        "page_mb": round(size / 1e6, 1),
        "limit_mb": 30,
        **{key: round(value, 2) for key, value in measured.items()},
    }
    if args.no_save:
        print(json.dumps(result, indent=2))
    else:
        save("report_html", result)


if __name__ == "__main__":
    main()
