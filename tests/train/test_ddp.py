"""Two real processes over gloo: the same numbers as one, and no hang when one of them fails."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from colour_sets import colour_directory
from processes import train_together
from run_dirs import arguments, command, read_lines, settings_for
from safetensors.torch import load_file
from shard_files import write_shards

from phi3v_train.run import run as train
from phi3v_train.settings import resolve


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine rows in fours: the last step is a short one, and some micro-batches have no image."""
    return colour_directory(tmp_path_factory.mktemp("colours"), rows=9)


def run(data_dir: Path, output_dir: Path, *more: str, **changes: Any) -> "subprocess.CompletedProcess[str]":
    settings = settings_for(data_dir, output_dir, learning_rate=1e-4, max_steps=4, **changes)
    return command("run", *arguments(settings), "--skip_validation", *more)


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    name = "adapter_model" if (output_dir / "model" / "adapter_config.json").exists() else "model"
    return load_file(output_dir / "model" / f"{name}.safetensors")


def assert_same(one: Path, other: Path, *, rounded_moments: bool = False) -> None:
    """The same run: losses, gradient norms, weights.

    `rounded_moments`: gradients are summed in another order by two processes, and where a moment is between two of
    the 8-bit codes, the last bit decides which one it gets. Up to one weight in 10,000 (two of a small tensor) may then
    differ, each by less than an update of the learning rate, 1e-4.
    """
    for first, second in zip(read_lines(one / "metrics.jsonl"), read_lines(other / "metrics.jsonl"), strict=True):
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-6)
        assert first["supervised_tokens"] == second["supervised_tokens"]
        assert first["lr"] == second["lr"]
        assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-4)  # AdamW hides a constant factor
    expected, found = weights(one), weights(other)
    assert expected.keys() == found.keys()
    for name in expected:
        if rounded_moments:
            differences = (found[name] - expected[name]).abs()
            assert (differences > 1e-6).sum() <= max(2, 1e-4 * differences.numel()), name
            assert differences.max() < 1e-4, name
        else:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)


LORA = {"use_lora": True, "lora_rank": 4, "lora_dropout": 0.5, "gradient_checkpointing": True}

CASES: dict[str, dict[str, Any]] = {
    "2 x 2": {"batch_size_per_gpu": 2},
    "2 x 1 x 2": {"batch_size_per_gpu": 1},
    "packed": {"batch_size_per_gpu": 2, "pack": True},
    "frozen vision": {"batch_size_per_gpu": 1, "freeze_vision_model": True},
    "8-bit moments": {"batch_size_per_gpu": 2, "optim": "adamw_8bit"},
    "qlora": {"batch_size_per_gpu": 1, "use_qlora": True, "lora_rank": 4},
}


def test_two_processes_train_as_one_does(data_dir: Path, tmp_path: Path) -> None:
    """With dropout, and nine samples in micro-batches of two, which do not come out even on two processes."""
    changes = {"batch_size": 12, "batch_size_per_gpu": 2, **LORA}
    train(resolve(settings_for(data_dir, tmp_path / "one", learning_rate=1e-4, max_steps=4, **changes)), quiet=True)
    double = run(data_dir, tmp_path / "two", "--num_processes", "2", **changes)
    assert double.returncode == 0, double.stderr
    assert double.stderr.count("compute  cpu") == 1
    assert "ddp (0.0 GB for a whole copy in each process fit); 2 processes" in double.stderr
    assert double.stdout.count("complete after 4 steps") == 1
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.fixture(scope="module")
def cases(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case by one process and by two, which stay together for all of them."""
    work = tmp_path_factory.mktemp("cases")
    runs = []
    for name, changes in CASES.items():
        settings = settings_for(data_dir, work / name / "one", learning_rate=1e-4, max_steps=4, **changes)
        train(resolve(settings), quiet=True)
        runs.append({**settings, "output_dir": str(work / name / "two"), "parallel": "ddp"})
    train_together(2, runs, work)
    return work


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_loss_and_weights_are_those_of_one_process(cases: Path, name: str) -> None:
    assert_same(cases / name / "one", cases / name / "two", rounded_moments=name == "8-bit moments")


@pytest.mark.slow
def test_torchrun_is_the_same_run(data_dir: Path, tmp_path: Path) -> None:
    """Of two processes that read WebDataset shards, too."""
    shards = write_shards(data_dir, tmp_path / "shards", "tar")
    settings = settings_for(shards, tmp_path / "two", learning_rate=1e-4, max_steps=4)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    result = subprocess.run(
        [*launcher, "-m", "phi3v_train", "run", *arguments(settings), "--skip_validation"],
        capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("compute  cpu") == 1
    assert run(data_dir, tmp_path / "one").returncode == 0
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_resume_on_another_number_of_processes(data_dir: Path, tmp_path: Path) -> None:
    assert run(data_dir, tmp_path / "one", batch_size_per_gpu=1).returncode == 0
    settings = {"batch_size_per_gpu": 1, "save_steps": 2}
    first = command(
        "run", *arguments(settings_for(data_dir, tmp_path / "two", learning_rate=1e-4, **settings)),
        "--max_steps", "4", "--num_processes", "2", "--skip_validation",
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    for name in ("complete.json",):
        (tmp_path / "two" / name).unlink()
    newest = tmp_path / "two" / "checkpoint-000004"
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    second = run(data_dir, tmp_path / "two", **settings)
    assert second.returncode == 0, second.stderr
    assert "resumes from checkpoint-000002" in second.stderr
    assert_same(tmp_path / "one", tmp_path / "two")


def broken_directory(directory: Path, broken: bytes | None) -> Path:
    """The last row's image has a good header and nothing behind it, or is not there at all."""
    colour_directory(directory, rows=80)
    path = directory / "images" / "train4.png"
    if broken is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: len(broken) or 60])
    return directory


