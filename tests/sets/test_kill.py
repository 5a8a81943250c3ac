"""Killed at any moment, the same command ends with the bytes of an undisturbed run; two never write one OUT."""

import fcntl
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from processes import run_data
from set_builders import row, write_set

SCRIPT = Path(__file__).with_name("set_kills.py")


@pytest.mark.parametrize("mode", ["fresh", pytest.param("overwrite", marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", ["split", "merge", "clean"])
def test_a_kill_before_any_file_operation_does_no_harm(command: str, mode: str) -> None:
    memory = Path("/dev/shm")  # where there is one, the many runs need not wait for the disk
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as work:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), command, work, mode],
            capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    source = write_set(tmp_path / "in", {"train.jsonl": [row("a"), row("b")]})
    (tmp_path / "out/.phi3v").mkdir(parents=True)
    with open(tmp_path / "out/.phi3v/convert.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run_data("clean", source, tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: another run is writing {tmp_path}/out")
