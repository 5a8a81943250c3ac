"""The receipt of a run: an unchanged directory is not checked again, a changed one only where it changed."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from validate_builders import found, row, settled, turn, write
from validate_images import encoded, make_image

from phi3v_data.cli.app import COMMANDS
from phi3v_data.cli.base import make_group, run
from phi3v_data.media import integrity
from phi3v_data.validate import fresh_report, receipt, validate
from phi3v_data.validate.tree import ImageTree

RECEIPT = ".phi3v/validate/receipt.json"
IMAGES = ".phi3v/validate/images.bin"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Eight rows with an image each; one image is damaged, one has a warning."""
    files = {f"images/{n}.png": encoded(make_image(n)) for n in range(6)}
    files["images/6.png"] = encoded(make_image(6))[:150]
    files["images/7.png"] = encoded(make_image(7, mode="CMYK"), "JPEG")
    rows = [row(f"r{n}", turn(f"Question {n}?", images=(f"{n}.png",))) for n in range(8)]
    return settled(write(tmp_path / "dir", {"train.jsonl": rows, **files}))


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are opened."""
    seen: list[str] = []
    for name in ("read_image_file", "probe"):
        real = getattr(integrity, name)

        def counting(path: str, real: Callable[[str], object] = real) -> object:
            seen.append(os.path.basename(path))
            return real(path)

        monkeypatch.setattr(integrity, name, counting)
    return seen


def changed(path: Path, data: bytes) -> None:
    """Other content, and a time that no earlier write can have had."""
    time = path.stat().st_mtime_ns + 1_000_000_000
    path.write_bytes(data)
    os.utime(path, ns=(time, time))


def in_secret(path: Path, data: bytes) -> None:
    """Other content of the same size, with the times put back."""
    before = path.stat()
    assert len(data) == before.st_size
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def with_times(directory: Path, time: int) -> None:
    """Give every file under `images/` the same times."""
    for path in (directory / "images").iterdir():
        os.utime(path, (time, time), follow_symlinks=False)


def test_an_unchanged_directory_gives_the_same_report_and_opens_nothing(directory: Path, looked_at: list[str]) -> None:
    first = validate(directory)
    assert len(looked_at) == 8
    looked_at.clear()
    assert validate(directory) == first
    assert looked_at == []
    assert first.summary.problems == {"image-unreadable": 1, "image-mode": 1, "image-format-mismatch": 1}


def test_a_run_that_ended_early_is_resumed_with_the_images_that_it_had_checked(
    directory: Path, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phi3v_data.validate.images.KEEP_SECONDS", 0.0)
    monkeypatch.setattr("phi3v_data.validate.images._BATCH", 3)

    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("images", 8):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        validate(directory, progress=stop)
    looked_at.clear()
    report = validate(directory)
    assert looked_at == ["6.png", "7.png"]
    assert report == validate(directory, use_receipt=False)
    assert validate(directory) == report


def test_only_a_changed_image_is_looked_at_again(directory: Path, looked_at: list[str]) -> None:
    first = validate(directory)
    looked_at.clear()
    changed(directory / "images/6.png", encoded(make_image(6)))
    second = validate(directory)
    assert looked_at == ["6.png"]
    assert found(second, "image-unreadable") == []
    assert found(second, "image-mode") == found(first, "image-mode")


def test_images_that_come_and_go_do_not_mix_up_the_others(directory: Path, looked_at: list[str]) -> None:
    first = validate(directory)
    looked_at.clear()
    (directory / "images/0.png").unlink()
    write(directory, {"images/00.png": encoded(make_image(40)), "images/a/b.png": encoded(make_image(41))})
    second = validate(directory)
    assert looked_at == []
    assert found(second, "image-unreadable") == found(first, "image-unreadable")
    assert len(found(second, "image-missing")) == 1
    assert len(found(second, "image-orphan")) == 2


def test_changed_rows_are_read_and_their_images_are_not(directory: Path, looked_at: list[str]) -> None:
    validate(directory)
    looked_at.clear()
    with (directory / "train.jsonl").open("a") as file:
        file.write("not json\n")
    assert found(validate(directory), "json-syntax")[0].line == 9
    assert looked_at == []


@pytest.mark.parametrize("options", [{"num_crops": 4}, {"max_tokens": 50}, {"max_problems": 7}])
def test_other_options_ask_again_but_not_the_images(
    directory: Path, looked_at: list[str], options: dict[str, int]
) -> None:
    validate(directory)
    looked_at.clear()
    report = validate(directory, **options)  # type: ignore[arg-type]
    assert looked_at == []
    assert report == validate(directory, **options, use_receipt=False)  # type: ignore[arg-type]
    assert len(looked_at) == 8


def test_quick_after_full_still_says_what_full_found(directory: Path, looked_at: list[str]) -> None:
    report = validate(directory)
    looked_at.clear()
    quick = validate(directory, level="quick")
    assert looked_at == []
    assert quick.level == "quick"
    assert quick.summary.problems == report.summary.problems


def test_after_quick_full_looks_at_pixels(directory: Path, looked_at: list[str]) -> None:
    validate(directory, level="quick")
    looked_at.clear()
    report = validate(directory)
    assert len(looked_at) == 8
    assert "image-unreadable" in report.summary.problems


def test_strict_is_not_part_of_the_receipt(tmp_path: Path) -> None:
    write(tmp_path, {"train.jsonl": json.dumps(row("a")) + "\n\n"})
    assert validate(tmp_path).ok
    assert not validate(tmp_path, strict=True).ok
    assert validate(tmp_path).ok


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{}",
        "[]",
        "[" * 100_000,
        '{"digest": 3}',
        '{"state": 1, "options": {}}',
        "\0\0",
        '{"state": {"files": {}}',
        "phi3vim2" + "\xff" * 16,
    ],
)
def test_a_damaged_receipt_is_ignored(directory: Path, damage: str) -> None:
    first = validate(directory)
    (directory / RECEIPT).write_text(damage)
    (directory / IMAGES).write_bytes(damage.encode("latin-1"))
    assert validate(directory) == first
    assert json.loads((directory / RECEIPT).read_text())["options"]["level"] == "full"


def test_a_receipt_with_one_flipped_bit_is_ignored(directory: Path, looked_at: list[str]) -> None:
    first = validate(directory)
    whole = {name: (directory / name).read_bytes() for name in (RECEIPT, IMAGES)}
    for name, data in whole.items():
        for position in range(0, len(data), max(1, len(data) // 20)):
            (directory / name).write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
            if name == RECEIPT:
                assert fresh_report(directory) is None, position
            else:
                (directory / RECEIPT).unlink()
                looked_at.clear()
                assert validate(directory) == first
                assert len(looked_at) == 8, position
        (directory / name).write_bytes(data)


def test_a_receipt_of_an_older_version_is_ignored(directory: Path, looked_at: list[str]) -> None:
    first = validate(directory)
    stored = json.loads((directory / RECEIPT).read_text())
    del stored["digest"], stored["settled"], stored["state"]["stats"]
    (directory / RECEIPT).write_text(json.dumps(stored))
    (directory / IMAGES).rename((directory / IMAGES).with_suffix(".npz"))
    looked_at.clear()
    assert validate(directory) == first
    assert len(looked_at) == 8
    assert not (directory / IMAGES).with_suffix(".npz").exists()


def test_a_huge_receipt_is_not_read(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Holes make the files large without taking space; the limits are set low so that the checksum is right."""
    first = validate(directory)
    for name in (RECEIPT, IMAGES):
        monkeypatch.setattr(receipt, "_MAX_REPORT" if name == RECEIPT else "_MIN_LIMIT", 100)
    assert fresh_report(directory) is None
    os.truncate(directory / RECEIPT, 1 << 40)
    os.truncate(directory / IMAGES, 1 << 40)
    assert validate(directory) == first


