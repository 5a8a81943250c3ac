"""Run transformers' own common tests over the port: `python benchmarks/model/transformers_suite.py CHECKOUT [-k EXPR]`.

CHECKOUT is a checkout of transformers at the release that is installed; its tests are run from there, none is copied.
Prints passed, skipped and failed tests and writes them to benchmarks/results/model_transformers.json (--no-save: only
prints). docs/model.md gives the reason of each failing one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import machine, save

CASES = Path(__file__).with_name("transformers_cases.py")


def main() -> None:
    """Parse, run, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a transformers checkout, with its folder tests")
    parser.add_argument("-k", default="", help="pytest's selection")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    if not (options.checkout / "tests" / "test_modeling_common.py").is_file():
        parser.error(f"{options.checkout}: has no tests/test_modeling_common.py; give a checkout of transformers")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", str(CASES), "-q", "-p", "no:cacheprovider", "-c", os.devnull]
        command += ["--rootdir", folder, f"--junitxml={report}", "--tb=short", "--import-mode=importlib"]
        paths = [str(options.checkout.resolve()), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
        subprocess.run([*command, "-k", options.k] if options.k else command, env=environment, check=False)
        outcomes = read_report(report)
    counts = Counter(outcome for outcome, _ in outcomes.values())
    result = {
        "machine": machine("torch", "transformers", "accelerate", "peft"),
        "counts": dict(sorted(counts.items())),
        "failed": {name: why for name, (outcome, why) in sorted(outcomes.items()) if outcome == "failed"},
        "skipped": {name: why for name, (outcome, why) in sorted(outcomes.items()) if outcome == "skipped"},
    }
    print(result["counts"])
    if not options.no_save:
        save("model_transformers", result)


def read_report(path: Path) -> dict[str, tuple[str, str]]:
    """Outcome of each test and the first line of its reason, from pytest's report."""
    outcomes = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        outcome, why = "passed", ""
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                outcome = "skipped" if child.tag == "skipped" else "failed"
                why = (child.get("message") or "").split("\n")[0][:200]
        outcomes[f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name', '')}"] = (outcome, why)
    return outcomes


if __name__ == "__main__":
    main()
