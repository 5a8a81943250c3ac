"""Killed and started again, a run ends with the bits of one that never stopped."""

import errno
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from colour_sets import colour_directory
from PIL import Image
from processes import HERE, finish, start
from run_dirs import read_lines, settings_for, without_times

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.lock import lock_file
from phi3v_train.data.encode import EncodedSample
from phi3v_train.data.order import SampleRef
from phi3v_train.data.reader import Reader
from phi3v_train.distributed.group import SingleProcess
from phi3v_train.parse_config import parse_config
from phi3v_train.plan import make_plan
from phi3v_train.run import run, train
from phi3v_train.settings import resolve
from phi3v_train.start import find_start
from phi3v_train.training.checkpoints import SaveError, find_checkpoint, list_checkpoints, sweep, write_checkpoint
from phi3v_train.training.identity import refuse_other_run, settings_identity
from phi3v_train.training.loop import StepResult
from phi3v_train.training.metrics_log import MetricsLog
from phi3v_train.training.session import Session

ALONE = SingleProcess(torch.device("cpu"))

EVERYTHING = {
    "use_lora": True,
    "lora_rank": 4,
    "lora_dropout": 0.3,
    "pack": True,
    "answer_choice": "random",
    "num_train_epochs": 2,
    "save_steps": 4,
    "eval_steps": 3,
    "eval_limit": 1,
    "max_new_tokens": 2,
}
"""Shuffling, dropout, packing, random answers, evaluation; checkpoints within epochs, after steps 4 and 6 of 6."""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("colours"), rows=10)


def kill_run(data_dir: Path, tmp_path: Path, mode: str, first: int, second: int, **changes: Any) -> int:
    settings = settings_for(data_dir, tmp_path, **{**EVERYTHING, **changes})
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    process = start(HERE / "kill_run.py", tmp_path / "settings.json", tmp_path, mode, str(first), str(second))
    ((code, output, errors),) = finish([process], timeout=1200)
    assert code == 0, errors
    return int(output.splitlines()[-1])


def test_killed_at_random_moments(data_dir: Path, tmp_path: Path) -> None:
    assert kill_run(data_dir, tmp_path, "random", 3, 1) >= 3


@pytest.mark.slow
def test_killed_at_random_moments_with_workers(data_dir: Path, tmp_path: Path) -> None:
    assert kill_run(data_dir, tmp_path, "random", 4, 2, num_workers=1) >= 4


@pytest.mark.slow
def test_killed_at_random_moments_full_weights(data_dir: Path, tmp_path: Path) -> None:
    assert kill_run(data_dir, tmp_path, "random", 6, 3, use_lora=False, lora_dropout=0) >= 6


@pytest.mark.slow
def test_killed_before_every_eleventh_file_operation(data_dir: Path, tmp_path: Path) -> None:
    assert kill_run(data_dir, tmp_path, "operations", 1, 11) > 7


def short(data_dir: Path, output_dir: Path, **changes: Any) -> Any:
    return run(resolve(settings_for(data_dir, output_dir, **{"save_steps": 1, "max_steps": 3, **changes})), quiet=True)