@pytest.mark.parametrize("name", [RECEIPT, IMAGES])
@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_receipt_that_is_not_a_regular_file_is_ignored(
    directory: Path, tmp_path: Path, looked_at: list[str], name: str, kind: str
) -> None:
    first = validate(directory)
    (directory / RECEIPT).rename(tmp_path / "receipt.json")
    (directory / IMAGES).rename(tmp_path / "images.bin")
    if kind == "link":
        (directory / name).symlink_to(tmp_path / Path(name).name)
    elif kind == "fifo":
        os.mkfifo(directory / name)
    else:
        (directory / name).mkdir()
    before = (tmp_path / Path(name).name).read_bytes()
    looked_at.clear()
    report = validate(directory)
    assert len(looked_at) == 8
    assert found(report, "image-unreadable") == found(first, "image-unreadable")
    assert (tmp_path / Path(name).name).read_bytes() == before


@pytest.mark.parametrize("folder", [".phi3v", ".phi3v/validate"])
def test_a_receipt_behind_a_link_is_neither_read_nor_written(
    directory: Path, tmp_path: Path, looked_at: list[str], folder: str
) -> None:
    first = validate(directory)
    (directory / folder).rename(tmp_path / "elsewhere")
    (directory / folder).symlink_to(tmp_path / "elsewhere")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "elsewhere").rglob("*")}
    looked_at.clear()
    report = validate(directory)
    assert len(looked_at) == 8
    assert fresh_report(directory) is None
    assert report.summary.problems == {**first.summary.problems, "check-skipped": 1}
    assert "the receipt could not be written" in found(report, "check-skipped")[0].message
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "elsewhere").rglob("*")} == before


