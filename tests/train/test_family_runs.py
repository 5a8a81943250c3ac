"""Runs of families on transformers' own models: LoRA, resume, merge, predict; two processes; SIGKILL."""

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from colour_sets import colour_directory
from in_process import Cli, make_cli
from kills import fork, wait
from processes import train_together
from run_dirs import arguments, command, read_lines, settings_for, without_times
from safetensors.torch import load_file

from phi3v_data.cli.app import main as phi3v_data_main
from phi3v_train.cli.app import main
from phi3v_train.models.registry import get_family
from phi3v_train.run import run as train
from phi3v_train.settings import resolve
from phi3v_train.training.checkpoints import list_checkpoints

LORA: dict[str, Any] = {"use_lora": True, "lora_rank": 4}
FULL: dict[str, Any] = {}
KINDS = {"qwen3_vl": LORA, "idefics3": LORA, "gemma3": FULL, "llava_onevision": FULL, "internvl": LORA}
"""A family of each kind; models of those with `FULL` are saved under other names than their modules have."""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine rows: the last step of an epoch is a short one, and some micro-batches have no image."""
    return colour_directory(tmp_path_factory.mktemp("colours"), rows=9)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return partial(make_cli(capsys, monkeypatch), main=main)


def settings(data_dir: Path, output_dir: Path, family: str, **changes: Any) -> dict[str, Any]:
    """A run of a family's small model, without `num_crops`, which not all of them have."""
    made = settings_for(data_dir, output_dir, model_name_or_path=f"tiny:{family}", max_steps=2, **changes)
    del made["num_crops"]
    return made


class StoppedError(Exception):
    """Ends a run where a kill could have ended it."""


def stop_at(step: int) -> Any:
    """A hook that ends the run after the checkpoint of this step."""

    def hook(line: Any) -> bool:
        if line["step"] == step:
            raise StoppedError
        return False

    return hook


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*model.safetensors")
    return load_file(path)


def assert_equal(first: Path, second: Path) -> None:
    """Metrics and weights of two runs, bit by bit."""
    assert without_times(read_lines(first / "metrics.jsonl")) == without_times(read_lines(second / "metrics.jsonl"))
    expected, found = tensors(first / "model"), tensors(second / "model")
    assert expected.keys() == found.keys()
    assert all(found[name].equal(expected[name]) for name in expected)


@pytest.mark.parametrize(("family", "method"), KINDS.items())
def test_a_run_resumes_merges_and_predicts(
    family: str, method: dict[str, Any], data_dir: Path, tmp_path: Path, cli: Cli
) -> None:
    """The last step's checkpoint, or the adapter, merged: a model with the same answers."""
    whole, stopped, merged = tmp_path / "whole", tmp_path / "stopped", tmp_path / "merged"
    train(resolve(settings(data_dir, whole, family, save_steps=1, **method)), quiet=True)
    again = settings(data_dir, stopped, family, save_steps=1, **method)
    with pytest.raises(StoppedError):
        train(resolve(again), quiet=True, hooks=[stop_at(1)])
    assert [checkpoint.step for checkpoint in list_checkpoints(stopped)] == [1]
    train(resolve(again), quiet=True)
    assert_equal(whole, stopped)
    assert cli("merge", whole / "model" if method else whole / "checkpoint-000002", merged)[0] == 0
    assert cli("validate", data_dir, "--model", whole / "model", main=phi3v_data_main)[0] == 0
    predictions = []
    common = ("--data_dir", data_dir, "--eval_split", "val", "--device", "cpu", "--num_workers", "0")
    for model in (whole / "model", merged):
        out = tmp_path / f"predictions of {model.name}"
        given = ("--model_name_or_path", model, "--max_new_tokens", "4", "--output_dir", out)
        assert cli("predict", *given, *common)[0] == 0
        predictions.append([(line["id"], line["prediction"]) for line in read_lines(out / "predictions.jsonl")])
    assert len(predictions[0]) == 3
    assert predictions[0] == predictions[1]


TEXT = "Which cafe\u0301?\n\nyes  it's 12345\n\n\nThe <end>"


