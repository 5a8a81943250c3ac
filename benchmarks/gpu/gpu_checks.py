"""What only a GPU can show, in under ten minutes: `bash benchmarks/gpu.sh [CHECK...]`.

Needs one GPU of 80 GB or more, torch, transformers, peft and this checkout, of which 64 MiB are enough; no network.
Each check prints a line, and gpu.json and gpu.md in benchmarks/results are written after each, also if some fail
(exit code 1 then). `--device cpu` runs the checks at tiny sizes, to test this script; it writes only into a given
`--results`. `gpu_lines.py` lists the lines of phi3v_train that only a GPU runs, with the check that runs them.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "benchmarks/model", "benchmarks/real", "tests", "tests/models")
sys.path[1:1] = [str(ROOT), *(str(ROOT / name) for name in FOLDERS)]

STARTED = time.monotonic()
SECONDS = 590.0
"""After which gpu.sh stops this script."""

import torch  # noqa: E402
from common import RESULTS, machine  # noqa: E402
from gpu_commands import answers, data, qlora, resume, syncs  # noqa: E402
from gpu_models import attention, decoder, golden, group, packing  # noqa: E402
from gpu_outcome import FailedCheck, Options, SkippedCheck  # noqa: E402
from gpu_step import step  # noqa: E402

CHECKS: dict[str, Callable[[Options], dict[str, Any]]] = {
    "golden": golden,
    "attention": attention,
    "packing": packing,
    "group": group,
    "step": step,
    "resume": resume,
    "syncs": syncs,
    "qlora": qlora,
    "answers": answers,
    "decoder": decoder,
    "data": data,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the checks, print and save; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", help=f"of {', '.join(CHECKS)}; all if none")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--data", type=Path, help="a set to train on, such as build/easy_vqa/data")
    parser.add_argument(
        "--data-seconds", type=float, default=300.0, help="how long to train on it, if the time of the script allows it"
    )
    parser.add_argument("--decoder", type=Path, help="directory of benchmarks/real/smollm2.py")
    parser.add_argument("--peak", type=float, default=989.0, help="dense bf16 peak of the GPU in TFLOP/s")
    parser.add_argument("--results", type=Path, help="folder for gpu.json and gpu.md")
    given = parser.parse_args(arguments)
    if unknown := set(given.checks) - set(CHECKS):
        parser.error(f"unknown check {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --device cpu runs the checks at tiny sizes")
    for option, folder in (("--data", given.data), ("--decoder", given.decoder)):
        if folder is not None and not folder.is_dir():
            parser.error(f"{option} {folder}: is no directory")
    place: Path | None = given.results or (RESULTS if given.device == "cuda" else None)
    described = machine("torch", "transformers", "peft", "bitsandbytes", "flash-attn")
    described["device"] = torch.cuda.get_device_name() if given.device == "cuda" else "CPU, tiny sizes"
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        options = Options(
            given.device, Path(folder), given.data, given.data_seconds, given.decoder, given.peak, STARTED + SECONDS
        )
        for name in given.checks or CHECKS:
            results[name] = outcome_of(name, options)
            print(f"{name} {json.dumps(results[name])}", flush=True)
            if place is not None:
                write(place, described, results)
    return int(any(each["outcome"] == "failed" for each in results.values()))


def outcome_of(name: str, options: Options) -> dict[str, Any]:
    """Outcome, figures and seconds of a check; whatever it raises is its failure, and the next one runs."""
    start = time.perf_counter()
    found: dict[str, Any]
    try:
        found = {"outcome": "passed", "figures": CHECKS[name](options)}
    except SkippedCheck as reason:
        found = {"outcome": "skipped", "reason": str(reason)}
    except FailedCheck as error:
        found = {"outcome": "failed", "reason": str(error)}
        if error.figures is not None:
            found["figures"] = error.figures
    except Exception as error:
        found = {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"}
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


def write(place: Path, described: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
    """Write gpu.json and gpu.md."""
    place.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": described, "checks": results}, indent=2, ensure_ascii=False) + "\n"
    (place / "gpu.json").write_text(text, encoding="utf-8")
    versions = ", ".join(f"{name} {version}" for name, version in described["packages"].items())
    lines = ["# On a GPU: `bash benchmarks/gpu.sh`", "", f"{described['device']}; {versions}.", ""]
    lines += ["| check | outcome | seconds | figures |", "| --- | --- | --- | --- |"]
    for name, each in results.items():
        figures = "; ".join([*flat(each.get("figures", {})), *([each["reason"]] if "reason" in each else [])])
        cell = " ".join(figures.replace("|", "/").split())  # a reason may be the last lines of a run's log
        lines.append(f"| {name} | {each['outcome']} | {each['seconds']} | {cell} |")
    (place / "gpu.md").write_text("\n".join([*lines, ""]), encoding="utf-8")


def flat(figures: dict[str, Any], before: str = "") -> list[str]:
    """`NAME: VALUE` of each figure, with the names of the tables around it."""
    found: list[str] = []
    for name, value in figures.items():
        label = f"{before}{name}"
        found += flat(value, f"{label}, ") if isinstance(value, dict) else [f"{label}: {json.dumps(value)}"]
    return found


if __name__ == "__main__":
    sys.exit(main())