def test_fresh_checks_everything_and_leaves_a_receipt(directory: Path, looked_at: list[str]) -> None:
    first = validate(directory)
    looked_at.clear()
    assert validate(directory, fresh=True) == first
    assert len(looked_at) == 8
    looked_at.clear()
    assert validate(directory) == first
    assert looked_at == []


def test_fresh_on_the_command_line(directory: Path, looked_at: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["validate", str(directory), "--workers", "1"]
    for more, opened in (([], 8), ([], 0), (["--fresh"], 8), ([], 0)):
        looked_at.clear()
        with pytest.raises(SystemExit) as stop:
            run(make_group("phi3v-data", "", COMMANDS), [*command, *more])
        assert (stop.value.code, len(looked_at)) == (1, opened)
        assert "1 error" in capsys.readouterr().out


def test_an_image_zeroed_with_its_time_put_back_is_noticed(directory: Path, looked_at: list[str]) -> None:
    validate(directory)
    path = directory / "images/3.png"
    in_secret(path, path.read_bytes()[:80] + bytes(path.stat().st_size - 80))
    looked_at.clear()
    assert fresh_report(directory) is None
    assert [problem.line for problem in found(validate(directory), "image-unreadable")] == [4, 7]
    assert looked_at == ["3.png"]


@pytest.mark.parametrize("name", ["train.jsonl", "dataset.json"])
def test_a_text_file_changed_with_its_time_put_back_is_noticed(directory: Path, name: str) -> None:
    manifest = {"format": 1, "name": "d", "task": "chat", "splits": {}}
    settled(write(directory, {"dataset.json": json.dumps(manifest)}))
    validate(directory)
    assert fresh_report(directory) is not None
    data = (directory / name).read_bytes()
    in_secret(directory / name, data)
    assert fresh_report(directory) is None


def test_a_link_that_leads_to_another_image_is_noticed(directory: Path, looked_at: list[str]) -> None:
    good, bad = encoded(make_image(11)), encoded(make_image(12))
    bad = bad[:60] + bytes(len(bad) - 60)
    size = max(len(good), len(bad))
    write(directory, {"images/good.png": good.ljust(size, b"\0"), "images/bad.png": bad.ljust(size, b"\0")})
    (directory / "images/1.png").unlink()
    (directory / "images/1.png").symlink_to("good.png")
    with_times(directory, 1_600_000_000)
    settled(directory)
    assert 2 not in [problem.line for problem in found(validate(directory), "image-unreadable")]
    looked_at.clear()
    (directory / "images/1.png").unlink()
    (directory / "images/1.png").symlink_to("bad.png")
    with_times(directory, 1_600_000_000)
    assert fresh_report(directory) is None
    assert 2 in [problem.line for problem in found(validate(directory), "image-unreadable")]
    assert "1.png" in looked_at


def test_a_link_set_again_is_looked_through_again_even_where_it_leads_to_the_same_file(
    directory: Path, looked_at: list[str]
) -> None:
    (directory / "images/1.png").rename(directory / "images/there.png")
    (directory / "images/1.png").symlink_to("there.png")
    settled(directory)
    validate(directory)
    looked_at.clear()
    (directory / "images/1.png").unlink()
    (directory / "images/1.png").symlink_to("there.png")
    validate(directory)
    assert looked_at == ["1.png"]


def test_two_images_exchanged_under_equal_times_are_noticed(directory: Path, looked_at: list[str]) -> None:
    files = {f"images/{n}.png": encoded(make_image(n)).ljust(20_000, b"\0") for n in (0, 1)}
    write(directory, files)
    with_times(directory, 1_600_000_000)
    settled(directory)
    validate(directory)
    looked_at.clear()
    images = directory / "images"
    subprocess.run("mv 0.png x && mv 1.png 0.png && mv x 1.png", shell=True, cwd=images, check=True)
    assert (images / "0.png").stat().st_mtime == (images / "1.png").stat().st_mtime == 1_600_000_000
    assert fresh_report(directory) is None
    validate(directory)
    assert looked_at == ["0.png", "1.png"]


def test_an_images_folder_that_became_another_is_noticed(directory: Path, tmp_path: Path, looked_at: list[str]) -> None:
    """Nothing in it is newer than the receipt: the other folder was there before, with the same sizes and times."""
    first, second = tmp_path / "first", tmp_path / "second"
    (directory / "images").rename(first)
    subprocess.run(["cp", "-a", str(first), str(second)], check=True)
    in_secret(second / "3.png", bytes((second / "3.png").stat().st_size))
    (directory / "images").symlink_to(first)
    settled(tmp_path)
    report = validate(directory)
    assert fresh_report(directory) == report
    looked_at.clear()
    (directory / "images").unlink()
    (directory / "images").symlink_to(second)
    assert fresh_report(directory) is None
    assert [problem.line for problem in found(validate(directory), "image-unreadable")] == [4, 7]
    assert len(looked_at) == 8


def test_a_jsonl_file_that_became_another_is_checked_again(directory: Path, tmp_path: Path) -> None:
    (directory / "train.jsonl").rename(tmp_path / "first")
    shutil.copy2(tmp_path / "first", tmp_path / "second")
    (directory / "train.jsonl").symlink_to(tmp_path / "first")
    settled(tmp_path)
    report = validate(directory)
    assert fresh_report(directory) == report
    (directory / "train.jsonl").unlink()
    (directory / "train.jsonl").symlink_to(tmp_path / "second")
    assert fresh_report(directory) is None


class WithoutChangeTimes(ImageTree):
    """A file system that keeps none, as sshfs does."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.ctimes = np.zeros(len(self), np.int64)


def test_exchanged_images_are_noticed_by_their_inodes_alone(
    directory: Path, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phi3v_data.validate.survey.ImageTree", WithoutChangeTimes)
    write(directory, {f"images/{n}.png": encoded(make_image(n)).ljust(20_000, b"\0") for n in (0, 1)})
    with_times(directory, 1_600_000_000)
    settled(directory)
    report = validate(directory)
    assert fresh_report(directory) == report
    looked_at.clear()
    for name, new in (("0.png", "x"), ("1.png", "0.png"), ("x", "1.png")):
        (directory / "images" / name).rename(directory / "images" / new)
    assert fresh_report(directory) is None
    validate(directory)
    assert looked_at == ["0.png", "1.png"]


def test_an_image_changed_at_once_after_the_check_is_noticed_however_coarse_the_clock(directory: Path) -> None:
    """Nothing waits here: the file system's clock may stand still over both writes."""
    path = directory / "images/0.png"
    good = path.read_bytes()
    for _ in range(20):
        in_secret(path, good)
        assert 1 not in [problem.line for problem in found(validate(directory), "image-unreadable")]
        in_secret(path, good[:80] + bytes(len(good) - 80))
        assert fresh_report(directory) is None
        assert 1 in [problem.line for problem in found(validate(directory), "image-unreadable")]


@pytest.mark.parametrize("name", ["images/5.png", "train.jsonl"])
def test_what_changed_within_the_tick_of_the_receipt_is_checked_again(
    directory: Path, looked_at: list[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The clock is set to the file's own change time: a later change could have the same."""
    os.utime(directory / name)
    tick = receipt.Clock((directory / name).stat().st_ctime_ns, directory.stat().st_dev)
    with monkeypatch.context() as patch:
        patch.setattr(receipt, "read_clock", lambda directory: tick)
        validate(directory)
    looked_at.clear()
    assert fresh_report(directory) is None
    settled(directory)
    validate(directory)
    assert looked_at == (["5.png"] if name.startswith("images/") else [])
    looked_at.clear()
    assert fresh_report(directory) is not None


def test_files_of_another_disk_are_held_to_the_coarsest_clock(directory: Path) -> None:
    clock = receipt.Clock(10_000_000_000, directory.stat().st_dev)
    assert clock.settled({clock.device}) == 10_000_000_000
    assert clock.settled({clock.device, clock.device + 1}) == 8_000_000_000


def test_training_takes_a_fresh_receipt_of_level_full(directory: Path) -> None:
    assert fresh_report(directory) is None
    validate(directory, level="quick")
    assert fresh_report(directory) is None
    report = validate(directory, max_tokens=9000)
    assert fresh_report(directory) == report
    assert fresh_report(directory, num_crops=4) is None
    changed(directory / "images/1.png", encoded(make_image(9)))
    assert fresh_report(directory) is None


@pytest.mark.parametrize("how", ["cp", "tar"])
@pytest.mark.parametrize("rows", ["with images", "without"])
def test_a_copy_is_checked_again(directory: Path, tmp_path: Path, looked_at: list[str], how: str, rows: str) -> None:
    if rows == "without":
        shutil.rmtree(directory / "images")
        settled(write(directory, {"train.jsonl": [row("a")]}))
    report = validate(directory)
    assert fresh_report(directory) == report
    copy = tmp_path / "copy/dir"
    if how == "cp":
        copy.parent.mkdir()
        subprocess.run(["cp", "-a", str(directory), str(copy)], check=True)
    else:
        with tarfile.open(tmp_path / "set.tar", "w") as tar:
            tar.add(directory, "dir")
        with tarfile.open(tmp_path / "set.tar") as tar:
            tar.extractall(tmp_path / "copy", filter="fully_trusted")
    assert (copy / RECEIPT).read_bytes() == (directory / RECEIPT).read_bytes()
    looked_at.clear()
    assert fresh_report(copy) is None
    assert validate(copy).problems == report.problems
    assert len(looked_at) == (8 if rows == "with images" else 0)


def test_a_set_moved_on_its_file_system_stays_validated(directory: Path, looked_at: list[str]) -> None:
    report = validate(directory)
    looked_at.clear()
    moved = directory.rename(directory.with_name("moved"))
    assert validate(moved).problems == report.problems
    assert looked_at == []


def test_a_set_validated_through_one_mount_stays_valid_through_another(
    directory: Path, tmp_path: Path, looked_at: list[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    done = subprocess.run(["mount", "--bind", str(directory), str(other)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no bind mount: {done.stderr.strip()}")
    try:
        report = validate(directory)
        looked_at.clear()
        through = fresh_report(other)
        assert through is not None
        assert through == report.model_copy(update={"dir": str(other)})
        assert validate(other) == through
        assert looked_at == []
        path = other / "images/3.png"
        in_secret(path, bytes(path.stat().st_size))
        assert fresh_report(directory) is None
    finally:
        subprocess.run(["umount", str(other)], check=True)


def test_a_set_whose_disk_got_another_device_number_stays_valid(
    directory: Path, tmp_path: Path, looked_at: list[str]
) -> None:
    """As after a restart, or on another machine that mounts the same disk."""
    disk, other, mounted = tmp_path / "disk", tmp_path / "other", tmp_path / "mounted"
    mounted.mkdir()
    for path in (disk, other):
        path.touch()
        os.truncate(path, 4 << 20)

    def root(*command: str | Path) -> str:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{command[0]}: {done.stderr.strip()}")
        return done.stdout.strip()

    if not shutil.which("mkfs.ext4") or not shutil.which("losetup"):
        pytest.skip("mkfs.ext4 or losetup is not installed")
    root("mkfs.ext4", "-q", disk)
    root("mount", "-o", "loop", disk, mounted)
    taken = ""
    try:
        shutil.copytree(directory, mounted / "dir")
        before = settled(mounted / "dir").stat().st_dev
        report = validate(mounted / "dir")
        looked_at.clear()
        root("umount", mounted)
        taken = root("losetup", "--find", "--show", other)
        root("mount", "-o", "loop", disk, mounted)
        assert (mounted / "dir").stat().st_dev != before
        assert fresh_report(mounted / "dir") == validate(mounted / "dir") == report
        assert looked_at == []
    finally:
        subprocess.run(["umount", str(mounted)], capture_output=True)
        if taken:
            subprocess.run(["losetup", "--detach", taken], check=True)


def test_times_that_no_64_bit_number_of_nanoseconds_holds(directory: Path) -> None:
    os.utime(directory / "images/0.png", (13_000_000_000, 13_000_000_000))
    settled(directory)
    report = validate(directory)
    assert report.summary.problems == {"image-unreadable": 1, "image-mode": 1, "image-format-mismatch": 1}
    assert fresh_report(directory) == report


def test_a_receipt_that_cannot_be_written_is_reported(directory: Path) -> None:
    (directory / ".phi3v").write_text("in the way")
    report = validate(directory)
    assert report.summary.problems["check-skipped"] == 1
    assert "the receipt could not be written" in found(report, "check-skipped")[0].message
    assert found(report, "image-unreadable")


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/usr/bin/setpriv").exists(), reason="root reads everything")
def test_a_directory_that_may_only_be_read(directory: Path) -> None:
    """Run as an ordinary user: nothing can be written, one folder and one file cannot be read."""
    write(directory, {"images/closed/x.png": encoded(make_image(1)), "val.jsonl": [row("v")]})
    code = (
        "import sys; from phi3v_data.validate import validate; "
        "print(sorted(validate(sys.argv[1]).summary.problems.items()))"
    )
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (directory / "images/closed").chmod(0o000)
    (directory / "val.jsonl").chmod(0o000)
    parents = [path for path in directory.parents if path.stat().st_uid == os.geteuid() and path != Path("/")]
    modes = [path.stat().st_mode for path in parents]
    command = [sys.executable, "-c", code, str(directory)]
    if os.geteuid() == 0:
        for path in parents:
            path.chmod(path.stat().st_mode | 0o005)
        as_nobody = ["/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        command = [*as_nobody, *command]
    try:
        if (
            os.geteuid() == 0
            and subprocess.run([*as_nobody, sys.executable, "-c", "import phi3v_data.validate"]).returncode
        ):
            pytest.skip("another user cannot run the interpreter")
        result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HOME": "/tmp"})
    finally:
        for path, mode in zip(parents, modes, strict=True):
            path.chmod(mode)
        for path in (directory, directory / "images/closed", directory / "images"):
            path.chmod(0o755)
    assert result.returncode == 0, result.stderr
    problems = dict(eval(result.stdout))
    assert problems["check-skipped"] == 2
    assert problems["shard-missing"] == 1
    assert problems["image-unreadable"] == 1
    assert not (directory / ".phi3v").exists()


def test_nothing_half_written_is_left(directory: Path) -> None:
    validate(directory)
    assert sorted(path.name for path in (directory / ".phi3v/validate").iterdir()) == ["images.bin", "receipt.json"]
