"""A run writes into a folder of its own: files of others are neither replaced nor deleted, with --overwrite or not."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from colour_sets import colour_directory
from run_dirs import read_lines, settings_for

from phi3v_data.errors import UserError
from phi3v_train.plan import make_plan
from phi3v_train.run import run
from phi3v_train.settings import resolve
from phi3v_train.start import find_start
from phi3v_train.training.checkpoints import list_checkpoints, sweep


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("colours"), rows=9)


def short(data_dir: Path, output_dir: Path, **changes: Any) -> Any:
    return run(resolve(settings_for(data_dir, output_dir, **{"save_steps": 1, "max_steps": 2, **changes})), quiet=True)


EVALUATED = {"eval_after": True, "eval_limit": 1, "max_new_tokens": 1, "report_to": ["tensorboard"]}


@pytest.fixture(scope="module")
def finished(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("finished") / "out"
    short(data_dir, output_dir, **EVALUATED)
    return output_dir


def write(folder: Path, *names: str) -> None:
    """Make files of a user."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_logs_of_a_shell_or_a_scheduler_do_not_count(data_dir: Path, tmp_path: Path) -> None:
    """As of `phi3v-train run ... 2>&1 | tee OUT/train.log`."""
    out, names = tmp_path / "out", ("train.log", "slurm-17.OUT", "slurm-17.err", "nohup.txt")
    write(out, *names)
    assert short(data_dir, out, max_steps=1).step == 1
    assert [(out / name).read_text() for name in names] == ["mine"] * 4


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (("README.md", "model/net.py"), "README.md"),
        (("config.yaml",), "config.yaml"),
        (("metrics.jsonl",), "metrics.jsonl"),
        (("checkpoint-000001/COMPLETE.json",), "checkpoint-000001"),
        ((".lock", ".gitignore", "predictions/a.txt"), "predictions"),
        ((".model/net.py",), ".model"),
        ((".trash-model/net.py",), ".trash-model"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_files_of_others_is_refused(
    data_dir: Path, tmp_path: Path, names: tuple[str, ...], named: str, overwrite: bool
) -> None:
    out = tmp_path / "out"
    write(out, *names)
    with pytest.raises(UserError) as caught:
        short(data_dir, out, overwrite=overwrite)
    assert str(caught.value) == f"{out} contains files that no run wrote, such as '{named}'; choose an empty folder"
    assert contents(out) == dict.fromkeys(names, "mine")


def test_system_files_and_what_a_run_killed_early_leaves_are_no_obstacle(data_dir: Path, tmp_path: Path) -> None:
    for number, names in enumerate(
        [(".lock",), (".DS_Store", "lost+found/a"), (".lock", ".config.yaml.tmp", ".checkpoint-000001/state.json")]
    ):
        write(tmp_path / str(number), *names)
        assert short(data_dir, tmp_path / str(number), max_steps=1).step == 1
    logs = tmp_path / "logs"
    write(logs, "tensorboard/events.out.tfevents.1.host")
    (logs / "metrics.jsonl").write_text('{"step": 0, "epoch": 0.0, "eval_loss": 7.6}\n')
    assert short(data_dir, logs, max_steps=1).step == 1


def test_a_folder_that_overlaps_with_the_data_is_refused(data_dir: Path, tmp_path: Path) -> None:
    data = shutil.copytree(data_dir, tmp_path / "sets" / "data")
    link = tmp_path / "link"
    link.symlink_to(data)
    for out, how in ((data, "is"), (link, "is"), (data / "runs" / "a", "is inside"), (data.parent, "contains")):
        with pytest.raises(UserError) as caught:
            short(data, out, overwrite=True)
        assert str(caught.value) == f"--output_dir {out} {how} --data_dir {data}; choose a folder of its own"
    assert not (data / "runs").exists()


def test_what_is_not_a_folder_is_one_sentence(data_dir: Path, finished: Path, tmp_path: Path) -> None:
    write(tmp_path, "file")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(UserError, match=f"^{out}: is a file, or inside one; give a folder as --output_dir$"):
            short(data_dir, out)
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    with pytest.raises(UserError, match=r"nowhere: is a link to a folder that does not exist; make that folder$"):
        short(data_dir, tmp_path / "nowhere")
    out = shutil.copytree(finished, tmp_path / "out")
    shutil.move(out / "model", tmp_path / "elsewhere")
    (out / "model").symlink_to(tmp_path / "elsewhere")
    before = sorted(os.listdir(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=r"model: is a link, which no run wrote; move it away, or choose another"):
        short(data_dir, out, overwrite=True)
    assert sorted(os.listdir(tmp_path / "elsewhere")) == before


MINE = {
    "notes.txt",
    "eval_step-mine.json",
    "model/notes.txt",
    "model/deep/net.py",
    "tensorboard/notes.txt",
    "predictions/mine/a.txt",
    "predictions/step-000002/a.txt",
    "checkpoint-000001/mine.txt",
    "checkpoint-000002/deep/mine.txt",
}


def mine(out: Path) -> dict[str, str]:
    return {name: (out / name).read_text() for name in sorted(MINE) if (out / name).is_file()}


def test_overwrite_keeps_what_no_run_wrote(data_dir: Path, finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    write(out, *MINE)
    old = {path.name for path in (out / "tensorboard").glob("events*")}
    (out / "model" / "model-00001-of-00002.safetensors").write_bytes(b"old")
    assert short(data_dir, out, overwrite=True, max_steps=1, seed=5).step == 1
    assert mine(out) == dict.fromkeys(sorted(MINE), "mine")
    assert [each.step for each in list_checkpoints(out)] == [1]
    assert sorted(os.listdir(out / "checkpoint-000002")) == ["deep"]
    assert sorted(os.listdir(out / "predictions" / "step-000002")) == ["a.txt"]
    assert sorted(os.listdir(out / "tensorboard")) == ["notes.txt"]
    assert old
    assert not (out / "model" / "model-00001-of-00002.safetensors").exists()
    assert [line["step"] for line in read_lines(out / "metrics.jsonl")] == [1]
    assert [name for name in os.listdir(out) if name.startswith(".")] == [".lock"]
    assert short(data_dir, out, max_steps=1, seed=5).already_complete
    assert short(data_dir, out, overwrite=True, max_steps=2).step == 2, "folders with files of others only"
    assert mine(out) == dict.fromkeys(sorted(MINE), "mine")


def test_a_longer_run_keeps_what_no_run_wrote(data_dir: Path, finished: Path, tmp_path: Path) -> None:
    """It replaces the model, and deletes the checkpoints beyond the limit."""
    out = shutil.copytree(finished, tmp_path / "out")
    write(out, *MINE)
    assert short(data_dir, out, max_steps=4, save_total_limit=1).step == 4
    assert mine(out) == dict.fromkeys(sorted(MINE), "mine")
    assert [each.step for each in list_checkpoints(out)] == [4]
    assert (out / "model" / "model.safetensors").stat().st_size == (
        finished / "model" / "model.safetensors"
    ).stat().st_size


def test_a_folder_with_files_of_others_only_is_not_a_checkpoint(data_dir: Path, finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    (out / "complete.json").unlink()
    for checkpoint in list_checkpoints(out):
        shutil.rmtree(checkpoint.path)
    write(out, "checkpoint-000001/mine.txt", "checkpoint-000009/mine.txt")
    assert short(data_dir, out, max_steps=1).step == 1
    assert [each.step for each in list_checkpoints(out)] == [1]
    assert [(out / f"checkpoint-00000{step}" / "mine.txt").read_text() for step in (1, 9)] == ["mine", "mine"]


def test_what_a_killed_removal_left_is_put_back(tmp_path: Path) -> None:
    """The second file of its name is kept beside the first; a link is neither followed nor removed."""
    write(tmp_path, ".trash-model/config.json", ".trash-model/a/notes.txt", ".trash-model/b.txt", "model/b.txt")
    write(tmp_path, ".trash-other/mine.txt", "elsewhere/config.json", "elsewhere/events.out.tfevents.1.host")
    (tmp_path / ".trash-model" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".trash-tensorboard").symlink_to(tmp_path / "elsewhere")
    sweep(tmp_path)
    assert not (tmp_path / ".trash-model").exists()
    assert sorted(os.listdir(tmp_path / "model")) == ["a", "b.txt", "b.txt.1", "link"]
    assert contents(tmp_path / "model") == {"a/notes.txt": "mine", "b.txt": "mine", "b.txt.1": "mine"}
    assert sorted(os.listdir(tmp_path / "elsewhere")) == ["config.json", "events.out.tfevents.1.host"]
    assert (tmp_path / ".trash-other" / "mine.txt").exists()


def test_one_step_that_is_left_is_counted_as_one(data_dir: Path, finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    plan = make_plan(resolve(settings_for(data_dir, out, save_steps=1, max_steps=3)))
    assert re.fullmatch("resumes from checkpoint-000002, 1 step left", find_start(plan).words(3))