def children(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The ranks: children that run our module."""
    found = []
    for child in psutil.Process(process.pid).children():
        if "phi3v_train" in " ".join(child.cmdline()):
            found.append(child)
    return sorted(found, key=lambda child: int(child.environ()["RANK"]))


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_and_says_how_to_resume(data_dir: Path, tmp_path: Path) -> None:
    settings = settings_for(data_dir, tmp_path / "out", max_steps=100000, save_steps=2, batch_size_per_gpu=2)
    process = subprocess.Popen(
        [sys.executable, "-m", "phi3v_train", "run", *arguments(settings), "--num_processes", "2", "--skip_validation"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    while process.poll() is None and not list((tmp_path / "out").glob("checkpoint-*/COMPLETE.json")):
        time.sleep(0.05)
    ranks = children(process)
    assert len(ranks) == 2
    ranks[1].send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.count("rank 1 was killed by SIGKILL") == 1
    assert "The same command resumes from" in errors
    assert "Traceback" not in errors
    assert not any(rank.is_running() for rank in ranks)


@pytest.mark.parametrize("kind", ["decoded by one rank", pytest.param("measured by all", marks=pytest.mark.slow)])
def test_an_error_is_reported_once_with_its_rank(tmp_path: Path, kind: str) -> None:
    """The plan decodes no image, and measures 512 of the 600 rows, not the fifth: only training finds the bad image."""
    rows = 600 if kind == "measured by all" else 80
    data_dir = colour_directory(tmp_path / "data", rows=rows)
    image = data_dir / "images" / "train4.png"
    if kind == "measured by all":
        image.unlink()
    else:
        image.write_bytes(image.read_bytes()[:60])
    changes = {"batch_size": rows, "batch_size_per_gpu": 10}
    result = run(data_dir, tmp_path / "out", "--num_processes", "2", **changes)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "c10d" not in result.stderr
    assert result.stderr.count("train-0000000004") == 1, result.stderr
    assert "error: rank " in result.stderr
    assert "The same command starts over" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_the_processes_end_with_their_launcher(data_dir: Path, tmp_path: Path, name: str) -> None:
    settings = settings_for(data_dir, tmp_path / "out", max_steps=100000, save_steps=2, batch_size_per_gpu=2)
    process = subprocess.Popen(
        [sys.executable, "-m", "phi3v_train", "run", *arguments(settings), "--num_processes", "2", "--skip_validation"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
        start_new_session=True,
    )  # fmt: skip
    while process.poll() is None and not list((tmp_path / "out").glob("checkpoint-*/COMPLETE.json")):
        time.sleep(0.05)
    ranks = children(process)
    if name == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        process.kill()
    _, errors = process.communicate(timeout=60)
    _, alive = psutil.wait_procs(ranks, timeout=30)
    assert not alive
    if name == "SIGINT":
        assert process.returncode == 130
        assert errors.count("The same command resumes") == 1
        assert "Traceback" not in errors
