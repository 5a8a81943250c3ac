"""Directories small enough to be trained on many times, and the command line that does it."""

import json
import subprocess
from pathlib import Path
from typing import Any

from processes import MODULE, finish, start


def settings_for(data_dir: Path, output_dir: Path, **changes: Any) -> dict[str, Any]:
    """Options of a run that takes a second or two."""
    return {
        "data_dir": [str(data_dir)],
        "output_dir": str(output_dir),
        "model_name_or_path": "tiny",
        "device": "cpu",
        "num_crops": 1,
        "batch_size": 4,
        "batch_size_per_gpu": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "num_workers": 0,
        "gradient_checkpointing": False,
        "eval_before": False,
        "eval_after": False,
        "report_to": ["none"],
        **changes,
    }


def arguments(settings: dict[str, Any]) -> list[str]:
    """The settings as they are typed."""
    result = []
    for name, value in settings.items():
        for item in value if isinstance(value, list) else [value]:
            if item is True:
                result.append(f"--{name}")
            elif item is False:
                result += [f"--no_{name}"] if name in ("gradient_checkpointing", "eval_before", "eval_after") else []
            else:
                result += [f"--{name}", str(item)]
    return result


def command(*args: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run `phi3v-train ARGS` in a process of its own."""
    ((code, output, errors),) = finish([start(*MODULE, *args, **variables)])
    return subprocess.CompletedProcess(args, code, output, errors)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


TIMES = ("tokens_per_second", "images_per_second", "seconds")


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics without what differs between two runs of the same work."""
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]
