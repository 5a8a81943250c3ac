"""The script for GPUs runs on a CPU at tiny sizes, and lists every line of code that asks for a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from colour_sets import colour_directory

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "gpu"
sys.path.append(str(FOLDER))

import gpu_lines  # noqa: E402

pytest.importorskip("torch")

QUICK = ("golden", "attention", "packing", "decoder", "data")
SLOW = ("group", "step", "resume", "syncs", "qlora", "answers", "decoder", "data")


def outcomes(results: Path, *arguments: str | Path) -> dict[str, dict[str, Any]]:
    """The checks as the script wrote them into `results`, run on the CPU."""
    command = [sys.executable, str(FOLDER / "gpu_checks.py"), *map(str, arguments)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [*command, "--device", "cpu", "--results", str(results)], env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    checks: dict[str, dict[str, Any]] = json.loads((results / "gpu.json").read_text(encoding="utf-8"))["checks"]
    failed = any(each["outcome"] == "failed" for each in checks.values())
    assert done.returncode == int(failed), checks
    rows = (results / "gpu.md").read_text(encoding="utf-8").splitlines()[6:]
    assert [row.split(" | ")[:2] for row in rows] == [[f"| {name}", each["outcome"]] for name, each in checks.items()]
    return checks


def test_every_line_that_asks_for_a_gpu_is_listed_with_its_check() -> None:
    """A new line is not listed, an entry without its line is stale; entries are beginnings of lines."""
    listed = [*gpu_lines.NOT_RUN, *(entry for entries in gpu_lines.LINES.values() for entry in entries)]
    found = list(gpu_lines.gpu_lines())
    assert [line for line in found if not any(line.startswith(entry) for entry in listed)] == []
    assert [entry for entry in listed if not any(line.startswith(entry) for line in found)] == []
    assert len(found) >= 40


def test_every_check_is_run_by_a_test_and_the_list_names_checks_only() -> None:
    source = (FOLDER / "gpu_checks.py").read_text(encoding="utf-8")
    table = source.partition("CHECKS: dict")[2].partition("\n}\n")[0]
    known = {line.split('"')[1] for line in table.splitlines() if line.startswith('    "')}
    assert known == {*QUICK, *SLOW}
    assert set(gpu_lines.LINES) <= known


def test_checks_of_the_model_pass_on_a_cpu_and_those_without_files_say_what_is_missing(tmp_path: Path) -> None:
    found = outcomes(tmp_path, *QUICK)
    assert {name: each["outcome"] for name, each in found.items()} == {
        **dict.fromkeys(QUICK[:3], "passed"),
        **dict.fromkeys(QUICK[3:], "skipped"),
    }
    assert "--decoder" in found["decoder"]["reason"]
    assert "--data" in found["data"]["reason"]


def test_a_reason_of_several_lines_is_one_row_of_the_table(tmp_path: Path) -> None:
    import gpu_checks

    failed = {"outcome": "failed", "seconds": 1.5, "figures": {"at": 3}, "reason": "no checkpoint: a\n\nb | c\n"}
    gpu_checks.write(tmp_path, {"device": "cpu", "packages": {"torch": "2"}}, {"data": failed})
    rows = (tmp_path / "gpu.md").read_text(encoding="utf-8").splitlines()[6:]
    assert rows == ["| data | failed | 1.5 | at: 3; no checkpoint: a b / c |"]


def test_a_run_has_trained_when_its_metrics_have_a_line(tmp_path: Path) -> None:
    """The file is there, empty, before the first step: a run that is stopped then leaves no checkpoint."""
    from gpu_commands import trained

    metrics = tmp_path / "metrics.jsonl"
    assert not trained(metrics)
    metrics.touch()
    assert not trained(metrics)
    metrics.write_text('{"step": 10}\n')
    assert trained(metrics)


@pytest.mark.slow
def test_all_other_checks_pass_on_a_cpu(tmp_path: Path) -> None:
    """A small model stands for the real decoder, a set of colours for the real one."""
    pytest.importorskip("bitsandbytes")
    sys.path.append(str(ROOT / "benchmarks" / "real"))
    from small_model import Sizes, save_small

    save_small(tmp_path / "decoder", Sizes(width=32, layers=1, heads=2, tower_layers=0), seed=0)
    data = colour_directory(tmp_path / "data")
    found = outcomes(
        tmp_path / "results", *SLOW, "--decoder", tmp_path / "decoder", "--data", data, "--data-seconds", "1"
    )
    assert {name: each["outcome"] for name, each in found.items()} == dict.fromkeys(SLOW, "passed"), found
    for figures in found["step"]["figures"].values():
        assert figures["peak GB"] > 0.05
        assert 0.85 < figures["plan / peak"] < 1.15
