"""Damaged checkpoints are named and never passed over in silence; what cannot be written is an exit code of 1."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from colour_sets import colour_directory
from run_dirs import arguments, read_lines, settings_for, without_times

from phi3v_data.cli.base import make_group
from phi3v_data.cli.base import run as run_program
from phi3v_data.errors import NotFoundError, UserError
from phi3v_train.cli.app import COMMANDS, HELP
from phi3v_train.run import run
from phi3v_train.settings import resolve
from phi3v_train.training.checkpoints import list_checkpoints
from phi3v_train.training.parallel.torch_engine import TorchEngine
from phi3v_train.training.trackers import Trackers


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("colours"), rows=9)


def short(data_dir: Path, output_dir: Path, **changes: Any) -> Any:
    return run(resolve(settings_for(data_dir, output_dir, **{"save_steps": 1, "max_steps": 3, **changes})), quiet=True)


@pytest.fixture(scope="module")
def finished(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("finished") / "out"
    short(data_dir, output_dir)
    return output_dir


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """Checkpoints of the steps 2 and 3, as if killed before the model was written."""
    shutil.copytree(finished, tmp_path / "out")
    (tmp_path / "out" / "complete.json").unlink()
    return tmp_path / "out"


def test_damaged_lines_of_the_metrics_are_named_and_left_out(
    data_dir: Path, finished: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (out / "metrics.jsonl").read_bytes().splitlines()
    lines[1] = b"\0" * len(lines[1])
    (out / "metrics.jsonl").write_bytes(b"\n".join([b"[1]", *lines]) + b"\n")
    short(data_dir, out)
    warning = f"warning: {out}/metrics.jsonl had 2 damaged lines, left out now; the run continues"
    assert capsys.readouterr().err.count(warning) == 1
    kept = [line["step"] for line in read_lines(finished / "metrics.jsonl")]
    assert [line["step"] for line in read_lines(out / "metrics.jsonl")] == [kept[0], *kept[2:]]


def test_metrics_that_are_no_file_are_one_sentence(data_dir: Path, out: Path) -> None:
    (out / "metrics.jsonl").unlink()
    os.mkfifo(out / "metrics.jsonl")
    signal.alarm(120)  # ends the tests where something waits
    with pytest.raises(UserError) as caught:
        short(data_dir, out)
    signal.alarm(0)
    assert str(caught.value) == f"{out}/metrics.jsonl: cannot be read (it is not a regular file); move it away"


def test_a_finished_run_without_its_model_says_so(data_dir: Path, finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    shutil.rmtree(out / "model")
    with pytest.raises(UserError) as caught:
        short(data_dir, out)
    assert str(caught.value) == (
        f"{out}: the run is complete, but model/ is gone; remove complete.json to have it written again from the last "
        "checkpoint, if there is one, or start over with --overwrite"
    )
    (out / "complete.json").unlink()
    short(data_dir, out)
    written = (out / "model" / "model.safetensors").read_bytes()
    assert written == (finished / "model" / "model.safetensors").read_bytes()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    """One bit in the middle; the size stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (lambda folder: cut(folder / "model.safetensors"), r"model\.safetensors has [\d,]+ bytes instead of [\d,]+"),
    "missing": (lambda folder: (folder / "optimizer.pt").unlink(), r"optimizer\.pt is missing"),
    "same size": (lambda folder: flip(folder / "model.safetensors"), r"model\.safetensors is not what was written"),
    "optimizer": (lambda folder: flip(folder / "optimizer.pt"), r"optimizer\.pt is not what was written"),
    "no list": (lambda folder: (folder / "COMPLETE.json").unlink(), r"COMPLETE\.json is missing"),
    "bad list": (lambda folder: (folder / "COMPLETE.json").write_text("{"), r"COMPLETE\.json is damaged"),
    "state": (
        lambda folder: (folder / "state.json").write_bytes(b"\0" * (folder / "state.json").stat().st_size),
        r"state\.json is damaged",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_older_whole_one_is_used(
    data_dir: Path, finished: Path, out: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    damage, words = DAMAGE[kind]
    damage(out / "checkpoint-000003")
    assert short(data_dir, out, save_total_limit=1).step == 3
    errors = capfd.readouterr().err
    assert re.search(rf"^warning: checkpoint-000003 cannot be used: {words}$", errors, re.MULTILINE), errors
    assert without_times(read_lines(out / "metrics.jsonl")) == without_times(read_lines(finished / "metrics.jsonl"))
    assert (out / "model" / "model.safetensors").read_bytes() == (finished / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["cut", "same size", "state"])
def test_where_nothing_is_whole_a_run_is_refused_and_nothing_is_changed(
    data_dir: Path, out: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    damage, words = DAMAGE[kind]
    for name in ("checkpoint-000002", "checkpoint-000003"):
        damage(out / name)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(UserError, match=rf"checkpoint-000003 cannot be used: {words}.*--overwrite starts over"):
        short(data_dir, out)
    assert "warning" not in capfd.readouterr().err, "the reasons are told once"
    assert {path: path.read_bytes() for path in before} == before
    assert short(data_dir, out, overwrite=True, max_steps=1).step == 1
    assert [path.name for path in sorted(out.glob("checkpoint-*"))] == ["checkpoint-000001"]
    assert [line["step"] for line in read_lines(out / "metrics.jsonl")] == [1]


def test_each_damaged_checkpoint_is_named_once_with_its_reason(
    data_dir: Path, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Damage that sizes show and damage that only digests show, in one sentence."""
    flip(out / "checkpoint-000002" / "optimizer.pt")
    (out / "checkpoint-000003" / "model.safetensors").unlink()
    with pytest.raises(UserError) as caught:
        short(data_dir, out)
    assert str(caught.value) == (
        f"{out}: checkpoint-000002 cannot be used: optimizer.pt is not what was written; checkpoint-000003 cannot be "
        "used: model.safetensors is missing; there is no other checkpoint; --overwrite starts over, another "
        "--output_dir keeps it"
    )
    assert "cannot be used" not in capfd.readouterr().err
    with pytest.raises(UserError, match=f"--resume never: {out} holds a run"):
        short(data_dir, out, resume="never")


def test_a_stopped_run_without_checkpoints_starts_over_with_the_same_settings_only(
    data_dir: Path, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("checkpoint-000002", "checkpoint-000003"):
        shutil.rmtree(out / name)
    logs = (out / "metrics.jsonl").read_bytes()
    refusal = f"{out} holds an earlier run's logs but no checkpoint to resume from ("
    advice = "); --overwrite starts over, or choose another --output_dir"
    for changes in ({}, {"resume": "never"}):
        with pytest.raises(UserError) as caught:
            short(data_dir, out, learning_rate=0.5, **changes)
        assert str(caught.value) == f"{refusal}--learning_rate was 0.001, is 0.5{advice}"
    data = (out / "data.json").read_text()
    (out / "data.json").unlink()
    with pytest.raises(UserError) as caught:
        short(data_dir, out)
    assert str(caught.value) == f"{refusal}its config.yaml or data.json cannot be read{advice}"
    assert (out / "metrics.jsonl").read_bytes() == logs
    (out / "data.json").write_text(data)
    assert short(data_dir, out, max_steps=2).step == 2
    assert capfd.readouterr().err.splitlines()[0] == (
        f"warning: {out} holds logs of this run but no checkpoint to resume from: it starts over, and its logs are "
        "replaced"
    )
    assert [line["step"] for line in read_lines(out / "metrics.jsonl")] == [1, 2]
    for name in ("checkpoint-000001", "checkpoint-000002"):
        shutil.rmtree(out / name)
    (out / "complete.json").unlink()
    assert short(data_dir, out, max_steps=1, seed=5, overwrite=True).step == 1


def test_a_run_killed_before_its_first_step_may_start_with_other_settings(data_dir: Path, out: Path) -> None:
    for name in ("checkpoint-000002", "checkpoint-000003"):
        shutil.rmtree(out / name)
    (out / "metrics.jsonl").write_text('{"step": 0, "eval_loss": 7.6}\n')
    assert short(data_dir, out, learning_rate=0.5, max_steps=1).step == 1


def test_settings_are_compared_with_whatever_state_can_be_read(data_dir: Path, out: Path) -> None:
    for name in ("checkpoint-000002", "checkpoint-000003"):
        cut(out / name / "model.safetensors")
    with pytest.raises(UserError, match=r"--learning_rate was 0\.001, is 0\.5"):
        short(data_dir, out, learning_rate=0.5)
    (out / "checkpoint-000003" / "state.json").write_text("{")
    with pytest.raises(
        UserError, match=r"checkpoint-000002 holds a run with other settings or data: --seed was 0, is 1"
    ):
        short(data_dir, out, seed=1)


def test_a_checkpoint_that_is_asked_for_must_be_whole(data_dir: Path, out: Path) -> None:
    flip(out / "checkpoint-000002" / "model.safetensors")
    with pytest.raises(UserError) as caught:
        short(data_dir, out, resume=str(out / "checkpoint-000002"))
    assert str(caught.value) == (
        f"--resume {out}/checkpoint-000002: checkpoint-000002 cannot be used: model.safetensors is not what was "
        "written; give another checkpoint, or leave out --resume"
    )
    cut(out / "checkpoint-000002" / "model.safetensors")
    with pytest.raises(NotFoundError, match=r"no complete checkpoint there \(model\.safetensors has .* bytes instead"):
        short(data_dir, out, resume=str(out / "checkpoint-000002"))


def test_a_finished_run_without_a_checkpoint_is_not_started_over(
    data_dir: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    for name in ("checkpoint-000002", "checkpoint-000003"):
        shutil.rmtree(tmp_path / "out" / name)
    assert short(data_dir, tmp_path / "out").already_complete
    with pytest.raises(UserError, match="a finished run of 3 steps and no checkpoint to resume from; --overwrite"):
        short(data_dir, tmp_path / "out", max_steps=4)
    assert len(read_lines(tmp_path / "out" / "metrics.jsonl")) == 3


def test_every_file_has_a_digest_and_checkpoints_without_digests_are_still_read(data_dir: Path, out: Path) -> None:
    newest = out / "checkpoint-000003"
    listed = json.loads((newest / "COMPLETE.json").read_text())
    names = {str(path.relative_to(newest)) for path in newest.rglob("*") if path.is_file()} - {"COMPLETE.json"}
    assert set(listed["files"]) == set(listed["xxh3_128"]) == names
    del listed["xxh3_128"]
    (newest / "COMPLETE.json").write_text(json.dumps(listed))
    assert short(data_dir, out).step == 3


def call(*words: object) -> int:
    """Run `phi3v-train` in this process; its exit code."""
    with pytest.raises(SystemExit) as stop:
        run_program(make_group("phi3v-train", HELP, COMMANDS), [str(word) for word in words])
    return int(stop.value.code or 0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MB; only root may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("silent", ["--no_tqdm", "--quiet"])
def test_a_run_whose_disk_was_full_says_so_and_exits_with_1(
    data_dir: Path, small_disk: Path, silent: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """No room for a checkpoint nor for the model; the next start finds room and ends well."""
    out = small_disk / "out"
    options = arguments(settings_for(data_dir, out, max_steps=2, save_steps=1, skip_validation=True))
    hog = small_disk / "hog"
    hog.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - (1 << 20)))
    code = call("run", *options, silent)
    errors = capfd.readouterr().err
    assert code == 1, errors
    assert errors.count("could not be written: the disk is full; the run continues without this checkpoint") == 2
    assert f"error: {out / 'model'} could not be written: the disk is full; make room and run the " in errors
    assert "same command again: it starts over, as no checkpoint could be written" in errors
    assert not list_checkpoints(out)
    hog.unlink()
    assert call("run", *options, silent) == 0
    errors = capfd.readouterr().err
    assert errors.count("warning: ") == 1
    assert f"warning: {out} holds logs of this run but no checkpoint to resume from: it starts over" in errors
    assert "error: " not in errors


@pytest.mark.parametrize("failing", [1, 2])
def test_a_run_exits_with_1_if_its_last_checkpoint_failed_and_with_0_if_an_earlier_one_did(
    data_dir: Path, tmp_path: Path, failing: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The model itself is written in both cases."""
    saves: list[Path] = []
    original = TorchEngine.write

    def write(self: TorchEngine, folder: Path, processor: Any) -> None:
        saves.append(folder)
        if len(saves) == failing:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        original(self, folder, processor)

    monkeypatch.setattr(TorchEngine, "write", write)
    out = tmp_path / "out"
    options = arguments(settings_for(data_dir, out, max_steps=2, save_steps=1, skip_validation=True))
    assert call("run", *options, "--quiet") == (1 if failing == 2 else 0)
    assert capfd.readouterr().err.count("warning: ") == 1
    assert [each.step for each in list_checkpoints(out)] == [3 - failing]
    assert (out / "model" / "model.safetensors").exists()


def test_quiet_hides_neither_scores_nor_failures_of_trackers(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def log(self, values: Any, step: int) -> None:
            raise ConnectionError("the service is down")

        def close(self) -> None:
            raise AssertionError("it was dropped")

    monkeypatch.setattr(
        "phi3v_train.training.session.open_trackers", lambda *given: Trackers([Broken()], say=given[-1])
    )
    options = settings_for(
        data_dir, tmp_path / "out", max_steps=2, eval_steps=1, max_new_tokens=1, skip_validation=True
    )
    for silent in ("--quiet", "--no_tqdm"):
        assert call("run", *arguments(options), silent, "--overwrite") == 0
        errors = capfd.readouterr().err
        assert errors.count("Broken failed and gets no more curves: the service is down") == 1
        assert "step 1: val (3 samples): accuracy 0, loss " in errors
        assert "tokens/s" not in errors, "no progress"
