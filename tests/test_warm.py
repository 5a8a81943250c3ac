"""A process that is forked warm is like one that python starts: streams, environment, folder, signals, exit code."""

import os
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from processes import run_data, start
from warm import PRELOADED

pytest.importorskip("torch")
pytest.importorskip("peft")

CODE = """
import os, sys
print(sys.argv, __name__, os.getcwd(), os.environ["ONE"], os.environ.get("TWO"), os.getsid(0) == os.getpid())
print(sys.stdin.readline().strip(), file=sys.stderr)
raise SystemExit(7)
"""


def test_it_has_its_own_arguments_streams_folder_environment_and_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWO", "2")
    start("-c", "", fresh=False).communicate(timeout=120)  # the server has seen TWO
    monkeypatch.delenv("TWO")
    process = start("-c", CODE, "a b", cwd=tmp_path, stdin=subprocess.PIPE, new_session=True, ONE="1")
    assert process.stdin is not None
    process.stdin.write("asked\n")
    process.stdin.flush()
    output, errors = process.communicate(timeout=120)
    assert output == f"['-c', 'a b'] __main__ {tmp_path} 1 None True\n"
    assert (errors, process.returncode) == ("asked\n", 7)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, -15), (signal.SIGINT, -2)])
def test_a_signal_ends_it(number: int, code: int) -> None:
    process = start("-c", "import time; print('ready', flush=True); time.sleep(1000)")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert process.poll() is None
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code
    assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)


def test_all_that_is_to_be_imported_exists() -> None:
    assert [name for name in PRELOADED if find_spec(name) is None] == []


def test_a_command_of_phi3v_data_runs_in_the_folder_that_is_given(tmp_path: Path) -> None:
    done = run_data("schema", "--out_dir", "made", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "sample.schema.json" in os.listdir(tmp_path / "made")
