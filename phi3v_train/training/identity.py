"""The identity of a run: the settings that decide the weights, and the bytes of the data.

A run is resumed only if these agree. Where data are, how they are read, what is logged, evaluated and kept, how the
work is divided and how long the run lasts may change; none of them changes what a step computes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phi3v_data.errors import UserError
from phi3v_train.config import EvalConfig, OutputConfig, ParallelConfig, RunConfig
from phi3v_train.data.identity import describe_data

MAY_CHANGE = frozenset(
    {
        *EvalConfig.model_fields,
        *OutputConfig.model_fields,
        *ParallelConfig.model_fields,
        "batch_size_per_gpu",
        "data_cache_gb",
        "data_dir",
        "device",
        "gradient_checkpointing",
        "max_steps",
        "num_train_epochs",
        "num_workers",
    }
)
"""Settings that another start of the same run may give differently."""


_MODEL = "model_name_or_path"


def settings_identity(config: RunConfig, dtype: str) -> dict[str, Any]:
    """The settings that must not change, with the compute dtype that was chosen."""
    fixed = {name: value for name, value in config.flat().items() if name not in MAY_CHANGE}
    return {**fixed, "dtype": dtype}


def find_differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Differences between how a run was begun and how it is started now: each with the old and the new value, in words.

    A setting that did not exist in the version that began the run had its default then. A model in files is compared by
    its content, so that it may have moved; runs of versions that did not keep it, by name.
    """
    differences = []
    new = current["settings"]
    defaults = RunConfig.model_validate({}).flat()
    old = {**{name: defaults[name] for name in new if name in defaults}, **saved["settings"]}
    was, now = saved.get("model"), current.get("model")
    if was and now and was != now:
        differences.append(f"the model at {new.get(_MODEL)} has other content than when the run was begun")
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name) and not (name == _MODEL and was and now):
            differences.append(f"--{name} was {old.get(name)}, is {new.get(name)}")
    if saved["data"] != current["data"]:
        were, are = describe_data(saved["data"]), describe_data(current["data"])
        if were != are:
            differences.append(f"the data were {were}, are {are}")
        elif not differences:  # an image budget that no option has set
            budgets = ([each.get("num_crops") for each in data["data"]] for data in (saved, current))
            differences.append("the image budget was {}, is {}".format(*budgets))
    return differences


def refuse_other_run(where: Path, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Compare what a run was begun with and what it is now started with; see `find_differences`.

    Raises:
        UserError: every difference, old and new value.
    """
    if differences := find_differences(saved, current):
        raise UserError(
            f"{where} holds a run with other settings or data: {'; '.join(differences)}; give the same ones to resume, "
            "--overwrite to start over, or another --output_dir"
        )
