"""Several processes convert shares of one directory (`--slice K/N`): the bytes are those of one whole run."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kills
import pytest
from in_process import Cli, make_cli
from permissions import bound_by_permissions
from test_convert_resume import MAP, OLD
from toy_converter import COMMAND, TOY, Toy, drafts, make_source, plain_source, rows, run_cli, start_cli, tree

import phi3v_data
from phi3v_data import slices
from phi3v_data.conversion import finish
from phi3v_data.lock import lock_file
from phi3v_data.writing import claims, sliced
from phi3v_data.writing.claims import Claims, Watch, join
from phi3v_data.writing.journal import Journal

ROOT = Path(__file__).parents[1]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return make_cli(capsys, monkeypatch)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Sixteen parts: two rejects, and images of one name in parts far from each other."""
    folder = plain_source(tmp_path / "source", {"train": 24, "val": 8})
    files = {
        "train/g00/s001.txt": "reject",
        "train/g02/s004.txt": "image 50 train/shared.png",
        "val/g00/s000.txt": "image 51 train/shared.png",
    }
    return make_source(folder, files)


@pytest.fixture
def whole(source: Path) -> dict[str, str]:
    """Every file of a directory that one run made, its journal included."""
    phi3v_data.convert(Toy, source, source.with_name("whole"), workers=0)
    assert rows(source.with_name("whole"), "rejects.jsonl")[1]["reason"] == "image-name-collision"
    return tree(source.with_name("whole"), hidden=True)


def convert(source: Path, out: Path, share: str, **settings: Any) -> phi3v_data.SliceResult:
    return phi3v_data.convert_slice(Toy, source, out, share, **{"workers": 0, **settings})


def killed(source: Path, out: Path, share: str, at: int, operation: str = "link") -> None:
    """Run a slice that ends itself with SIGKILL right before such a file operation."""
    kills.killed_before(operation, at, lambda: convert(source, out, share))


def killed_at_the_end(source: Path, out: Path, share: str) -> None:
    """Run a slice that ends itself with SIGKILL once it has claimed the end, with all parts done."""

    def work() -> None:
        sliced._publish = lambda *args: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment, return-value]
        convert(source, out, share)

    assert kills.in_child(work) == -signal.SIGKILL


@pytest.mark.parametrize("order", ["1/3 2/3 3/3", "3/3 1/3 2/3"])
def test_slices_in_any_order_end_with_the_bytes_of_one_run(
    source: Path, whole: dict[str, str], tmp_path: Path, order: str
) -> None:
    first, second, last = order.split()
    for share in (first, second):
        result = convert(source, tmp_path / "out", share)
        assert result.whole is None
        assert last in result.missing
        assert not (tmp_path / "out/dataset.json").exists()
    result = convert(source, tmp_path / "out", last)
    assert result.whole is not None
    assert (result.whole.samples, result.whole.rejects) == (30, 2)
    assert tree(tmp_path / "out", hidden=True) == whole


