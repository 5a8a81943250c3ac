"""Weights to and from a folder: a model directory in the official layout, or a PEFT adapter.

A folder written here loads wherever such a folder loads: `phi3v-train eval`, transformers, PEFT. In a checkpoint every
tensor keeps the number format it is trained in, so that a resumed run continues from the same bits; the finished model
is written in the compute dtype.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phi3v_data.errors import UserError
from phi3v_train.models.directory import weight_files
from phi3v_train.training.methods import TrainedModel

PEFT_PREFIX = "base_model.model."
"""Prefix of the model's names in PEFT's files."""

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def write_model(
    trained: TrainedModel,
    processor: Any,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the model or its adapter, and the processor, into `folder`.

    `dtype` is the number format of a finished model directory; None keeps every tensor's own. Adapters stay in fp32.
    `state` are the weights by name, of an adapter's the trained ones, if the model itself is sharded.
    """
    if trained.peft_model is not None:
        named = None if state is None else {f"{PEFT_PREFIX}{name}": tensor for name, tensor in state.items()}
        # An adapter on the head would otherwise drag the whole head along (PEFT's "auto").
        trained.peft_model.save_pretrained(folder, save_embedding_layers=False, state_dict=named)
        (folder / "README.md").unlink(missing_ok=True)
    else:
        write_model_directory(trained.model, folder, dtype, state)
    processor.save_pretrained(folder)


def write_model_directory(
    model: Any, folder: Path, dtype: torch.dtype | None, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write all weights (`state`, or the model's own) and the configuration, which names `dtype` to load with.

    In a checkpoint (`dtype` None) tensors have the model's own names, by which `read_model` finds them; transformers
    loads those as well as the names of older versions, which it gives those of a finished model.
    """
    if dtype is None:
        model.save_pretrained(folder, state_dict=state, save_original_format=False)
        return
    was = model.config.dtype
    model.config.dtype = dtype
    weights = own_state(model) if state is None else state
    try:
        model.save_pretrained(folder, state_dict={name: cast(each, dtype) for name, each in weights.items()})
    finally:
        model.config.dtype = was


def own_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state by name, a tensor that has several names (a head tied to the embedding) under the first one only."""
    named = {name for name, _ in model.named_parameters()}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - named
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor on the CPU, floating values in `dtype`."""
    return tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)


@torch.no_grad()
def read_model(trained: TrainedModel, folder: Path) -> None:
    """Load the weights that `write_model` wrote, bit by bit.

    Raises:
        UserError: the folder lacks a trained tensor, or has one of another shape.
    """
    if trained.peft_model is not None:
        from peft import load_peft_weights, set_peft_model_state_dict

        result = set_peft_model_state_dict(trained.peft_model, load_peft_weights(str(folder), device="cpu"))
        missing = [name for name in result.missing_keys if ".lora_" in name]
        if missing or result.unexpected_keys:
            raise UserError(f"{folder}: is not an adapter of this model ({(missing or result.unexpected_keys)[0]})")
        return
    held = {**dict(trained.model.named_parameters()), **dict(trained.model.named_buffers())}
    found = set()
    for name, tensor in stored_tensors(folder):
        if name not in held or held[name].shape != tensor.shape:
            raise UserError(f"{folder}: is not a checkpoint of this model ({name} does not fit)")
        held[name].copy_(tensor)
        found.add(name)
    missing = [name for name, _ in trained.trainable() if name not in found]
    if missing:
        raise UserError(f"{folder}: is not a checkpoint of this model ({missing[0]} is missing)")


def stored_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and values of all tensors in a model directory's safetensors files, one at a time."""
    from safetensors import safe_open

    for file in weight_files(folder):
        with safe_open(folder / file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # no mapping: it cannot be iterated itself
                yield name, tensors.get_tensor(name)


def stored_slices(folder: Path, file: str | None = None) -> Iterator[tuple[str, Any]]:
    """Names of the tensors in a file, or in a model directory's files, and what reads some rows of each."""
    from safetensors import safe_open

    for name in weight_files(folder) if file is None else (file,):
        with safe_open(folder / name, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  # no mapping: it cannot be iterated itself
                yield key, tensors.get_slice(key)


def stored_name(name: str) -> str:
    """Name of an adapter's tensor in PEFT's file; in the model it contains the adapter's name, `default`."""
    return PEFT_PREFIX + name.replace(".default.", ".").removesuffix(".default")


def write_optimizer(state: dict[str, Any], path: Path) -> None:
    """Write the optimizer's state; through a Python file, so that a full disk is an OSError."""
    with path.open("wb") as file:
        torch.save(state, file)


def read_optimizer(path: Path) -> dict[str, Any]:
    """Read what `write_optimizer` wrote; tensors and plain values only, no code."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
