"""Runs on parquet and WebDataset shards: the same order, losses and weights as on the directory; SIGKILL and resume."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from colour_sets import colour_directory
from kills import fork, wait
from run_dirs import read_lines, settings_for, without_times
from safetensors.torch import load_file
from shard_files import KINDS, write_shards

from phi3v_data.sets.store import change_store
from phi3v_train.plan import make_plan
from phi3v_train.plan_report import plan_json, plan_lines
from phi3v_train.run import run as train
from phi3v_train.settings import resolve


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("colours") / "colours", rows=9)


def in_shards(directory: Path, out: Path, kind: str) -> Path:
    """An export of a directory, or the same directory with its images in shards."""
    if kind != "stored":
        return write_shards(directory, out, kind)
    change_store(directory, out, "shards")
    return out


def losses(output_dir: Path) -> list[tuple[int, float]]:
    """Step and loss of each logged step."""
    return [(line["step"], line["loss"]) for line in read_lines(output_dir / "metrics.jsonl") if "loss" in line]


@pytest.mark.parametrize("kind", [*KINDS, "stored"])
def test_losses_and_weights_are_those_of_the_directory(directory: Path, tmp_path: Path, kind: str) -> None:
    """Of the directory in this process, of the shards with two workers that read images."""
    changes: dict[str, Any] = {"max_steps": 3, "logging_steps": 1}
    export = in_shards(directory, tmp_path / "export", kind)
    train(resolve(settings_for(directory, tmp_path / "plain", **changes)), quiet=True)
    train(resolve(settings_for(export, tmp_path / "shards", **changes, num_workers=2)), quiet=True)
    assert [step for step, _ in losses(tmp_path / "plain")] == [1, 2, 3]
    assert losses(tmp_path / "shards") == losses(tmp_path / "plain")
    plain, shards = (load_file(tmp_path / name / "model/model.safetensors") for name in ("plain", "shards"))
    assert plain.keys() == shards.keys()
    assert all(torch.equal(plain[name], shards[name]) for name in plain)


def test_the_plan_names_the_export_as_it_was_given(directory: Path, tmp_path: Path) -> None:
    """Not the folder of its view, which has a digest as its name."""
    export = in_shards(directory, tmp_path / "export", "parquet")
    settings = settings_for(export, tmp_path / "out", eval_before=True)
    plan = make_plan(resolve(settings))
    lines = dict(plan_lines(plan, run_state="begins"))
    assert lines["data"].startswith(f"{export} train: 9 rows")
    assert lines["eval"].startswith(f"{export} val: 3 rows")
    assert plan_json(plan, run_state="begins")["sources"][0]["data_dir"] == str(export)


@pytest.mark.parametrize("kind", ["parquet", pytest.param("stored", marks=pytest.mark.slow)])
def test_a_run_on_shards_that_is_killed_resumes_with_the_same_bits(directory: Path, tmp_path: Path, kind: str) -> None:
    export = in_shards(directory, tmp_path / "export", kind)
    changes: dict[str, Any] = {"max_steps": 3, "logging_steps": 1, "save_steps": 1}

    def kill(line: Any) -> bool:
        if line["step"] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    killed = resolve(settings_for(export, tmp_path / "killed", **changes))
    assert wait(fork(lambda: train(killed, quiet=True, hooks=[kill]))) == -signal.SIGKILL
    assert not (tmp_path / "killed/complete.json").exists()
    train(killed, quiet=True)
    train(resolve(settings_for(export, tmp_path / "whole", **changes)), quiet=True)
    metrics = [without_times(read_lines(tmp_path / name / "metrics.jsonl")) for name in ("killed", "whole")]
    assert metrics[0] == metrics[1]
    one, other = (load_file(tmp_path / name / "model/model.safetensors") for name in ("killed", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)
