"""What makes two runs the same one: the settings that decide the weights, and the bytes of the data.

A run is taken up again only where these agree. Where data lie, how they are read, what is logged, evaluated and kept,
how the work is spread and how long the run goes on may change; none of them changes what a step computes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from phi3v_data.errors import UserError
from phi3v_train.config import EvalConfig, OutputConfig, ParallelConfig, RunConfig
from phi3v_train.data.sources import Source

MAY_CHANGE = frozenset(
    {
        *EvalConfig.model_fields,
        *OutputConfig.model_fields,
        *ParallelConfig.model_fields,
        "batch_size_per_gpu",
        "data_dir",
        "device",
        "gradient_checkpointing",
        "max_steps",
        "num_train_epochs",
        "num_workers",
    }
)
"""Settings that another start of the same run may give differently."""

_PIECE = 1 << 22


def settings_identity(config: RunConfig, dtype: str) -> dict[str, Any]:
    """The settings that must not change, with the compute dtype that was chosen."""
    fixed = {name: value for name, value in config.flat().items() if name not in MAY_CHANGE}
    return {**fixed, "dtype": dtype}


def data_identity(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Split, rows, tile budget and content of each source; the content of all its files is read once."""
    return [
        {
            "split": source.split.name,
            "rows": len(source),
            "num_crops": source.num_crops,
            "xxh3_128": digest([source.directory / name for name in source.split.files]),
        }
        for source in sources
    ]


def digest(paths: Sequence[Path]) -> str:
    """xxh3_128 over the bytes of files, one after another."""
    state = xxhash.xxh3_128()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                state.update(piece)
    return state.hexdigest()


def find_differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """How a run was begun and how it is started now: each difference with the old and the new value, in words.

    A setting that the version of the beginning did not have yet had its default then.
    """
    differences = []
    new = current["settings"]
    defaults = RunConfig.model_validate({}).flat()
    old = {**{name: defaults[name] for name in new if name in defaults}, **saved["settings"]}
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            differences.append(f"--{name} was {old.get(name)}, is {new.get(name)}")
    if saved["data"] != current["data"]:
        differences.append(f"the data were {describe(saved['data'])}, are {describe(current['data'])}")
    return differences


def refuse_other_run(where: Path, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Compare what a run was begun with and what it is now started with; see `find_differences`.

    Raises:
        UserError: every difference, old and new value.
    """
    if differences := find_differences(saved, current):
        raise UserError(
            f"{where} holds a run with other settings or data: {'; '.join(differences)}; give the same ones to go on, "
            "--overwrite to start over, or another --output_dir"
        )


def describe(data: Sequence[Mapping[str, Any]]) -> str:
    """`train 30 rows (content 1a2b3c4d)`."""
    return " + ".join(f"{each['split']} {each['rows']} rows (content {each['xxh3_128'][:8]})" for each in data)
