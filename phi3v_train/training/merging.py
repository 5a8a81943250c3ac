"""An adapter merged into its base: a model directory that loads wherever a base model does."""

from pathlib import Path
from typing import Any

import torch

from phi3v_data.errors import UserError
from phi3v_train.models.loading import ModelPlace, load_base, load_processor
from phi3v_train.models.machine import Chosen, Compute
from phi3v_train.training.checkpoints import SaveError, write_folder
from phi3v_train.training.parallel.group import Alone
from phi3v_train.training.parallel.place import Place
from phi3v_train.training.precision import DTYPES
from phi3v_train.training.saving import write_model_directory

NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def merge_to(place: ModelPlace, out: Path, *, dtype: str = "auto", overwrite: bool = False) -> str:
    """Write `place` (an adapter over its base, or a model as it is) as one model directory; returns its dtype.

    The sum is made in fp32, layer by layer, and rounded once to `dtype`: `auto` is the base's own. A QLoRA adapter is
    merged into the base as it was before it was packed into 4 bits.

    Raises:
        UserError: `out` is taken, or the disk does not take the model.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise UserError(f"{out}: exists already; choose another place or give --overwrite")
    name = stored_dtype(place) if dtype == "auto" else dtype
    reason = Chosen("cpu", "merging needs no GPU")
    compute = Compute(reason, Chosen(name, ""), Chosen("sdpa", ""), 0)
    model = load_base(place, compute)
    if place.adapter is not None:
        model = merge_adapter(model, place.adapter)
    processor = load_processor(place)
    staging = out.with_name(f".{out.name}.partial")

    def write(folder: Path) -> None:
        write_model_directory(model, folder, DTYPES[name])
        processor.save_pretrained(folder)

    try:
        write_folder(Alone(Place(), torch.device("cpu")), staging, out, write)
    except SaveError as error:
        raise UserError(str(error)) from error
    return name


def stored_dtype(place: ModelPlace) -> str:
    """Number format that the base's `config.json` names."""
    config = place.config()
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return NAMES.get(stored.removeprefix("torch."), "fp32")


def merge_adapter(model: Any, adapter: Path) -> Any:
    """The model with the adapter's change added to its weights; each layer's sum is made in fp32."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    wrapped = PeftModel.from_pretrained(model, adapter)
    for layer in [module for module in wrapped.modules() if isinstance(module, LoraLayer)]:
        base = layer.get_base_layer()
        dtype = base.weight.dtype
        base.float()
        layer.merge(safe_merge=True)
        base.to(dtype)
    return wrapped.unload()
