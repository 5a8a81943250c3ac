"""Workers that die, disks that are full or closed, and the same bytes from every engine."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toy_converter import COMMAND, FILE, TOY, Toy, make_source, plain_source, run_cli, tree

import phi3v_data

NOBODY = 65534


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return plain_source(tmp_path / "source", {"train": 10, "val": 4})


@pytest.mark.parametrize(
    ("directive", "said"),
    [
        ("die SIGKILL", "a worker was killed by SIGKILL (the system does so when memory runs out)"),
        ("die SIGSEGV", "a worker was killed by SIGSEGV"),
        ("exit 3", "a worker ended with exit code 3"),
    ],
)
def test_a_worker_that_dies_is_told_with_its_item(source: Path, tmp_path: Path, directive: str, said: str) -> None:
    make_source(source, {"train/g02/s005.txt": directive.ljust(12)})
    with pytest.raises(phi3v_data.UserError) as error:
        phi3v_data.convert(Toy, source, tmp_path / "out", workers=1)
    assert str(error.value).startswith(f"{said} while it converted train/g02/s005.txt; ")
    (source / "train/g02/s005.txt").write_text("image 1".ljust(12))
    result = phi3v_data.convert(Toy, source, tmp_path / "out", workers=2)
    assert result.resumed == 4
    phi3v_data.convert(Toy, source, tmp_path / "fresh", workers=2)
    assert tree(tmp_path / "out", hidden=True) == tree(tmp_path / "fresh", hidden=True)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("directive", "said"), [("memory", "MemoryError"), ("import", "ModuleNotFoundError")])
def test_an_error_that_every_sample_would_hit_ends_the_run(
    source: Path, tmp_path: Path, workers: int, directive: str, said: str
) -> None:
    make_source(source, {"train/g00/s000.txt": directive})
    with pytest.raises(phi3v_data.UserError, match=rf"^item train/g00/s000\.txt: {said}.*toy_converter\.py:[0-9]+"):
        phi3v_data.convert(Toy, source, tmp_path / "out", workers=workers)


def test_what_a_converter_prints_stays_off_stdout(source: Path, tmp_path: Path) -> None:
    make_source(source, {"train/g00/s000.txt": "print"})
    done = run_cli("convert", "--converter", TOY, "--source", source, "--out_dir", tmp_path / "out", "--workers", 1)
    assert done.stdout == f"{tmp_path}/out: 14 samples (train 10, val 4), 13 images\n"
    assert "a converter's own words" in done.stderr


SMALL_DISK = """
set -e
mkdir -p {disk}
mount -t tmpfs -o size=200k tmpfs {disk}
set +e
{convert} --size 64
echo "exit $?"
find {disk} -path '*/.phi3v/convert/run*'
find {disk} -mindepth 1 -maxdepth 1
mount -o remount,size=4m {disk}
{convert} --size 64
echo "exit $?"
cp -r {disk}/out {copy}
"""

READ_ONLY_DISK = """
set -e
mkdir -p {disk}
mount -t tmpfs tmpfs {disk}
mkdir {disk}/out
mount -o remount,ro {disk}
set +e
{convert}
echo "exit $?"
find {disk} -mindepth 1
"""


def in_namespace(script: str, source: Path, tmp_path: Path) -> "subprocess.CompletedProcess[str]":
    """Run a shell script that may mount; skips where the kernel does not let us."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no mounts of our own here")
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    convert = f'"$@" convert --converter {TOY} --source {source} --out_dir {disk}/out --workers 2'
    text = script.format(disk=disk, copy=copy, convert=convert)
    done = subprocess.run(["unshare", "-rm", "sh", "-c", text, "sh", *COMMAND], capture_output=True, text=True)
    if "mount:" in done.stderr:
        pytest.skip("no mounts of our own here")
    return done


def test_a_full_disk_is_one_sentence_and_the_run_resumes_later(source: Path, tmp_path: Path) -> None:
    done = in_namespace(SMALL_DISK, source, tmp_path)
    lines = done.stdout.splitlines()
    disk = tmp_path / "disk"
    assert lines[:2] == ["exit 2", f"{disk}/out"]
    assert lines[-1] == "exit 0"
    errors = done.stderr.splitlines()
    assert errors[0].endswith("the disk is full: make room and run the same command again")
    assert errors[0].startswith(f"error: {disk}/out")
    assert "resumed after" in errors[1]
    phi3v_data.convert(Toy, source, tmp_path / "fresh", workers=1, options={"size": 64})
    assert tree(tmp_path / "copy", hidden=True) == tree(tmp_path / "fresh", hidden=True)


def test_a_read_only_disk_is_one_sentence(source: Path, tmp_path: Path) -> None:
    done = in_namespace(READ_ONLY_DISK, source, tmp_path)
    assert done.stdout.splitlines() == ["exit 2", f"{tmp_path}/disk/out"]
    assert done.stderr == f"error: cannot create the folder {tmp_path}/disk/out/.phi3v: the file system is read-only\n"


