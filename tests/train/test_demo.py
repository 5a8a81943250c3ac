"""The steps of `make demo` after the conversion, for other seeds than its own (0, which `.ci/run` does)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import phi3v_data

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_the_demo_learns_its_classes_though_it_is_killed(tmp_path: Path, seed: int) -> None:
    phi3v_data.convert("ucf101", ROOT / "examples" / "data" / "UCF101_subset", tmp_path / "ucf101")
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "train_demo.py", tmp_path, "--seed", str(seed)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed with SIGKILL after checkpoint-000030" in done.stdout
    assert "resumes from checkpoint-000030" in done.stderr
    assert float(re.search(r"^  train +([0-9.]+)%$", done.stdout, re.MULTILINE)[1]) >= 90
    for kind in ("loss plot", "predictions", "merged model"):
        place = re.search(rf"^{kind} +(.+)$", done.stdout, re.MULTILINE)
        assert place is not None
        assert Path(place[1]).exists()