def ids_of(processor: Any) -> list[int]:
    """Ids of `TEXT`."""
    ids: list[int] = processor.tokenizer.encode(TEXT, add_special_tokens=False)
    return ids


def test_a_tokenizer_is_the_same_with_and_without_a_configuration(tmp_path: Path) -> None:
    """An adapter's directory has no config.json, by which transformers chooses a class that normalizes text."""
    made = get_family("qwen3_5")
    made.tiny_processor().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "normalizer": None}))
    without = ids_of(made.load_processor(tmp_path))
    made.tiny_model(0).config.save_pretrained(tmp_path)
    assert ids_of(made.load_processor(tmp_path)) == without
    assert ids_of(made.tiny_processor()) == without


@pytest.fixture(scope="module")
def together(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes, which stay together for all of them, and the same runs by one."""
    work = tmp_path_factory.mktemp("together")
    two = []
    for family, (name, changes) in PAIRS:
        folder = work / f"{family} {name}"
        options = {"batch_size_per_gpu": 1, "max_steps": 3, **changes}
        train(resolve(settings(data_dir, folder / "one", family) | options), quiet=True)
        parallel = {"parallel": name.partition(" ")[0]}
        two.append(settings(data_dir, folder / "two", family) | options | parallel)
    train_together(2, two, work)
    return work


METHODS = {"fsdp full": FULL, "fsdp lora": LORA, "ddp lora": LORA}
PAIRS = [(family, pair) for family in ("qwen3_vl", "idefics3") for pair in METHODS.items()]
PAIRS.append(("gemma3", ("fsdp full", FULL)))
"""The head of gemma3 is its embedding."""


@pytest.mark.slow
@pytest.mark.parametrize(("family", "pair"), PAIRS, ids=[f"{family} {name}" for family, (name, _) in PAIRS])
def test_two_processes_train_as_one_does(
    together: Path, family: str, pair: tuple[str, dict[str, Any]], cli: Cli
) -> None:
    """Each sample is a micro-batch of its own: where one of them has no image, the other process's has."""
    folder = together / f"{family} {pair[0]}"
    lines = [read_lines(folder / number / "metrics.jsonl") for number in ("one", "two")]
    assert len(lines[0]) == 3
    for first, second in zip(*lines, strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
        assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-5)
    if pair == ("fsdp full", FULL):
        assert cli("merge", folder / "two" / "checkpoint-000003", folder / "merged")[0] == 0
        expected, found = tensors(folder / "one" / "model"), tensors(folder / "merged")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_run_that_is_killed_resumes_with_the_same_bits(data_dir: Path, tmp_path: Path) -> None:
    """SIGKILL after the first checkpoint; resumed by the command, in a process of its own."""
    options = settings(data_dir, tmp_path / "killed", "qwen3_vl", save_steps=1)

    def kill(line: Any) -> bool:
        if line["step"] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    assert wait(fork(lambda: train(resolve(options), quiet=True, hooks=[kill]))) == -signal.SIGKILL
    resumed = command("run", *arguments(options))
    assert resumed.returncode == 0, resumed.stderr
    assert "resumes from checkpoint-000001" in resumed.stderr
    train(resolve(settings(data_dir, tmp_path / "whole", "qwen3_vl", save_steps=1)), quiet=True)
    assert_equal(tmp_path / "whole", tmp_path / "killed")
    assert json.loads((tmp_path / "killed" / "complete.json").read_text())["step"] == 2


@pytest.mark.slow
def test_zero3_trains_as_one_process_does(data_dir: Path, tmp_path: Path) -> None:
    """While one process has images and the other one has none, and later the other way round."""
    pytest.importorskip("deepspeed")
    options = settings(data_dir, tmp_path / "one", "internvl", batch_size_per_gpu=1) | {"max_steps": 4}
    train(resolve(options), quiet=True)
    train_together(2, [{**options, "output_dir": str(tmp_path / "two"), "parallel": "zero3"}], tmp_path / "work")
    one, two = (read_lines(tmp_path / number / "metrics.jsonl") for number in ("one", "two"))
    assert len(one) == len(two) == 4
    for first, second in zip(one, two, strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-4)
    assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-3)