def test_slices_at_once_with_one_killed_and_run_again_end_with_the_bytes_of_one_run(
    source: Path, tmp_path: Path
) -> None:
    """Three processes with a worker each; that of the second waits in its third part when all of it is killed."""
    os.mkfifo(tmp_path / "pipe")
    make_source(source, {"train/g07/s015.txt": f"wait {tmp_path / 'pipe'}\nimage 15"})
    args = ["convert", "--converter", TOY, "--source", source, "--out_dir", tmp_path / "out", "--workers", 1]
    running = {
        k: start_cli([*args, "--slice", f"{k}/3"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for k in (1, 2, 3)
    }
    said = {k: [stream.decode() for stream in running[k].communicate()] for k in (1, 3)}
    assert running[1].returncode == 1, said  # one reject
    assert running[3].returncode == 0, said
    assert f"{tmp_path}/out: slice 1/3: 9 samples, 1 rejected; the set is not complete yet" in said[1][0]
    parts = tmp_path / "out/.phi3v/convert/parts"
    with open(tmp_path / "pipe", "wb"):  # opens once the worker waits
        done = len(list(parts.iterdir()))
        os.killpg(running[2].pid, signal.SIGKILL)
    running[2].communicate()
    assert 12 <= done < 16
    (tmp_path / "pipe").unlink()
    (tmp_path / "pipe").touch()
    with pytest.raises(phi3v_data.UserError, match=r"of 16 parts are missing, of slice 2/3 \(\d\); run the same comm"):
        finish(tmp_path / "out")
    again = run_cli(*args, "--slice", "2/3")
    assert again.returncode == 1, again.stderr
    assert again.stdout.startswith(f"{tmp_path}/out: 30 samples (train 23, val 7)"), again.stdout
    phi3v_data.convert(Toy, source, tmp_path / "normal", workers=0)
    assert tree(tmp_path / "out", hidden=True) == tree(tmp_path / "normal", hidden=True)


def test_another_number_of_slices_resumes(source: Path, whole: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(source, out, "1/3")
    killed(source, out, "3/3", at=12)
    result = convert(source, out, "1/2")
    assert 10 <= result.resumed < 16
    assert "of slice 2/2" in result.missing
    assert convert(source, out, "2/2").whole is not None
    assert tree(out, hidden=True) == whole


def test_a_plain_run_resumes_a_directory_of_slices_and_slices_one_of_a_plain_run(
    source: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    convert(source, tmp_path / "out", "2/3")
    killed(source, tmp_path / "out", "1/3", at=9)
    result = phi3v_data.convert(Toy, source, tmp_path / "out", workers=0)
    assert result.resumed > 10
    assert tree(tmp_path / "out", hidden=True) == whole
    kills.killed_before("link", 20, lambda: phi3v_data.convert(Toy, source, tmp_path / "plain", workers=0))
    assert convert(source, tmp_path / "plain", "1/2").resumed == 16
    assert convert(source, tmp_path / "plain", "2/2").resumed > 0
    assert tree(tmp_path / "plain", hidden=True) == whole


def check_kills(tmp_path: Path, share: str, failing: tuple[str, ...], step: int) -> None:
    """Kill a slice before each `step`-th of its file operations; then both slices run, and end with the usual bytes.

    `1/2` begins the directory, `2/2` publishes it. `failing` are functions that the file system does not have.
    """
    small = make_source(
        tmp_path / "small",
        {f"{split}/g{n}/s.txt": f"image {n} x{n % 3}.png" for split in ("train", "val") for n in range(4)},
    )
    start, out = tmp_path / "start", tmp_path / "out"

    def run(share: str, kill_at: int | None = None) -> int:
        def work() -> None:
            for operation in failing:
                kills.fail(errno.EPERM if operation == "os.link" else errno.ENOLCK, operation)
            if kill_at is not None:
                kills.kill_before(kill_at, *kills.OPERATIONS)
            convert(small, out, share)

        return kills.in_child(work)

    phi3v_data.convert(Toy, small, tmp_path / "normal", workers=0)
    wanted = set(tree(tmp_path / "normal", hidden=True).items())
    if failing:
        wanted = {(name, digest) for name, digest in wanted if not name.endswith(".lock")}
    if share == "2/2":
        assert run("1/2") == 0
        out.rename(start)
    point = 1
    while True:
        if start.exists():
            shutil.copytree(start, out)
        status = run(share, point)
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        assert [run(each) for each in ("2/2", "1/2", "2/2")] == [0, 0, 0], f"kill point {point}"
        assert set(tree(out, hidden=True).items()) == wanted, f"kill point {point}"
        shutil.rmtree(out)
        point += step
    assert point > 40


FAILING = [pytest.param((), id="ext4"), pytest.param(("os.link", "fcntl.flock"), id="no links, no locks")]


@pytest.mark.parametrize("failing", FAILING)
@pytest.mark.parametrize("share", ["1/2", "2/2"])
def test_a_slice_killed_before_some_of_its_file_operations_does_no_harm(
    tmp_path: Path, share: str, failing: tuple[str, ...]
) -> None:
    check_kills(tmp_path, share, failing, step=11)


@pytest.mark.slow
@pytest.mark.parametrize("failing", FAILING)
@pytest.mark.parametrize("share", ["1/2", "2/2"])
def test_a_slice_killed_before_any_of_its_file_operations_does_no_harm(
    tmp_path: Path, share: str, failing: tuple[str, ...]
) -> None:
    check_kills(tmp_path, share, failing, step=5)


def test_of_finishers_that_race_one_publishes_and_all_see_the_set(
    source: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    """One was killed right before it published; the next one is held there until the others wait for it."""
    out = tmp_path / "out"
    convert(source, out, "1/2")
    killed_at_the_end(source, out, "2/2")
    news, tell = os.pipe()
    wait_for, release = os.pipe()
    publish, wait = sliced.publish, Claims.wait

    def held(*args: Any) -> None:
        os.write(tell, b"p")
        os.read(wait_for, 1)
        publish(*args)

    def racing(work: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            waited = False

            def told(self: Claims) -> None:
                nonlocal waited
                if not waited:
                    os.write(tell, b"w")
                waited = True
                wait(self)

            sliced.publish = held  # type: ignore[assignment]
            Claims.wait = told  # type: ignore[method-assign]
            work()

        return run

    works: list[Callable[[], object]] = [
        lambda: finish(out),
        lambda: convert(source, out, "1/2"),
        lambda: convert(source, out, "2/2"),
        lambda: finish(out),
    ]
    pids = [kills.fork(racing(work)) for work in works]
    seen = b""
    while len(seen) < len(works):
        seen += os.read(news, 1)
    os.write(release, b"r")
    assert [kills.wait(pid) for pid in pids] == [0, 0, 0, 0]
    assert sorted(seen) == sorted(b"pwww")
    for descriptor in (news, tell, wait_for, release):
        os.close(descriptor)
    assert tree(out, hidden=True) == whole


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_each_piece_of_work_is_claimed_by_one_process_only(tmp_path: Path, links: bool) -> None:
    """Four want each at the same moment; also when the process that had claimed it was killed."""
    names = [f"part-{number:06d}" for number in range(60)]
    journal = Journal(tmp_path)

    def claim(number: int, kill: bool) -> Callable[[], object]:
        def run() -> None:
            if not links:
                kills.fail(errno.EPERM, "os.link")
            create = Claims._create

            def at_once(self: Claims, name: str) -> bool:
                barrier.wait()
                return create(self, name)

            Claims._create = at_once  # type: ignore[method-assign]
            with join(journal, "slice") as own:
                ours = [name for name in names if own.claim(name) == "ours"]
                (tmp_path / f"{number}.json").write_text(json.dumps(ours))
                if kill:
                    barrier.wait()
                    os.kill(os.getpid(), signal.SIGKILL)
                os.write(done, b"d")
                os.read(leave, 1)

        return run

    for kill in (True, False):
        barrier = multiprocessing.get_context("fork").Barrier(4, timeout=60)
        (ended, done), (leave, end) = (os.pipe() for _ in range(2))
        pids = [kills.fork(claim(number, kill)) for number in range(4)]
        if not kill:
            for _ in pids:
                os.read(ended, 1)
            os.write(end, b"eeee")
        assert [kills.wait(pid) for pid in pids] == [-signal.SIGKILL if kill else 0] * 4
        for descriptor in (ended, done, leave, end):
            os.close(descriptor)
        claimed = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(4)]
        assert sorted(name for each in claimed for name in each) == names


def test_a_process_elsewhere_is_dead_once_its_sign_of_life_did_not_change_for_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same boot of the same machine, its process says it at once."""
    now = 0.0
    monkeypatch.setattr(claims.time, "monotonic", lambda: now)
    journal = Journal(tmp_path)
    with join(journal, "slice 1/2") as own:
        record = journal.owners / own.id / "owner.json"
        assert Watch(journal).life(own.id) == "alive"
        here = json.loads(record.read_text())
        for changed in ({"boot": "another"}, {"space": "pid:[1]"}, {"boot": ""}):
            record.write_text(json.dumps(here | changed))
            watch = Watch(journal)
            assert watch.life(own.id) == "unclear"
            now += 59
            assert watch.life(own.id) == "unclear"
            os.utime(record, ns=(7, int(now)))
            assert watch.life(own.id) == "alive"
            now += 59
            assert watch.life(own.id) == "alive"
            now += 1
            assert watch.life(own.id) == "dead"
        record.write_text(json.dumps(here | {"start": "0"}))  # another process with the same number
        assert watch.life(own.id) == "dead"
        record.write_text(json.dumps(here))
        assert watch.life(own.id) == "alive"
    assert watch.life(own.id) == "dead"
    assert watch.owners() == []


def test_a_slice_takes_over_what_a_killed_one_on_another_machine_had_claimed(
    source: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    convert(source, out, "1/2")
    killed(source, out, "2/2", at=5)
    [record] = (out / ".phi3v/convert/slices/owners").glob("*/owner.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"boot": "another", "host": "node7"}))
    with pytest.raises(phi3v_data.UserError, match=r"\(running: slice 2/2 \(process \d+ on node7\)\)"):
        finish(out)
    now = 0.0

    def wait(self: Claims) -> None:
        nonlocal now
        now += 20

    monkeypatch.setattr(claims.time, "monotonic", lambda: now)
    monkeypatch.setattr(Claims, "wait", wait)
    stages = set()
    result = convert(source, out, "2/2", progress=lambda stage, done, total: stages.add(stage))
    assert now == 60
    assert result.whole is not None
    assert "wait for a slice that does not answer" in stages
    assert tree(out, hidden=True) == whole


def test_a_process_that_was_taken_for_dead_stops(tmp_path: Path) -> None:
    with join(Journal(tmp_path), "slice 1/2") as own:
        shutil.rmtree(own.journal.owners / own.id)
        with pytest.raises(phi3v_data.UserError, match=r"took this process for dead.*run the same command again"):
            own.claim("part-000000")


def test_other_settings_and_sources_are_refused_and_named(source: Path, tmp_path: Path) -> None:
    """While a slice is done, and before any part of it is."""
    out = tmp_path / "out"
    convert(source, out, "1/2")
    before = tree(out, hidden=True)
    other = shutil.copytree(source, tmp_path / "other")
    (other / "val/g00/s000.txt").write_text("image 7")

    def refusal(where: Path = source, **settings: Any) -> str:
        with pytest.raises(phi3v_data.UserError) as error:
            convert(where, out, "2/2", **settings)
        assert tree(out, hidden=True) == before
        return str(error.value)

    told = refusal(options={"size": 9})
    assert "options.size 8 -> 9; run all slices with the same settings, or choose another" in told
    assert "limit null -> 3" in refusal(limit=3)
    assert "the source has changed since" in refusal(other)
    (other / "val/g00/s000.txt").unlink()
    assert "val has 7 items, not 8" in refusal(other)
    for part in (out / ".phi3v/convert/parts").iterdir():
        part.unlink()
    before = tree(out, hidden=True)
    assert "options.size 8 -> 9" in refusal(options={"size": 9})
    assert "val has 7 items, not 8" in refusal(other)


def test_other_versions_of_packages_that_decide_bytes_are_a_warning(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert convert(source, tmp_path / "out", "1/2").warnings == ()
    monkeypatch.setattr(slices, "package_versions", lambda: ("0.1.0", "99.0", "", "", ""))
    monkeypatch.setattr(sliced, "PACKAGES", ("phi3v", "pillow"))
    [warning] = convert(source, tmp_path / "out", "2/3").warnings
    assert warning.startswith("this machine has pillow 99.0 installed, the first slice had ")
    [again] = convert(source, tmp_path / "out", "3/3").warnings
    assert again == warning


def test_a_source_that_changed_after_another_slice_read_it_is_not_published(source: Path, tmp_path: Path) -> None:
    """The content of a file that was read changes, not its size."""
    file = source / "train/g01/s003.txt"
    text = file.read_text()
    convert(source, tmp_path / "out", "1/2")
    file.write_text(text.replace("image 3", "image 4"))
    with pytest.raises(phi3v_data.UserError, match=r"'train/g01/s003\.txt' of the source has changed since"):
        convert(source, tmp_path / "out", "2/2")
    assert not (tmp_path / "out/dataset.json").exists()
    file.write_text(text)
    assert convert(source, tmp_path / "out", "2/2").whole is not None


def test_what_cannot_be_is_one_sentence(cli: Cli, source: Path, tmp_path: Path) -> None:
    args = ["convert", "--converter", TOY, "--source", source, "--out_dir", tmp_path / "out"]
    for share in ("0/2", "3/2", "1", "a/b", "1/0"):
        code, out, err = cli(*args, "--slice", share)
        assert (code, out) == (2, "")
        assert err == (f"error: --slice '{share}' is not K/N, share K of N with K from 1 to N; write for example 2/8\n")
    for more, words in ((["--overwrite"], "each slice would start over"), (["--engine", "ray"], "leave out one")):
        code, _, err = cli(*args, "--slice", "1/2", *more)
        assert code == 2
        assert words in err
    with pytest.raises(phi3v_data.UserError, match="drafts is a generator, which has no plan"):
        phi3v_data.convert_slice(drafts, source, tmp_path / "out", "1/2", workers=0)
    assert not (tmp_path / "out").exists()


def test_a_plain_run_and_slices_keep_each_other_out(source: Path, tmp_path: Path) -> None:
    """By the lock, and by the owner's file where there is none."""
    out = tmp_path / "out"
    convert(source, out, "1/2")
    with (
        lock_file(out / ".phi3v/convert.lock", ""),
        pytest.raises(phi3v_data.BusyError, match="another run is writing"),
    ):
        convert(source, out, "2/2")
    with (
        join(Journal(out), "slice 2/2"),
        pytest.raises(phi3v_data.BusyError, match=rf"writing {out}: slice 2/2 \(process {os.getpid()} on "),
    ):
        phi3v_data.convert(Toy, source, out, workers=0)
    with sliced.join_output(out, "slice 2/2"):
        for overwrite in (False, True):
            with pytest.raises(phi3v_data.BusyError, match="another run is writing"):
                phi3v_data.convert(Toy, source, out, workers=0, overwrite=overwrite)
    assert convert(source, out, "2/2").whole is not None


def test_a_slice_that_another_process_does_already_is_left_to_it(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(source, out, "1/2")
    with join(Journal(out), "slice 2/2") as other:
        for number in range(16):
            assert other.claim(f"part-{number:06d}") == "ours" or number < 8
        result = convert(source, out, "2/2")
        assert (result.samples, result.missing) == (0, "8 of 16 parts are missing, of slice 2/2 (8)")


def test_a_slice_that_fails_leaves_nothing_and_the_next_one_begins(
    source: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(phi3v_data.UserError, match="found no samples"):
        convert(tmp_path / "empty", tmp_path / "out", "1/2")
    assert not (tmp_path / "out").exists()
    for share in ("1/2", "2/2"):
        convert(source, tmp_path / "out", share)
    assert tree(tmp_path / "out", hidden=True) == whole


def test_a_slice_of_a_complete_set_says_so_and_changes_nothing(cli: Cli, source: Path, tmp_path: Path) -> None:
    """Such as one that has no parts, and whose turn came after the others had published."""
    for share in ("1/2", "2/2"):
        convert(source, tmp_path / "out", share)
    before = tree(tmp_path / "out", hidden=True)
    args = ["convert", "--converter", TOY, "--source", source, "--out_dir", tmp_path / "out"]
    code, out, _ = cli(*args, "--slice", "30/40", "--allow_rejects", 2)
    assert (code, out.split(":")[1]) == (0, " already complete")
    assert cli(*args, "--slice", "1/2")[0] == 1
    code, _, err = cli(*args, "--slice", "1/2", "--size", 9)
    assert code == 2
    assert "was converted with other settings: options.size 8 -> 9" in err
    assert tree(tmp_path / "out", hidden=True) == before


def test_a_process_that_was_there_when_the_set_became_complete_leaves_nothing(
    source: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    convert(source, out, "1/2")
    with sliced.join_output(out, "slice 2/2"):
        assert convert(source, out, "2/2").whole is not None
        (out / ".phi3v/convert/slices/claims").mkdir(parents=True)
    assert tree(out, hidden=True) == whole


def test_progress_counts_the_samples_of_the_slice(source: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []

    def progress(stage: str, done: int, total: int | None) -> None:
        if stage == "convert":
            told.append((done, total))

    convert(source, tmp_path / "out", "2/4", progress=progress)
    assert {total for _, total in told} == {8}
    assert told[-1] == (8, 8)


def test_slices_resume_what_an_earlier_version_began(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    shutil.copytree(OLD / "table/source", tmp_path / "source")
    shutil.copytree(OLD / "table/phi3v", tmp_path / "out/.phi3v")
    settings: dict[str, Any] = {"options": {"map": MAP}, "workers": 0}
    first = phi3v_data.convert_slice("table", tmp_path / "source", tmp_path / "out", "1/2", **settings)
    second = phi3v_data.convert_slice("table", tmp_path / "source", tmp_path / "out", "2/2", **settings)
    assert (first.whole, first.resumed + second.resumed) == (None, 3)
    phi3v_data.convert("table", tmp_path / "source", tmp_path / "fresh", **settings)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_an_archive_is_unpacked_once_and_another_is_refused(source: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "clips"), "tar", source))
    phi3v_data.convert(Toy, archive, tmp_path / "whole", workers=0)
    convert(archive, tmp_path / "out", "1/2")
    unpacked = tmp_path / "out/.phi3v/convert/source"
    before = {path: path.stat().st_ino for path in unpacked.rglob("*")}
    assert before
    os.utime(archive, ns=(1, 1))
    with pytest.raises(phi3v_data.UserError, match="give all slices the same file"):
        convert(archive, tmp_path / "out", "2/2")
    assert {path: path.stat().st_ino for path in unpacked.rglob("*")} == before


def test_an_import_has_slices_too(cli: Cli, tmp_path: Path) -> None:
    answers = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    chats = [{"id": str(n), "conversations": answers} for n in range(9)]
    (tmp_path / "chats.json").write_text(json.dumps([*chats, {"id": "bad"}]))
    args = ["import", "llava", tmp_path / "chats.json", "--workers", 0]
    assert cli(*args, "--out_dir", tmp_path / "whole")[0] == 1
    code, out, _ = cli(*args, "--out_dir", tmp_path / "out", "--slice", "1/2")
    assert (code, out) == (
        0,
        f"{tmp_path}/out: slice 1/2: 4 samples; the set is not complete yet, 3 of 5 parts are missing, of slice 2/2 "
        "(3)\n",
    )
    code, out, err = cli(*args, "--out_dir", tmp_path / "out", "--slice", "2/2")
    assert code == 1
    assert out.startswith(f"{tmp_path}/out: 9 samples (train 9), 0 images, 1 rejected (1 missing-field")
    assert f"{tmp_path}/out: slice 2/2: 5 samples, 1 rejected\n" in err
    assert tree(tmp_path / "out", hidden=True) == tree(tmp_path / "whole", hidden=True)


def test_finish_publishes_slices_that_are_done(cli: Cli, source: Path, whole: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(source, out, "1/2")
    code, _, err = cli("convert", "--finish", out)
    assert code == 2
    assert err == (
        f"error: {out} cannot be finished: 8 of 16 parts are missing, of slice 2/2 (8); run the same command again "
        "with --slice for each of them\n"
    )
    killed_at_the_end(source, out, "2/2")
    code, said, _ = cli("convert", "--finish", out, "--allow_rejects", 2)
    assert (code, said.split(":")[1].split(",")[0]) == (0, " 30 samples (train 23")
    assert tree(out, hidden=True) == whole


PLACES = {
    "claims/part-000010": "folder",
    "claims/end": "fifo",
    "claims": "file",
    "plan.json": "folder",
    "owners": "file",
    f"owners/{'0' * 32}": "link",
    f"owners/{'0' * 32}/owner.json": "folder",
    "kept": "file",
    f"kept/{'0' * 32}.json": "folder",
    "../stage/images/train/s000.png": "folder",
    "../parts": "file",
    "../../workers.lock": "folder",
    "../../convert.lock": "folder",
}
"""Odd entries in the place of something of the slices."""


@pytest.mark.parametrize(("name", "kind"), PLACES.items())
def test_what_is_in_the_place_of_a_claim_is_named_and_nothing_is_changed(
    cli: Cli, source: Path, tmp_path: Path, name: str, kind: str
) -> None:
    out = tmp_path / "out"
    convert(source, out, "1/2")
    path = Path(os.path.normpath(out / ".phi3v/convert/slices" / name))
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/dev/zero")
    else:
        path.write_text("x")
    before = sorted(map(str, out.rglob("*")))
    expected = "folder" if kind == "file" else "file"
    args = ["convert", "--converter", TOY, "--source", source, "--out_dir", out, "--slice", "2/2"]
    for command in (args, ["convert", "--finish", out]):
        code, said, err = cli(*command)
        wanted = f"error: {path}: is not a {expected} that phi3v made; nothing was changed: remove it\n"
        assert (code, said, err) == (2, "", wanted)
    assert sorted(map(str, out.rglob("*"))) == before


def test_a_claim_that_is_too_long_is_not_one_of_phi3v(
    cli: Cli, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paths are short: a long message is shortened in the middle."""
    monkeypatch.chdir(tmp_path)
    out = Path("out")
    convert(source, out, "1/2")
    path = out / ".phi3v/convert/slices/claims/part-000010"
    path.write_text("a" * 65)
    code, said, err = cli("convert", "--converter", TOY, "--source", source, "--out_dir", out, "--slice", "2/2")
    advice = "nothing was changed: remove out/.phi3v/convert if it came with the directory from elsewhere"
    expected = f"error: {path}: was not written by phi3v (it is longer than a claim); {advice}\n"
    assert (code, said, err) == (2, "", expected)
    assert path.read_text() == "a" * 65


def test_a_claim_that_cannot_be_read_is_named(cli: Cli, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(source, out, "1/2")
    for name, mode in ((".phi3v/convert/slices/plan.json", 0), (".phi3v/convert/slices/claims", 0)):
        path = out / name
        path.chmod(mode)
        with bound_by_permissions():
            code, said, err = cli("convert", "--finish", out)
        assert (code, said, err) == (2, "", f"error: {path}: permission denied\n")
        path.chmod(0o755)


def test_a_damaged_part_is_converted_again(source: Path, whole: dict[str, str], tmp_path: Path) -> None:
    """By its slice if that is run again, else that is named."""
    out, parts = tmp_path / "out", tmp_path / "out/.phi3v/convert/parts"
    convert(source, out, "1/2")
    (parts / "000003.json").write_text("{")
    (out / ".phi3v/convert/stage/images/train/s000.png").unlink()  # of part 0
    assert convert(source, out, "1/2").resumed == 12
    (parts / "000004.json").write_text("{")
    with pytest.raises(
        phi3v_data.UserError,
        match=r"parts that had been converted were lost or damaged \(1 of 16\); run .* with --slice 1/2$",
    ):
        convert(source, out, "2/2")
    assert convert(source, out, "1/2").whole is not None
    assert tree(out, hidden=True) == whole


def test_a_claim_that_another_process_followed_is_lost(tmp_path: Path) -> None:
    with join(Journal(tmp_path), "slice 1/2") as one, join(Journal(tmp_path), "slice 2/2") as two:
        assert (one.claim("end"), two.claim("end")) == ("ours", "taken")
        record = one.journal.owners / one.id / "owner.json"
        kept = record.read_bytes()
        record.unlink()
        assert two.claim("end") == "ours"
        record.write_bytes(kept)
        assert (one.claim("end"), two.claim("end")) == ("taken", "ours")


def test_an_owner_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.001)
    touched = threading.Event()
    utime = os.utime
    monkeypatch.setattr(os, "utime", lambda path: (utime(path), touched.set()))
    with join(Journal(tmp_path), "slice 1/2"):
        assert touched.wait(20)


def test_the_tasks_of_the_example_of_a_slurm_array_make_the_set(
    source: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    """With the variables that Slurm sets; a task that is submitted again alone is told how many slices there are."""
    program = tmp_path / "bin/phi3v-data"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{COMMAND[0]}" -c "{COMMAND[2]}" "$@"\n')
    program.chmod(0o755)
    args = ["bash", ROOT / "examples/slurm_array.sh", "--converter", TOY, "--source", source, "--out_dir"]

    def task(number: int, last: int, **more: str) -> "subprocess.Popen[str]":
        slurm = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_MAX": str(last), "SLURM_CPUS_PER_TASK": "1"}
        environment = {**os.environ, **slurm, **more, "PATH": f"{program.parent}:{os.environ['PATH']}"}
        return subprocess.Popen([*args, tmp_path / "out"], env=environment, stdout=subprocess.PIPE, text=True)

    said = [each.communicate()[0] for each in [task(1, 3), task(2, 3)]]
    assert any("; the set is not complete yet, 5 of 16 parts are missing, of slice 3/3 (5)" in each for each in said)
    last = task(3, 3, SLICES="3").communicate()[0]
    assert last.startswith(f"{tmp_path}/out: 30 samples")
    assert tree(tmp_path / "out", hidden=True) == whole


@pytest.mark.parametrize("slices", [1, 2, 3, 5, 7, 12, 20_000_000])
def test_missing_parts_are_told_by_the_slices_that_have_them(slices: int) -> None:
    """Also for far more slices than parts, without a look at each of them."""
    plan = sliced.SlicedPlan(slices, (1,) * 7, phi3v_data.DatasetInfo("x"), {})
    found = plan.slices_of([6, 0, 3])
    assert sum(found.values()) == 3
    for name in found:
        share = sliced.parse_slice(name).of(plan.as_parts())
        assert len({0, 3, 6}.intersection(part.index for part in share)) == found[name]


def test_slices_have_about_as_many_samples_where_parts_differ_in_size() -> None:
    """Twelve parts of a large split and 24 of two small ones: 9 parts each were 1,800, 675, 225 and 225 samples."""
    parts = sliced.SlicedPlan(4, (200,) * 12 + (25,) * 24, phi3v_data.DatasetInfo("x"), {}).as_parts()
    shares = [sliced.Slice(number, 4).of(parts) for number in (1, 2, 3, 4)]
    assert [sum(part.count for part in share) for share in shares] == [800, 600, 800, 800]
    assert [part.index for share in shares for part in share] == list(range(36))
