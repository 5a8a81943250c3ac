"""Killed at any moment, the same command resumes and ends with the bytes of an undisturbed run."""

import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from toy_converter import TOY, make_source, plain_source, run_cli, start_cli, tree

import phi3v_data
from phi3v_data.lock import share_lock

ROOT = Path(__file__).resolve().parent.parent
CLIPS = ROOT / "examples/data/UCF101_subset"
POLL = 0.01


def journal_size(out: Path) -> int:
    """How far a run has come: files and folders under DIR, which only grow in number until it ends."""
    return sum(len(folders) + len(files) for _, folders, files in os.walk(out))


def kill_when(process: "subprocess.Popen[bytes]", out: Path, wanted: int, group: bool) -> bool:
    """Kill a run as soon as it has come so far; False where it ended before."""
    while process.poll() is None:
        if journal_size(out) >= wanted:
            (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(POLL)
    return False


def kill_and_resume(args: list[object], out: Path, kills: int, seed: int) -> int:
    """Kill runs at moments spread over the whole work, each going on from the one before; returns how many were hit."""
    done = run_cli("convert", *args, "--out_dir", out.with_name("whole"))
    assert done.returncode in (0, 1), done.stderr
    total = journal_size(out.with_name("whole")) * 11 // 10
    rng = random.Random(seed)
    hit = 0
    for moment in sorted(rng.randrange(total) for _ in range(kills)):
        process = start_cli(["convert", *args, "--out_dir", out], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stderr is not None
        hit += kill_when(process, out, moment, group=rng.random() < 0.5)
        errors = process.stderr.read().decode()
        process.stderr.close()
        assert process.returncode in (0, done.returncode, -signal.SIGKILL), errors
    last = run_cli("convert", *args, "--out_dir", out)
    assert last.returncode == done.returncode, last.stderr
    assert tree(out, hidden=True) == tree(out.with_name("whole"), hidden=True)
    return hit


def test_killed_conversions_end_with_the_same_bytes(tmp_path: Path) -> None:
    source = plain_source(tmp_path / "source", {"train": 60, "val": 20})
    make_source(source, {"train/g00/s000.txt": "reject", "val/g00/s001.txt": "bytes cut"})
    args = ["--converter", TOY, "--source", source, "--workers", 2, "--size", 96]
    assert kill_and_resume(args, tmp_path / "out", kills=6, seed=1) >= 3


@pytest.mark.slow
@pytest.mark.skipif(not CLIPS.exists(), reason="needs the mini set")
@pytest.mark.parametrize("seed", [1, 2])
def test_kills_on_real_clips(tmp_path: Path, seed: int) -> None:
    args: list[object] = ["ucf101", "--source", CLIPS, "--workers", 1 + seed]
    assert kill_and_resume(args, tmp_path / "out", kills=12, seed=seed) >= 6


@pytest.mark.parametrize(
    "mode", ["fresh", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("overwrite", "shards"))]
)
def test_a_kill_before_any_file_operation_does_no_harm(tmp_path: Path, mode: str) -> None:
    """Also: while an old set is overwritten, no mixture of old and new ever counts as complete."""
    source = make_source(
        tmp_path / "source",
        {
            "train/g0/a.txt": "image 1 x.png",
            "train/g1/b.txt": "image 2 y.png",
            "val/g2/c.txt": "reject",
            "val/g3/d.txt": "image 3 x.png",
            "test/g4/e.txt": "image 4",
        },
    )
    script = Path(__file__).with_name("kill_points.py")
    memory = Path("/dev/shm")  # where there is one, the hundred runs need not wait for the disk
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as work:
        done = subprocess.run([sys.executable, str(script), str(source), work, mode], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    import psutil

    return [child.pid for child in psutil.Process(pid).children()]


@pytest.fixture
def waiting_run(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """A conversion whose workers wait for ever on a named pipe, with some samples done before."""
    source = plain_source(tmp_path / "source", {"train": 8})
    os.mkfifo(tmp_path / "pipe")
    make_source(source, {f"train/g03/s{n:03d}.txt": f"wait {tmp_path / 'pipe'}\nimage {n}" for n in (6, 7)})
    process = start_cli(
        ["convert", "--converter", TOY, "--source", source, "--out_dir", tmp_path / "out", "--workers", 2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    parts = tmp_path / "out/.phi3v/convert/parts"
    while not parts.exists() or len(list(parts.iterdir())) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(POLL)
    yield process, tmp_path
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def gone(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(POLL)


def test_workers_end_with_a_parent_that_is_killed_alone(
    waiting_run: tuple["subprocess.Popen[bytes]", Path],
) -> None:
    process, _ = waiting_run
    workers = children(process.pid)
    assert workers
    process.kill()
    process.wait()
    assert_gone(workers)


def test_control_c_says_how_to_resume_and_leaves_no_process_behind(
    waiting_run: tuple["subprocess.Popen[bytes]", Path],
) -> None:
    process, folder = waiting_run
    workers = children(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == b""
    assert b"the same command resumes" in errors
    assert b"Traceback" not in errors
    assert_gone(workers)
    (folder / "pipe").unlink()
    (folder / "pipe").touch()
    args = ["convert", "--converter", TOY, "--source", folder / "source"]
    again = run_cli(*args, "--out_dir", folder / "out")
    assert again.returncode == 0
    assert "resumed after 6 samples" in again.stderr
    assert run_cli(*args, "--out_dir", folder / "whole").returncode == 0
    assert tree(folder / "out", hidden=True) == tree(folder / "whole", hidden=True)


def test_a_second_converter_on_the_same_directory_is_refused(
    waiting_run: tuple["subprocess.Popen[bytes]", Path],
) -> None:
    process, folder = waiting_run
    before = tree(folder / "out", hidden=True)
    plain_source(folder / "other", {"train": 2})
    for extra in ([], ["--overwrite"]):
        args = ["convert", "--converter", TOY, "--source", folder / "other", "--out_dir", folder / "out", *extra]
        done = run_cli(*args)
        assert done.returncode == 2
        assert done.stderr == (f"error: another run is writing {folder}/out; wait for it, or choose another folder\n")
    assert tree(folder / "out", hidden=True) == before
    assert process.poll() is None


def test_workers_that_a_killed_run_left_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not end is named; once it has ended, the same command converts."""
    plain_source(tmp_path / "source", {"train": 2})
    (tmp_path / "out/.phi3v").mkdir(parents=True)
    worker = share_lock(tmp_path / "out/.phi3v/workers.lock")
    seconds = itertools.count(0, 10)
    waits: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: next(seconds), sleep=waits.append)
    monkeypatch.setattr("phi3v_data.lock.time", clock)
    arguments = (TOY, tmp_path / "source", tmp_path / "out")
    with pytest.raises(phi3v_data.BusyError, match="workers of an earlier run still write to"):
        phi3v_data.convert(*arguments, workers=0)
    assert len(waits) == 3  # looked at after 0, 10, 20 and 30 seconds, given up after that
    os.close(worker)
    assert phi3v_data.convert(*arguments, workers=0).samples == 2
