"""File systems that cannot do all that ext4 does: each works, or is refused with one sentence that names it.

tmpfs, ext4, overlay, FUSE and exFAT are mounted for real where root may; what NFS, SMB and Lustre answer is injected
into every process of a run. `docs/reliability.md` says which is which.
"""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import kills
import pytest
from PIL import Image
from toy_converter import COMMAND, TOY, Toy, make_source, noise, plain_source, rows, run_cli, tree

import phi3v_data
from phi3v_data.draft import DraftImage
from phi3v_data.mounts import mount_of
from phi3v_data.sets.clean import clean_set
from phi3v_data.sets.merge import merge_sets
from phi3v_data.sets.split import split_set
from phi3v_data.writing.images import prepare_image, store_image
from phi3v_data.writing.journal import Journal

TESTS = Path(__file__).parent


def injected(folder: Path, failures: Mapping[str, int]) -> dict[str, str]:
    """An environment in which every Python process fails so: `{"os.link": errno.EPERM}`."""
    folder.mkdir()
    calls = "".join(f"kills.fail({code}, {operation!r})\n" for operation, code in failures.items())
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.path.append({str(TESTS)!r})\nimport kills\n{calls}")
    return {**os.environ, "PYTHONPATH": str(folder)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten samples with images of their own, and some that want one name for two images."""
    plain_source(tmp_path / "source", {"train": 10})
    files = {f"train/h/{n}.txt": f"image {n % 2} shared/x.png\nimage 7 shared/y.png" for n in range(6)}
    return make_source(tmp_path / "source", files)


@pytest.mark.parametrize(
    ("workers", "failures"),
    [
        pytest.param(2, {"os.link": errno.EPERM}, id="exfat"),
        pytest.param(2, {"os.link": errno.EOPNOTSUPP, "os.fsync": errno.EINVAL, "os.chmod": errno.EPERM}, id="smb"),
        pytest.param(0, {"os.link": errno.EMLINK}, id="too many links"),
        pytest.param(0, {"os.link": errno.ENOSYS, "os.fsync": errno.ENOTSUP}, id="fuse"),
    ],
)
def test_without_hard_links_and_folder_syncs_the_bytes_are_the_same(
    source: Path, tmp_path: Path, workers: int, failures: Mapping[str, int]
) -> None:
    environment = injected(tmp_path / "inject", failures)
    args = ["convert", "--converter", TOY, "--source", source, "--workers", workers]
    done = run_cli(*args, "--out_dir", tmp_path / "out", env=environment)
    assert done.returncode == 1, done.stderr
    assert "3 image-name-collision" in done.stdout
    phi3v_data.convert(Toy, source, tmp_path / "normal", workers=0)
    assert tree(tmp_path / "out", hidden=True) == tree(tmp_path / "normal", hidden=True)
    if workers == 0:
        return
    done = run_cli("split", tmp_path / "out", tmp_path / "split", "--split", "a=0.5,b=0.5", env=environment)
    assert done.returncode == 0, done.stderr
    assert "12 of 12 images copied" in done.stderr
    assert tree(tmp_path / "split/images") == tree(tmp_path / "out/images")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_without_file_locks_it_is_refused_and_the_file_system_named(source: Path, tmp_path: Path, code: int) -> None:
    """NFS without lockd, FUSE, Lustre without -o flock: two runs could not be kept apart."""
    environment = injected(tmp_path / "inject", {"fcntl.flock": code})
    done = run_cli("convert", "--converter", TOY, "--source", source, "--out_dir", tmp_path / "out", env=environment)
    assert done.returncode == 2
    found = mount_of(tmp_path)
    assert found is not None
    assert done.stderr == (
        f"error: {tmp_path}/out cannot be locked against a second run: the file system ({found[0]}, mounted at "
        f"{found[1]}) has no file locks ({os.strerror(code)}); mount it with locks (NFS: with lockd, Lustre: -o "
        "flock), or write to another disk\n"
    )
    assert not (tmp_path / "out").exists()


def test_two_workers_without_hard_links_lose_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right between the check and the rename of one worker, another stores its image under the same name."""
    journal = Journal(tmp_path)
    for folder in (journal.images, journal.collisions, journal.run):
        folder.mkdir(parents=True)
    one, two = (prepare_image(DraftImage(noise(n, 8, "colour"), name="x.png"), "train") for n in (1, 2))
    rename = os.replace
    outcomes: list[bool] = []

    def other_first(source: Path, target: Path) -> None:
        if not outcomes:
            outcomes.append(True)
            outcomes[0] = store_image(two, journal, tmp_path / "scratch-two")
        rename(source, target)

    def no_link(*args: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr(os, "replace", other_first)
    assert store_image(one, journal, tmp_path / "scratch-one")
    assert outcomes == [False]
    assert (journal.images / "x.png").read_bytes() == one.data
    assert (journal.collisions / two.record.digest).read_bytes() == two.data
    assert store_image(one, journal, tmp_path / "scratch-one")


def test_what_a_claim_left_open_is_settled_when_the_set_is_published(tmp_path: Path) -> None:
    """A worker that dies between its claim and its image leaves a name with nothing at it; both rows stay whole."""
    source = make_source(tmp_path / "source", {f"train/g/{n}.txt": "image 1 x.png" for n in range(4)})
    script = (
        "import sys, os, errno; sys.path.insert(0, sys.argv[3])\n"
        "import kills, phi3v_data\nfrom toy_converter import Toy\n"
        "from phi3v_data.writing import images\n"
        "kills.fail(errno.EPERM, 'os.link')\n"
        "images._claim = lambda target, journal: False\n"
        "phi3v_data.convert(Toy, sys.argv[1], sys.argv[2], workers=0)\n"
    )
    args = [sys.executable, "-c", script, str(source), str(tmp_path / "out"), str(TESTS)]
    done = subprocess.run(args, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    phi3v_data.convert(Toy, source, tmp_path / "normal", workers=0)
    assert tree(tmp_path / "out", hidden=True) == tree(tmp_path / "normal", hidden=True)


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    source = plain_source(tmp_path / "before", {"train": 8})
    phi3v_data.convert(Toy, source, tmp_path / "set", workers=0)
    return tmp_path / "set"


WRITERS: dict[str, Callable[[Path, Path], object]] = {
    "convert": lambda source, out: phi3v_data.convert(Toy, source.with_name("before"), out, workers=0),
    "split": lambda source, out: split_set(source, out, "a=0.5,b=0.5"),
    "clean": lambda source, out: clean_set(source, out),
    "merge": lambda source, out: merge_sets([source], out),
}


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_what_did_not_reach_the_disk_is_not_published(
    converted: Path, tmp_path: Path, command: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ctypes

    said = {errno.EIO: "the disk failed", errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
    monkeypatch.setattr(ctypes, "CDLL", ctypes.CDLL)  # put back at the end
    kills.fail_syncfs(code)
    out = tmp_path / "out"
    with pytest.raises(phi3v_data.UserError, match=said[code]):
        WRITERS[command](converted, out)
    assert not (out / "dataset.json").exists()
    monkeypatch.undo()
    WRITERS[command](converted, out)
    assert (out / "dataset.json").exists()


def test_an_archive_counts_as_unpacked_only_once_its_files_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from phi3v_data.sources import archive

    (tmp_path / "files").mkdir()
    (tmp_path / "files/a.txt").write_text("a")
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), "tar", tmp_path / "files"))
    work = tmp_path / "work"
    order: list[str] = []

    def synced(folder: Path) -> None:
        order.append(f"sync {sorted(path.name for path in folder.iterdir())}")

    def written(path: Path, value: object) -> None:
        order.append(f"mark {(work / 'files/a.txt').exists()}")

    monkeypatch.setattr(archive, "sync_disk", synced)
    monkeypatch.setattr(archive, "write_json", written)
    assert archive.extract(packed, work) == work / "files"
    assert order == ["sync ['a.txt']", "mark True"]


MOUNTS = {
    "tmpfs": "mount -t tmpfs tmpfs {disk}",
    "ext4": "truncate -s 32M {work}/image && mkfs.ext4 -q {work}/image && mount -o loop {work}/image {disk}",
    "overlay": (
        "mount -t tmpfs tmpfs {work} && mkdir {work}/lower {work}/upper {work}/work && "
        "mount -t overlay overlay -o lowerdir={work}/lower,upperdir={work}/upper,workdir={work}/work {disk}"
    ),
    "fuse": "bindfs {work} {disk}",
    "exfat": (
        "truncate -s 32M {work}/image && mkfs.exfat {work}/image >/dev/null && "
        "loop=$(losetup -f --show {work}/image) && "
        "mount.exfat-fuse $loop {disk} >/dev/null 2>&1; mounted=$?; losetup -d $loop; test $mounted = 0"
    ),
}
COMMANDS = """
set -e
{mount}
set +e
"$@" convert --converter {toy} --source {source} --out_dir {disk}/set --workers 2; echo "exit $?"
{python} -c '{sets}' {disk}
stat -f -c %T {disk}
cp -r {disk} {copy}
umount {disk}
"""
SETS = """
import sys, pathlib
from phi3v_data.sets.clean import clean_set
from phi3v_data.sets.merge import merge_sets
from phi3v_data.sets.split import split_set
from phi3v_data.validate import validate
disk = pathlib.Path(sys.argv[1])
split_set(disk / "set", disk / "split", "a=0.5,b=0.5")
merge_sets([disk / "split"], disk / "merged")
clean_set(disk / "merged", disk / "clean")
print("ok", validate(disk / "clean").ok)
"""


def mounting(kind: str, tmp_path: Path) -> str:
    """The shell commands that mount a file system at `disk`; skips where that cannot be done."""
    tool = {"ext4": "mkfs.ext4", "fuse": "bindfs", "exfat": "mount.exfat-fuse"}.get(kind, "mount")
    if os.getuid() != 0 or shutil.which("unshare") is None or shutil.which(tool) is None:
        pytest.skip(f"mounting {kind} needs root, unshare and {tool}")
    disk, work = tmp_path / "disk", tmp_path / "work"
    disk.mkdir()
    work.mkdir()
    mount = MOUNTS[kind].format(disk=disk, work=work)
    if subprocess.run(["unshare", "-m", "sh", "-ec", f"{mount}\numount {disk}"], capture_output=True).returncode:
        pytest.skip(f"{kind} cannot be mounted here")
    shutil.rmtree(work)
    work.mkdir()
    return mount


@pytest.mark.slow
@pytest.mark.parametrize("kind", MOUNTS)
def test_on_a_mounted_file_system_the_bytes_are_the_same(source: Path, tmp_path: Path, kind: str) -> None:
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    mount = mounting(kind, tmp_path)
    places = {"toy": TOY, "source": source, "disk": disk, "copy": copy, "python": sys.executable}
    script = COMMANDS.format(mount=mount, sets=SETS, **places)
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", *COMMAND], capture_output=True, text=True)
    words = done.stdout.splitlines()
    assert [line for line in words if line.startswith(("exit ", "ok "))] == ["exit 1", "ok True"], done.stderr
    assert words[-1].startswith({"ext4": "ext2/ext3", "overlay": "overlayfs", "exfat": "fuse"}.get(kind, kind))
    phi3v_data.convert(Toy, source, tmp_path / "set", workers=0)
    assert tree(copy / "set", hidden=True) == tree(tmp_path / "set", hidden=True)
    assert tree(copy / "clean/images") == tree(tmp_path / "set/images")


@pytest.mark.slow
def test_two_spellings_of_a_name_do_not_overwrite_one_another_where_they_are_one_file(tmp_path: Path) -> None:
    mount = mounting("exfat", tmp_path)
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    source = make_source(
        tmp_path / "source",
        {f"train/g/{n}.txt": f"image {n} {name}.png" for n, name in enumerate(["A", "b", "a", "c"])},
    )
    script = (
        f'set -e; {mount}; "$@" convert --converter {TOY} --source {source} --out_dir {disk}/set --workers 0 '
        f"--allow-rejects 1; cp -r {disk}/set {copy}; umount {disk}"
    )
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", *COMMAND], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(tree(copy / "images")) == ["A.png", "b.png", "c.png"]
    for n, name in enumerate(["A", "b"]):
        with Image.open(copy / f"images/{name}.png") as stored:
            assert stored.tobytes() == noise(n, 8, "colour").tobytes()
    [reject] = rows(copy, "rejects.jsonl")
    assert (reject["item"], reject["reason"]) == ("train/g/2.txt", "image-name-collision")
