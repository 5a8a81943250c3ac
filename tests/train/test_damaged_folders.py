"""Folders, pipes and links in the place of files of a run or an evaluation: named in one sentence, or replaced."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from colour_sets import colour_directory
from run_dirs import arguments, command, settings_for

PLACED = {
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path.name),
    "fifo": lambda path: os.mkfifo(path),
}
"""Things that are no files, by name."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data`, and a finished run of one step in `out`."""
    work = tmp_path_factory.mktemp("finished")
    colour_directory(work / "data", rows=4)
    ran = command("run", *options(work, 1))
    assert ran.returncode == 0, ran.stderr
    return work


@pytest.fixture
def work(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True, copy_function=shutil.copy2)
    return tmp_path


def options(work: Path, steps: int) -> list[str]:
    return arguments(settings_for(work / "data", work / "out", max_steps=steps, save_steps=1))


def place(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    PLACED[kind](path)


def said(*words: str) -> str:
    """The one sentence of a command that is refused."""
    ran = command(*words)
    (line,) = (line for line in ran.stderr.splitlines() if not line.startswith(("Failed to load", "loading ")))
    assert (ran.returncode, line[:7]) == (2, "error: "), ran.stderr
    return line


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("complete.json", "folder"),
        ("complete.json", "loop"),
        ("complete.json", "fifo"),
        ("config.yaml", "folder"),
        ("data.json", "folder"),
        ("environment.json", "folder"),
        ("metrics.jsonl", "folder"),
    ],
)
def test_what_is_in_the_place_of_a_file_of_a_run_is_named(work: Path, name: str, kind: str) -> None:
    place(work / "out" / name, kind)
    line = said("run", *options(work, 2))
    assert f"{work / 'out' / name}: is " in line
    assert "move it away" in line
    assert not (work / "out" / "checkpoint-000002").exists()


@pytest.mark.parametrize("change", [{"total_steps": None}, {"total_steps": []}, {"stopped_early": "x"}])
def test_an_end_of_a_run_with_other_values_does_not_count(work: Path, change: dict[str, Any]) -> None:
    path = work / "out" / "complete.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    ran = command("run", *options(work, 2))
    assert (ran.returncode, "Traceback" in ran.stderr) == (0, False), ran.stderr
    assert (work / "out" / "checkpoint-000002").exists()


@pytest.mark.parametrize(("name", "kind"), [("eval.json", "folder"), (".predictions-0.jsonl", "folder")])
def test_what_is_in_the_place_of_a_file_of_an_evaluation_is_named(work: Path, name: str, kind: str) -> None:
    (work / "scores").mkdir()
    place(work / "scores" / name, kind)
    assert f"{work / 'scores' / name}: is a folder, where phi3v writes a file" in said(*evaluation(work))


@pytest.mark.parametrize("kind", ["loop", "fifo"])
def test_what_cannot_be_a_file_of_an_evaluation_is_replaced(work: Path, kind: str) -> None:
    (work / "scores").mkdir()
    place(work / "scores" / ".predictions-0.jsonl", kind)
    ran = command(*evaluation(work))
    assert ran.returncode == 0, ran.stderr
    assert [path.name for path in (work / "scores").glob(".pred*")] == []


def evaluation(work: Path) -> list[str]:
    return [
        "eval", "--model_name_or_path", "tiny", "--device", "cpu", "--num_workers", "0", "--max_new_tokens", "1",
        "--data_dir", str(work / "data"), "--eval_split", "val", "--output_dir", str(work / "scores"), "--quiet",
        "--eval_limit", "1",
    ]  # fmt: skip


def test_a_file_of_a_checkpoint_that_leads_outside_is_named(work: Path) -> None:
    state = work / "out" / "checkpoint-000001" / "optimizer.pt"
    state.rename(work / "kept.pt")
    state.symlink_to(work / "kept.pt")
    (work / "out" / "complete.json").unlink()
    assert "optimizer.pt is a link that leads outside the checkpoint" in said("run", *options(work, 2))
