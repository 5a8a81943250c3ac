"""Where the processes of an FSDP run find their rows of the weights, if they can read these alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch

from phi3v_data.messages import shown
from phi3v_train.config import MethodConfig
from phi3v_train.models.directory import ModelFiles, stored_shapes, weight_files
from phi3v_train.models.stored_keys import stored_keys
from phi3v_train.training.saving import own_state


@dataclass(frozen=True, slots=True)
class RowSource:
    """The directory of the weights, and the key there of every tensor of the model by the model's name.

    `reason` says why each process must load the whole model instead; then there are no keys. Neither is there where
    the weights are not on this machine, as a plan does not need them: it is seen once they are.
    """

    directory: Path | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""


def find_rows(files: ModelFiles, method: MethodConfig) -> RowSource:
    """The rows of a model's weights under FSDP, by the headers of its files; no weights are read."""
    if files.directory is None:
        return RowSource(reason="a tiny model is not in files")
    if method.use_dora or (method.use_lora and method.lora_init in ("pissa", "olora")):
        option = "--use_dora" if method.use_dora else f"--lora_init {method.lora_init}"
        return RowSource(reason=f"{option} computes adapters from whole weights")
    if not all((files.directory / name).is_file() for name in weight_files(files.directory)):
        return RowSource()
    shapes = stored_shapes(files.directory)
    try:
        with torch.device("meta"):
            model = files.family.empty_model(files.directory)
        keys, converted = stored_keys(model, shapes)
    except (ImportError, AttributeError, TypeError, NotImplementedError):
        return RowSource(reason="this version of transformers does not tell how it renames tensors")
    for name, tensor in own_state(model).items():
        key, shape = keys.get(name, ""), tuple(tensor.shape)
        if not key:
            return RowSource(reason=f"the files have no tensor for {shown(name, 80)}")
        reshaped = key in converted and shapes[key][:1] == shape[:1] and tensor.numel() == prod(shapes[key])
        if not shape or (shapes[key] != shape and not reshaped):
            return RowSource(reason=f"{shown(key, 80)} has other rows in the files than in the model")
    return RowSource(files.directory, {name: keys[name] for name in own_state(model)})