@pytest.fixture(scope="module")
def finished(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("finished") / "out"
    assert not short(data_dir, output_dir).already_complete
    return output_dir


def copy_of(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "out", dirs_exist_ok=True)
    return tmp_path / "out"


def test_a_finished_run_says_so_and_changes_nothing(data_dir: Path, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    assert short(data_dir, finished).already_complete
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_more_steps_continue_as_if_asked_for_at_once(data_dir: Path, finished: Path, tmp_path: Path) -> None:
    out = copy_of(finished, tmp_path)
    constant = {"lr_scheduler": "constant", "warmup_steps": 0}
    short(data_dir, tmp_path / "short", max_steps=2, **constant)
    assert short(data_dir, tmp_path / "short", max_steps=4, **constant).step == 4
    short(data_dir, tmp_path / "long", max_steps=4, **constant)
    lines = [without_times(read_lines(tmp_path / name / "metrics.jsonl")) for name in ("short", "long")]
    assert lines[0] == lines[1]
    assert short(data_dir, out, num_train_epochs=3, max_steps=None).step == 9


@pytest.mark.parametrize(
    "changes",
    [
        {"eval_after": True, "eval_limit": 1, "max_new_tokens": 1},
        {"logging_steps": 2, "save_steps": 3, "save_total_limit": 1, "num_workers": 1},
        {"batch_size_per_gpu": 1, "gradient_checkpointing": True},
    ],
)
def test_settings_that_may_change(data_dir: Path, finished: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    out = copy_of(finished, tmp_path)
    assert short(data_dir, out, **{"max_steps": 4, **changes}).step == 4
    plain = copy_of(finished, tmp_path / "plain")
    short(data_dir, plain, max_steps=4)
    changed, usual = (read_lines(each / "metrics.jsonl")[-1] for each in (out, plain))
    assert changed["step"] == 4
    assert changed["loss"] == pytest.approx(usual["loss"], abs=1e-5)
    assert (changed["lr"], changed["samples"]) == (usual["lr"], usual["samples"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 2e-3}, "--learning_rate was 0.001, is 0.002"),
        ({"seed": 1}, "--seed was 0, is 1"),
        ({"batch_size": 2}, "--batch_size was 4, is 2"),
        ({"use_lora": True}, "--use_lora was False, is True"),
        ({"pack": True}, "--pack was False, is True"),
        ({"dtype": "bf16"}, "--dtype was fp32, is bf16"),
        ({"optim": "adamw_8bit"}, "--optim was adamw, is adamw_8bit"),
    ],
)
def test_other_settings_are_refused_with_the_difference(
    data_dir: Path, finished: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        short(data_dir, finished, **changes)
    assert words in str(caught.value)
    assert "--overwrite" in str(caught.value)


FIXED = {
    "adam_beta1", "adam_beta2", "adam_epsilon", "answer_choice", "attn", "batch_size", "bf16", "dtype",
    "freeze_language_model", "freeze_vision_model", "learning_rate", "lora_alpha_ratio", "lora_dropout", "lora_init",
    "longest_edge", "lora_rank", "lora_targets", "lr_scheduler", "max_grad_norm", "max_length", "max_pixels",
    "min_pixels", "mix", "model_name_or_path", "num_crops", "optim", "pack", "projector_learning_rate", "seed",
    "train_split", "truncate", "use_dora", "use_flash_attention", "use_lora", "use_qlora", "use_rslora",
    "vision_learning_rate", "warmup_steps", "wd",
}  # fmt: skip
"""Settings that decide the weights; a new setting belongs here or into `identity.MAY_CHANGE`."""


def test_no_other_setting_may_change_on_resume() -> None:
    assert set(settings_identity(parse_config({}), "fp32")) == FIXED


def test_a_setting_that_an_older_version_did_not_have_was_its_default() -> None:
    new = {"settings": settings_identity(parse_config({}), "fp32"), "data": []}
    old = {"settings": {name: value for name, value in new["settings"].items() if name != "lora_targets"}, "data": []}
    refuse_other_run(Path("out"), old, new)
    changed = {"settings": {**new["settings"], "lora_targets": "all-linear"}, "data": []}
    with pytest.raises(UserError, match="--lora_targets was None, is all-linear"):
        refuse_other_run(Path("out"), old, changed)


def test_a_checkpoint_after_the_last_step(data_dir: Path, tmp_path: Path) -> None:
    short(data_dir, tmp_path / "out", save_steps=2, max_steps=3)
    assert [each.step for each in list_checkpoints(tmp_path / "out")] == [2, 3]


def test_a_run_that_is_resumed_further_back_drops_the_later_checkpoints(data_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    constant = {"lr_scheduler": "constant", "warmup_steps": 0, "save_total_limit": 9}
    short(data_dir, out, save_steps=1, max_steps=3, **constant)
    assert [each.step for each in list_checkpoints(out)] == [1, 2, 3]
    (out / "complete.json").unlink()
    short(data_dir, out, save_steps=1, max_steps=2, resume=str(out / "checkpoint-000001"), **constant)
    assert [each.step for each in list_checkpoints(out)] == [1, 2]


def test_other_data_are_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the data were train 10 rows .*, are train 9 rows"):
        short(colour_directory(tmp_path / "other", rows=9), finished)


def test_the_same_data_elsewhere_are_the_same_run(data_dir: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(data_dir, tmp_path / "moved")
    assert short(tmp_path / "moved", finished).already_complete


def test_images_that_were_replaced_are_named_once(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "its images are others than when the run was started last"
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(data_dir, data)
    short(data, out, max_steps=1)
    assert said not in capsys.readouterr().err
    moved = shutil.copytree(data, tmp_path / "moved")  # with other times, in another order
    first, *_ = sorted(path for path in (moved / "images").rglob("*.png"))
    first.touch()
    short(moved, out, max_steps=2)
    assert said not in capsys.readouterr().err
    Image.new("RGB", (28, 28), (1, 2, 3)).save(first)
    assert short(moved, out, max_steps=3).step == 3
    assert f"warning: {moved}: {said}" in capsys.readouterr().err
    short(moved, out, max_steps=4)
    assert said not in capsys.readouterr().err


def test_a_file_that_another_process_is_writing_is_not_listed(tmp_path: Path) -> None:
    """safetensors writes under a hidden name, then renames."""

    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / ".tmpfOVzHF").write_bytes(b"half of what another process writes")

    written = write_checkpoint(ALONE, tmp_path, 1, {}, write=write, keep=1)
    (written.path / ".tmpfOVzHF").unlink()
    listed = json.loads((written.path / "COMPLETE.json").read_text())
    assert listed["files"].keys() == listed["xxh3_128"].keys() == {"model.safetensors", "state.json"}
    assert [each.step for each in list_checkpoints(tmp_path)] == [1]


def test_overwrite_starts_over_and_leaves_other_files(data_dir: Path, finished: Path, tmp_path: Path) -> None:
    out = copy_of(finished, tmp_path)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="--overwrite starts over"):
        short(data_dir, out, resume="never")
    assert short(data_dir, out, overwrite=True, seed=5, max_steps=1).step == 1
    assert [each.step for each in list_checkpoints(out)] == [1]
    assert (out / "notes.txt").read_text() == "mine"
    assert len(read_lines(out / "metrics.jsonl")) == 1


def test_going_on_from_a_checkpoint_further_back(data_dir: Path, finished: Path, tmp_path: Path) -> None:
    out = copy_of(finished, tmp_path)
    assert [each.step for each in list_checkpoints(out)] == [2, 3]
    assert short(data_dir, out, resume=str(out / "checkpoint-000002")).step == 3
    assert without_times(read_lines(out / "metrics.jsonl")) == without_times(read_lines(finished / "metrics.jsonl"))
    with pytest.raises(NotFoundError, match="complete ones: checkpoint-000002, checkpoint-000003"):
        short(data_dir, out, resume=str(out / "checkpoint-000009"))


def test_half_written_checkpoints_are_never_picked_and_never_counted(
    data_dir: Path, finished: Path, tmp_path: Path
) -> None:
    out = copy_of(finished, tmp_path)
    (out / "complete.json").unlink()
    newest = out / "checkpoint-000003"
    cut = newest / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    shutil.copytree(out / "checkpoint-000002", out / "checkpoint-000007")
    (out / "checkpoint-000007" / "COMPLETE.json").unlink()
    shutil.copytree(out / "checkpoint-000002", out / ".checkpoint-000008")
    assert [each.step for each in list_checkpoints(out)] == [2]
    assert find_checkpoint("auto", out) == list_checkpoints(out)[0]
    assert short(data_dir, out).step == 3
    assert [each.step for each in list_checkpoints(out)] == [2, 3]
    assert not (out / ".checkpoint-000008").exists()
    assert without_times(read_lines(out / "metrics.jsonl")) == without_times(read_lines(finished / "metrics.jsonl"))


def test_the_last_good_checkpoint_is_there_until_the_next_is_complete(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "weights").write_bytes(b"x")
        seen.append([each.step for each in list_checkpoints(tmp_path)])

    seen: list[list[int]] = []
    for step in (1, 2, 3):
        write_checkpoint(ALONE, tmp_path, step, {}, write=write, keep=1)
    assert seen == [[], [1], [2]]
    assert [each.step for each in list_checkpoints(tmp_path)] == [3]
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000003"]


def test_a_failed_save_leaves_nothing_and_keeps_the_old(tmp_path: Path) -> None:
    write_checkpoint(ALONE, tmp_path, 1, {}, write=lambda folder: None, keep=1)

    def full(folder: Path) -> None:
        (folder / "part").write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SaveError, match="the disk is full"):
        write_checkpoint(ALONE, tmp_path, 2, {}, write=full, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000001"]

    def defect(folder: Path) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_checkpoint(ALONE, tmp_path, 2, {}, write=defect, keep=1)


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


def test_a_full_disk_is_reported_and_the_run_continues(
    data_dir: Path, small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Room for one checkpoint, then for none, then for all."""
    hog = small_disk / "hog"
    out = small_disk / "out"
    settings = settings_for(data_dir, out, save_steps=1, max_steps=5, save_total_limit=1)
    seen = []

    def after(step: int) -> None:
        seen.append((step, [each.step for each in list_checkpoints(out)]))
        if step == 1:
            hog.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 8192))
        if step == 3:
            hog.unlink()

    original = Session.after_step

    def watched(self: Session, result: StepResult) -> None:
        original(self, result)
        after(result.step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "after_step", watched)
        run(resolve(settings))
    assert seen == [(1, [1]), (2, [1]), (3, [1]), (4, [4]), (5, [5])]
    errors = capfd.readouterr().err
    assert errors.count("the disk is full") == 2
    assert "the run continues without this checkpoint" in errors
    assert [line["step"] for line in read_lines(out / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert (out / "model" / "model.safetensors").exists()


def test_metrics_wait_for_a_full_disk(small_disk: Path) -> None:
    log = MetricsLog(small_disk / "metrics.jsonl", step=0)
    log.write({"step": 1, "loss": 1.0})
    hog = small_disk / "hog"
    with pytest.raises(OSError, match="No space left"):
        hog.write_bytes(b"x" * (64 << 20))
    for step in range(2, 400):
        log.write({"step": step, "note": "y" * 100})
    assert log.failed == "No space left on device"
    hog.unlink()
    log.write({"step": 400})
    assert not log.failed
    assert [line["step"] for line in read_lines(small_disk / "metrics.jsonl")] == list(range(1, 401))


def test_a_run_that_ends_while_the_same_one_starts_is_kept(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one has found a folder to begin in, and then waits for its turn."""
    settings = resolve(settings_for(data_dir, tmp_path / "out", max_steps=2, save_steps=1))
    late = find_start(make_plan(settings, world_size=1))
    assert run(settings, quiet=True).step == 2
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"out: another run has written there since this one looked; run the same co"):
        train(make_plan(settings, world_size=1), late, quiet=True)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert run(settings, quiet=True).already_complete


def test_two_runs_cannot_write_to_one_folder(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with lock_file(tmp_path / "out" / ".lock", "busy"), pytest.raises(UserError, match="another run is writing there"):
        short(data_dir, tmp_path / "out")


def test_skipped_samples_are_not_read(data_dir: Path, finished: Path, tmp_path: Path) -> None:
    """On resume the rows of earlier steps may even be gone from the disk, as far as their images go."""
    out = copy_of(finished, tmp_path)
    shutil.copytree(data_dir, tmp_path / "data")
    plan = make_plan(resolve(settings_for(tmp_path / "data", out, save_steps=1, max_steps=4)))
    later = {ref.row for ref in plan.order.batch(3)}
    read: list[int] = []
    original = Reader.encode

    def recorded(self: Reader, ref: SampleRef) -> EncodedSample:
        read.append(ref.row)
        return original(self, ref)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "encode", recorded)
        short(tmp_path / "data", out, max_steps=4)
    assert set(read) == later
