"""A run's folder explains itself: settings with their origins, versions, data receipt; names of its files."""

import os
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from phi3v_data.errors import UserError
from phi3v_data.files import open_regular, read_stored, refuse_folders, unreadable, write_json, write_text
from phi3v_data.messages import shown
from phi3v_data.remote.address import is_remote
from phi3v_train.settings import Settings
from phi3v_train.training.checkpoints import checkpoint_folders, readable_state, sweep
from phi3v_train.training.metrics_log import is_log
from phi3v_train.training.own_files import MODEL as MODEL
from phi3v_train.training.own_files import PREDICTIONS as PREDICTIONS
from phi3v_train.training.own_files import TENSORBOARD, is_removed, remove

CONFIG, ENVIRONMENT, DATA, METRICS, PLOT = "config.yaml", "environment.json", "data.json", "metrics.jsonl", "loss.png"
CARD, DONE = "README.md", "complete.json"
DEEPSPEED = "deepspeed.json"
EVAL_BEFORE, EVAL_AFTER, BEST = "eval_before.json", "eval_after.json", "best.json"

FILES = (CONFIG, DONE, METRICS, DEEPSPEED, ENVIRONMENT, DATA, PLOT, CARD, EVAL_BEFORE, EVAL_AFTER, BEST)
"""Files of a run in its folder, apart from those of each evaluation; the settings first, then its end."""

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


CONFIG_HEAD = "# Every setting of this run, and where it came from; phi3v-train run --config takes this file."

SYSTEM_FILES = frozenset({"lost+found", "Thumbs.db", "desktop.ini", "System Volume Information", "$RECYCLE.BIN"})
"""Names of files and folders that systems make of their own accord, besides hidden ones."""

LOG_SUFFIXES = (".log", ".out", ".err", ".txt")
"""Of files that a shell or a scheduler writes beside a run from its first moment: `run ... | tee OUT/train.log`."""

_EVAL_STEP = re.compile(r"eval_step-\d+\.json")


def require_own(output_dir: Path, data_dirs: Sequence[Path]) -> None:
    """Refuse an output folder in which a run would replace or delete files of others.

    Raises:
        UserError: it has files and no run, is not a folder, or overlaps with the data.
    """
    real = Path(os.path.realpath(output_dir))
    for data_dir in data_dirs:
        data = Path(os.path.realpath(data_dir))
        if not is_remote(data_dir) and (data == real or data in real.parents or real in data.parents):
            how = "is" if data == real else "is inside" if data in real.parents else "contains"
            raise UserError(f"--output_dir {output_dir} {how} --data_dir {data_dir}; choose a folder of its own")
    try:
        names = sorted(os.listdir(output_dir))
    except FileNotFoundError:
        if output_dir.is_symlink():
            raise UserError(f"{output_dir}: is a link to a folder that does not exist; make that folder") from None
        return
    except NotADirectoryError:
        raise UserError(f"{output_dir}: is a file, or inside one; give a folder as --output_dir") from None
    except OSError as error:
        raise unreadable(output_dir, error) from None
    written = (*FILES, *filter(_EVAL_STEP.fullmatch, names))
    refuse_folders(output_dir, (name for name in written if name != PLOT))  # which a run can do without
    model = output_dir / MODEL
    if model.is_symlink() or (model.exists() and not model.is_dir()):
        kind = "link" if model.is_symlink() else "file"
        raise UserError(f"{model}: is a {kind}, which no run wrote; move it away, or choose another --output_dir")
    others = [
        name for name in names if not (is_hidden(name) or name in SYSTEM_FILES or name.lower().endswith(LOG_SUFFIXES))
    ]
    if others and not (holds_run(output_dir) or holds_logs(output_dir, others)):
        raise UserError(
            f"{output_dir} contains files that no run wrote, such as {shown(others[0])}; choose an empty folder"
        )


def is_hidden(name: str) -> bool:
    """Whether a hidden file is one that a run leaves alone."""
    return name.startswith(".") and name != f".{MODEL}" and not is_removed(name)


def holds_run(output_dir: Path) -> bool:
    """Whether a folder has the settings, the end or a checkpoint of a run."""
    try:
        with open_regular(output_dir / CONFIG) as file:
            if file.read(len(CONFIG_HEAD)) == CONFIG_HEAD.encode():
                return True
    except OSError:
        pass
    if read_finished(output_dir) is not None:
        return True
    states = (readable_state(checkpoint.path) for checkpoint in checkpoint_folders(output_dir))
    return any(state is not None and isinstance(state.get("identity"), dict) for state in states)


def holds_logs(output_dir: Path, names: Sequence[str]) -> bool:
    """Whether nothing but logs of a run is there."""
    return set(names) <= {METRICS, TENSORBOARD} and (METRICS not in names or is_log(output_dir / METRICS))


def read_finished(output_dir: Path) -> dict[str, Any] | None:
    """Contents of a finished run's `complete.json`; None if absent, or not written by a run.

    Raises:
        UserError: it is not a file, or cannot be read.
    """
    done = read_stored(output_dir / DONE)
    valid = done is not None and type(done.get("step")) is int and isinstance(done.get("identity"), dict)
    return done if valid else None


def clear(output_dir: Path) -> None:
    """Remove what a run wrote, and nothing else.

    Its settings stay until the next run replaces them: by them the folder is known as one of a run.
    """
    for name in FILES:
        if name != CONFIG:
            with suppress(IsADirectoryError):
                (output_dir / name).unlink(missing_ok=True)
    for name in os.listdir(output_dir):
        if _EVAL_STEP.fullmatch(name):
            (output_dir / name).unlink()
    for checkpoint in checkpoint_folders(output_dir):
        remove(checkpoint.path)
    for name in (MODEL, TENSORBOARD, PREDICTIONS):
        remove(output_dir / name)
    sweep(output_dir)


def config_text(settings: Settings) -> str:
    """`config.yaml`: every setting in its group, with its origin beside it; `--config` reads it again."""
    lines = [CONFIG_HEAD]
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
    write_text(output_dir / CONFIG, config_text(settings))  # first: it marks the folder as that of a run
    if deepspeed is not None:
        write_json(output_dir / DEEPSPEED, deepspeed)
    else:
        (output_dir / DEEPSPEED).unlink(missing_ok=True)
    write_json(output_dir / ENVIRONMENT, environment(device))
    write_json(output_dir / DATA, data)
