"""Kill a training run at chosen moments and start it again: run by test_resume.py.

    python kill_run.py SETTINGS.json WORK_DIR random COUNT SEED
    python kill_run.py SETTINGS.json WORK_DIR operations FIRST STEP

Every attempt is a process of its own, forked from this one after the heavy imports, and ended by SIGKILL: after a
random time, or right before its n-th file operation (FIRST, FIRST + STEP, ...). After the kill
the same run is started again until it ends. It must end with the losses and weights, bit by bit, of a run that never
stopped.
Prints the number of kills.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import peft  # noqa: F401 - loaded once, before the forks
import torch
from kills import fork, wait
from run_dirs import read_lines, without_times
from safetensors.torch import load_file

import phi3v_train.evaluation.during
import phi3v_train.models.phi3v.modeling_phi3_v
import phi3v_train.training.session  # noqa: F401 - as above
from phi3v_train.run import run
from phi3v_train.settings import resolve
from phi3v_train.training.checkpoints import list_checkpoints


def start(settings: dict[str, Any], output_dir: Path, kill_at: int | None = None) -> int:
    """Fork a process that trains; its id."""
    return fork(lambda: run(resolve({**settings, "output_dir": str(output_dir)}), quiet=True), kill_at)


def results(output_dir: Path) -> dict[str, Any]:
    """Everything that must be the same, tensors as bytes."""
    newest = list_checkpoints(output_dir)[-1].path
    optimizer = torch.load(newest / "optimizer.pt", weights_only=True)
    tensors = {}
    for folder in (newest, output_dir / "model"):
        for path in folder.glob("*.safetensors"):
            tensors |= {f"{folder.name}/{path.name}/{name}": value for name, value in load_file(path).items()}
    for name, moments in optimizer["moments"].items():
        tensors |= {f"moments/{name}/{key}": value for key, value in moments.items()}
    done = json.loads((output_dir / "complete.json").read_text())
    return {
        "samples": done["samples"],
        "ending": {name: done.get(name) for name in ("step", "best", "model_step", "stopped_early", "reason")},
        "metrics": without_times(read_lines(output_dir / "metrics.jsonl")),
        "checkpoints": [each.path.name for each in list_checkpoints(output_dir)],
        "tensors": {name: (str(value.dtype), value.numpy().tobytes()) for name, value in tensors.items()},
    }


def compare(expected: dict[str, Any], found: dict[str, Any], where: str) -> None:
    """Say what differs."""
    assert found["metrics"] == expected["metrics"], f"{where}: {found['metrics']} is not {expected['metrics']}"
    assert found["samples"] == expected["samples"], f"{where}: {found['samples']} samples, not {expected['samples']}"
    assert found["ending"] == expected["ending"], f"{where}: {found['ending']} is not {expected['ending']}"
    assert found["checkpoints"] == expected["checkpoints"], f"{where}: {found['checkpoints']}"
    assert found["tensors"].keys() == expected["tensors"].keys(), where
    different = [name for name, value in expected["tensors"].items() if found["tensors"][name] != value]
    assert not different, f"{where}: {different[:3]} of {len(different)} differ"


def finish(settings: dict[str, Any], output_dir: Path, expected: dict[str, Any], where: str) -> None:
    """Start the run again without a kill, and compare."""
    leftovers_are_never_picked(output_dir)
    assert wait(start(settings, output_dir)) == 0, f"{where}: cannot be resumed"
    compare(expected, results(output_dir), where)
    assert not [path for path in output_dir.iterdir() if path.name.startswith((".checkpoint", ".trash"))], where


def leftovers_are_never_picked(output_dir: Path) -> None:
    """Every checkpoint that counts as complete can be read."""
    for checkpoint in list_checkpoints(output_dir):
        torch.load(checkpoint.path / "optimizer.pt", weights_only=True)
        assert checkpoint.state()["step"] == checkpoint.step


def main(settings: dict[str, Any], work: Path, mode: str, first: int, second: int) -> int:
    begin = time.monotonic()
    assert wait(start(settings, work / "whole")) == 0
    duration = time.monotonic() - begin
    expected = results(work / "whole")
    out, kills = work / "out", 0
    if mode == "random":
        generator = random.Random(second)
        while kills < first:
            shutil.rmtree(out, ignore_errors=True)
            for _ in range(min(3, first - kills)):
                pid = start(settings, out)
                time.sleep(generator.uniform(0.05, duration))
                os.kill(pid, signal.SIGKILL)
                kills += wait(pid) == -signal.SIGKILL
            finish(settings, out, expected, f"after {kills} kills")
        return kills
    point = first
    while True:
        shutil.rmtree(out, ignore_errors=True)
        status = wait(start(settings, out, point))
        if status == 0:
            return kills
        assert status == -signal.SIGKILL, status
        kills += 1
        finish(settings, out, expected, f"file operation {point}")
        point += second


if __name__ == "__main__":
    torch.set_num_threads(1)
    values = json.loads(Path(sys.argv[1]).read_text())
    print(main(values, Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
