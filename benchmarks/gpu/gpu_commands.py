"""Checks that run `phi3v-train` in a process of its own: kill and resume, no waiting, QLoRA, answers, a real set."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gpu_outcome import Options, SkippedCheck, require

from phi3v_train.device import SYNC_DEBUG

RATE = 1e-3
SCORING_SECONDS = 60
"""Kept for the answers to the real set, which come last."""

SETTINGS = (
    f"--model_name_or_path tiny --num_crops 1 --batch_size 4 --batch_size_per_gpu 2 --warmup_steps 1 "
    f"--learning_rate {RATE} --report_to none --num_workers 0 --no_eval_before --no_eval_after"
)


def colours(options: Options) -> Path:
    """A small set of images with one colour, made once."""
    from colour_sets import colour_directory

    place = options.work / "colours"
    return place if place.is_dir() else colour_directory(place, rows=8)


def command(options: Options, name: str, data: Path, out: Path, *more: str) -> list[str]:
    """The command line of `phi3v-train NAME`."""
    start = [sys.executable, "-m", "phi3v_train", name, "--data_dir", str(data), "--output_dir", str(out)]
    return [*start, "--device", options.device, *more]


def finish(line: list[str], **variables: str) -> None:
    """Run a command to its end, which is good."""
    done = subprocess.run(line, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    require(done.returncode == 0, f"exit code {done.returncode}: {done.stderr.strip()[-300:]}")


def run(options: Options, name: str, *more: str, steps: int = 4) -> list[str]:
    """The command line of a run of the tiny model on the small set, into the folder `name`."""
    settings = [*SETTINGS.split(), "--max_steps", str(steps), *more]
    return command(options, "run", colours(options), options.work / name, *settings)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a run's model."""
    from safetensors.torch import load_file

    return load_file(folder / "model" / "model.safetensors")


def resume(options: Options) -> dict[str, Any]:
    """A run that is killed after its first checkpoint and resumed has the weights of one that was not.

    A GPU adds in any order, so weights may differ by a twentieth of the learning rate on average.
    """
    saving = ("--save_steps", "2")
    finish(run(options, "whole", *saving, steps=8))
    line, out = run(options, "killed", *saving, steps=8), options.work / "killed"
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("checkpoint-*")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    require(process.returncode == -signal.SIGKILL, f"the run ended by itself with {process.returncode}")
    found = sorted(path.name for path in out.glob("checkpoint-*"))
    finish(line)
    whole, again = weights(options.work / "whole"), weights(out)
    differences = torch.cat([(whole[name].float() - again[name].float()).abs().flatten() for name in whole])
    mean = differences.mean().item()
    figures = {"killed at": found, "largest": differences.max().item(), "mean": mean}
    require(mean < RATE / 20, "the weights differ", figures)
    return figures


def syncs(options: Options) -> dict[str, Any]:
    """A training step with packed rows and adapters never waits for the GPU: torch raises where it would."""
    finish(run(options, "syncs", "--use_lora", "--pack"), **{SYNC_DEBUG: "error"})
    return {"watched": options.on_gpu}


def qlora(options: Options) -> dict[str, Any]:
    """A run with a 4-bit base, and with paged 8-bit moments on a GPU."""
    if find_spec("bitsandbytes") is None:
        raise SkippedCheck("bitsandbytes is not installed")
    optim = "paged_adamw_8bit" if options.on_gpu else "adamw"
    finish(run(options, "qlora", "--use_qlora", "--optim", optim))
    require((options.work / "qlora" / "model" / "adapter_config.json").is_file(), "no adapter was saved")
    return {"optim": optim}


def answers(options: Options) -> dict[str, Any]:
    """Answers of the tiny model to the small set, and their metrics."""
    settings = "--model_name_or_path tiny --max_new_tokens 4 --num_workers 0 --num_crops 1"
    return scored(options, colours(options), "answers", settings.split())


def scored(options: Options, data: Path, name: str, settings: list[str]) -> dict[str, Any]:
    """Metrics of `phi3v-train eval` and the number of answers."""
    out = options.work / name
    finish(command(options, "eval", data, out, *settings))
    result: dict[str, Any] = json.loads((out / "eval.json").read_text(encoding="utf-8"))
    return result


def trained(metrics: Path) -> bool:
    """Whether a run has written figures of a step; it makes the file before the first one."""
    return metrics.is_file() and metrics.stat().st_size > 0


def data(options: Options) -> dict[str, Any]:
    """A small model from scratch on a real set for as long as `--data-seconds` says, then its accuracy.

    Training ends earlier where the other checks left less time. The split `test` is scored, or `val` where there is
    none. There is no bound: benchmarks/real/easy_vqa.py has one.
    """
    if options.data is None:
        raise SkippedCheck("no real set is here: give the one of benchmarks/real/easy_vqa.py with --data")
    from small_model import Sizes, save_small

    start, out = options.work / "small", options.work / "data"
    save_small(start, Sizes(width=64, heads=2, tower_layers=0, initializer_range=0.08), seed=0)
    workers, limit = ("8", 2000) if options.on_gpu else ("0", 3)
    settings = (
        "--num_crops 1 --max_steps 1000000 --batch_size 32 --batch_size_per_gpu 32 --learning_rate 3e-3 "
        "--lr_scheduler constant --warmup_steps 100 --report_to none --no_eval_before --no_eval_after "
        f"--no_gradient_checkpointing --num_workers {workers} --model_name_or_path {start}"
    )
    log = options.work / "data.log"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command(options, "run", options.data, out, *settings.split()), stdout=file, stderr=subprocess.STDOUT
        )
    metrics = out / "metrics.jsonl"
    try:
        begun = time.monotonic()
        until = min(begun + options.data_seconds, options.deadline - SCORING_SECONDS)
        while process.poll() is None and (time.monotonic() < until or not trained(metrics)):
            time.sleep(0.1)
    finally:
        seconds = round(time.monotonic() - begun)
        process.send_signal(signal.SIGTERM)  # the run saves a checkpoint and ends
        process.wait()
    found = sorted(out.glob("checkpoint-*"))
    require(bool(found), f"no checkpoint, exit code {process.returncode}: {log.read_text(encoding='utf-8')[-300:]}")
    split = "test" if list(options.data.glob("*_test.jsonl")) else "val"
    more = (
        f"--model_name_or_path {found[-1]} --eval_split {split} --eval_limit {limit} --max_new_tokens 4 --num_crops 1"
    )
    result = scored(options, options.data, "scored", [*more.split(), "--num_workers", workers])
    return {"checkpoint": found[-1].name, "seconds of training": seconds, "split": split, **result}
