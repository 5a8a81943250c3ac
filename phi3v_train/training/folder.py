"""A run's folder explains itself: settings with their origins, versions, data receipt; names of its files."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from phi3v_data.files import write_json, write_text
from phi3v_train.settings import Settings
from phi3v_train.training.checkpoints import checkpoint_folders, remove, sweep

CONFIG, ENVIRONMENT, DATA, METRICS, PLOT = "config.yaml", "environment.json", "data.json", "metrics.jsonl", "loss.png"
CARD, DONE, MODEL, TENSORBOARD, PREDICTIONS = "README.md", "complete.json", "model", "tensorboard", "predictions"
DEEPSPEED = "deepspeed.json"
EVAL_BEFORE, EVAL_AFTER, BEST = "eval_before.json", "eval_after.json", "best.json"

PACKAGES = (
    "phi3v",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "deepspeed",
    "safetensors",
    "numpy",
    "Pillow",
    "simplejpeg",
)


def clear(output_dir: Path) -> None:
    """Remove what a run wrote, and nothing else."""
    for name in (DONE, METRICS, CONFIG, DEEPSPEED, ENVIRONMENT, DATA, PLOT, CARD, EVAL_BEFORE, EVAL_AFTER, BEST):
        (output_dir / name).unlink(missing_ok=True)
    for path in output_dir.glob("eval_step-*.json"):
        path.unlink()
    for checkpoint in checkpoint_folders(output_dir):
        remove(checkpoint.path)
    for name in (MODEL, TENSORBOARD, PREDICTIONS):
        if (output_dir / name).is_dir():
            remove(output_dir / name)
    sweep(output_dir)


def config_text(settings: Settings) -> str:
    """`config.yaml`: every setting in its group, with its origin beside it; `--config` reads it again."""
    lines = ["# Every setting of this run, and where it came from; phi3v-train run --config takes this file."]
    for group, values in settings.config.model_dump(mode="json").items():
        lines.append(f"{group}:")
        for name, value in values.items():
            text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
            text = text.rstrip().removesuffix("...").rstrip()
            lines.append(f"  {name}: {text}  # {settings.origin(name)}")
    return "\n".join(lines) + "\n"


def environment(device: str) -> dict[str, Any]:
    """Versions and the type of machine; no names, no paths."""
    import torch

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    result: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": versions,
        "cpu_threads": torch.get_num_threads(),
        "device": device,
    }
    if device == "cuda":
        result["gpu"] = torch.cuda.get_device_name()
        result["cuda"] = torch.version.cuda
    return result


def write_start(
    output_dir: Path, settings: Settings, data: Any, device: str, deepspeed: Mapping[str, Any] | None = None
) -> None:
    """Write settings, environment and data of a run that begins."""
    if deepspeed is not None:
        write_json(output_dir / DEEPSPEED, deepspeed)
    else:
        (output_dir / DEEPSPEED).unlink(missing_ok=True)
    write_text(output_dir / CONFIG, config_text(settings))
    write_json(output_dir / ENVIRONMENT, environment(device))
    write_json(output_dir / DATA, data)