def as_nobody(*args: object) -> "subprocess.CompletedProcess[str]":
    """Run the command as a user whom permissions bind."""
    if os.getuid() != 0:
        return run_cli(*args)
    if shutil.which("setpriv") is None:
        pytest.skip("root is not bound by permissions, and there is no setpriv")
    command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *COMMAND, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    """A folder that another user can reach and fill."""
    if os.getuid() == 0:
        for folder in (tmp_path, *tmp_path.parents):
            if not folder.stat().st_mode & 0o001:
                folder.chmod(folder.stat().st_mode | 0o011)
        probe = as_nobody("--version")
        if probe.returncode:
            pytest.skip("another user cannot run the interpreter")
    tmp_path.chmod(0o777)
    return tmp_path


def test_no_permission_is_one_sentence(source: Path, open_folder: Path) -> None:
    (open_folder / "out").mkdir(mode=0o555)
    args = ["convert", "--converter", TOY, "--source", source, "--out_dir"]
    for place in ("out", "out/deeper"):
        done = as_nobody(*args, open_folder / place)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: cannot create the folder {open_folder}/out/")
        assert done.stderr.endswith("permission denied\n")
        assert done.stderr.count("\n") == 1
    assert not list((open_folder / "out").iterdir())


def test_an_export_without_permission_names_the_folder(tmp_path: Path, open_folder: Path) -> None:
    dataset = tmp_path / "set"
    dataset.mkdir()
    row = {"id": "a", "source": "x", "conversations": [{"user": "Why?", "assistant": "So"}]}
    (dataset / "x_train.jsonl").write_text(json.dumps(row) + "\n")
    (open_folder / "closed").mkdir(mode=0o555)
    done = as_nobody("export", "llava", dataset, "--out", open_folder / "closed" / "o")
    closed = f"{open_folder}/closed"
    assert done.stderr == f"error: {closed}/o: cannot be written (no permission in {closed}); choose another --out\n"
    assert done.returncode == 2
    done = as_nobody("export", "llava", dataset, "--out", open_folder / "closed" / "deep" / "o")
    assert done.stderr == f"error: cannot create the folder {closed}/deep: Permission denied\n"
    assert done.returncode == 2


def test_a_source_that_may_not_be_read_is_a_reject(source: Path, open_folder: Path) -> None:
    (source / "train/g00/s001.txt").chmod(0)
    args = ["--source", source, "--out_dir", open_folder / "out", "--workers", 0]
    done = as_nobody("convert", "--converter", TOY, *args)
    assert done.returncode == 1, done.stderr
    assert "1 rejected (1 converter-error" in done.stdout
    assert "PermissionError" in (open_folder / "out/rejects.jsonl").read_text()
    assert str(open_folder) not in (open_folder / "out/rejects.jsonl").read_text()


@pytest.mark.parametrize("workers", [0, 1])
def test_no_file_may_be_larger_than_allowed(source: Path, tmp_path: Path, workers: int) -> None:
    """A disk error in the midst of an image: nothing half written, nothing left."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); sys.path.insert(0, sys.argv[3])\n"
        "import phi3v_data\nfrom toy_converter import Toy\nresource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        f"phi3v_data.convert(Toy, sys.argv[1], sys.argv[2], options={{'size': 200}}, workers={workers})"
    )
    args = [sys.executable, "-B", "-c", code, str(source), str(tmp_path / "out"), str(FILE.parent)]
    done = subprocess.run(args, capture_output=True, text=True)
    assert os.strerror(errno.EFBIG) not in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].endswith("the file would be larger than allowed")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ray_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    make_source(source, {"train/g00/s001.txt": "reject", "train/g01/s003.txt": "raise"})
    args = ["convert", "--converter", TOY, "--source", source, "--workers", 2]
    rayed = run_cli(*args, "--out_dir", tmp_path / "ray", "--engine", "ray")
    local = run_cli(*args, "--out_dir", tmp_path / "local")
    assert (rayed.returncode, local.returncode) == (1, 1), rayed.stderr
    assert tree(tmp_path / "ray", hidden=True) == tree(tmp_path / "local", hidden=True)
    make_source(source, {"val/g00/s000.txt": "die SIGKILL"})
    died = run_cli(*args, "--out_dir", tmp_path / "dies", "--engine", "ray")
    assert died.returncode == 2
    assert (
        "a worker of Ray died (WorkerCrashedError) on a part of 2 items that begins with val/g00/s000.txt; "
        in died.stderr.splitlines()[-1]
    )


def test_without_ray_it_says_what_to_install(source: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['ray'] = None; from phi3v_data.cli.app import main; sys.argv[0] = 'phi3v-data'; main()"
    )
    args = ["convert", "--converter", TOY, "--source", source, "--out_dir", tmp_path / "out", "--engine", "ray"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install -c constraints.txt -e '.[ray]' in a clone of phi3v" in done.stderr
    assert not (tmp_path / "out").exists()
