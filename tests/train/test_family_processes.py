"""Runs of other families on two processes, and in other micro-batches, are those of one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from colour_sets import colour_directory
from processes import train_together
from run_dirs import read_lines, settings_for
from safetensors.torch import load_file

from phi3v_train.run import run
from phi3v_train.settings import resolve

NAMES = ("qwen3_vl", "idefics3", "gemma3", "llava_onevision")

CASES: dict[str, dict[str, Any]] = {
    "1 x 4": {"batch_size_per_gpu": 4},
    "2 x 2": {"batch_size_per_gpu": 2},
    "4 x 1": {"batch_size_per_gpu": 1},
}
"""Micro-batches of a step, and samples in each."""


def settings_of(name: str, data_dir: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Without clipping, and with an epsilon beside which every second moment is nothing: all but plain SGD."""
    plain = {"adam_epsilon": 1e6, "adam_beta1": 0.0, "learning_rate": 1e4, "max_grad_norm": 0, "wd": 0}
    given = {"model_name_or_path": f"tiny:{name}", "warmup_steps": 0, "max_steps": 5, **plain, **changes}
    settings = settings_for(data_dir, out, **given)
    del settings["num_crops"]
    return settings


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine rows in fours, the last step of an epoch one row alone; every fourth row has no image."""
    data_dir = colour_directory(tmp_path_factory.mktemp("colours"), rows=9)
    work = tmp_path_factory.mktemp("runs")
    shared = []
    for name in NAMES:
        for case, changes in CASES.items():
            run(resolve(settings_of(name, data_dir, work / name / case, **changes)), quiet=True)
        for case in ("2 x 2", "4 x 1"):
            adam = {"adam_epsilon": 1e-7, "adam_beta1": 0.9, "learning_rate": 1e-4} if case == "2 x 2" else {}
            settings = settings_of(name, data_dir, work / name / f"{case} of two", **CASES[case], **adam)
            shared.append({**settings, "parallel": "ddp"})
            if adam:
                settings["output_dir"] = str(work / name / "adam")
                run(resolve(settings), quiet=True)
    train_together(2, shared, work)
    return work


def assert_same(one: Path, other: Path) -> None:
    """Losses and gradient norms to a relative 1e-5, weights to 1e-5 of how far they moved at most."""
    first, second = (read_lines(each / "metrics.jsonl") for each in (one, other))
    assert len(first) == len(second) == 5
    for a, b in zip(first, second, strict=True):
        assert a["supervised_tokens"] == b["supervised_tokens"]
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-5)
    expected, found = (load_file(each / "model" / "model.safetensors") for each in (one, other))
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_run_does_not_depend_on_its_micro_batches(runs: Path, name: str) -> None:
    for case in ("2 x 2", "4 x 1"):
        assert_same(runs / name / "1 x 4", runs / name / case)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_as_one_does(runs: Path, name: str) -> None:
    assert_same(runs / name / "1 x 4", runs / name / "4 x 1 of two")
    assert_same(runs / name / "adam", runs / name / "2 x 2 of two")
