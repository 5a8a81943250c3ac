"""An adapter on its base: loaded by PEFT, and refused where it was tuned on another model."""

from pathlib import Path
from typing import Any

from phi3v_data.errors import UserError
from phi3v_data.messages import shown
from phi3v_train.models.directory import shapes_in

ADAPTER_WEIGHTS = "adapter_model.safetensors"
LORA = ".lora_"
"""Part of the names of an adapter's tensors; what else a file may hold, such as trained embeddings, is not compared."""


def attach_adapter(model: Any, adapter: Path) -> Any:
    """PEFT's wrapper around `model` with the adapter of a directory.

    PEFT only warns of tensors for layers that the model does not have.

    Raises:
        UserError: its file is not whole, or the adapter was tuned on another model.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils.save_and_load import load_peft_weights

    if (weights := adapter / ADAPTER_WEIGHTS).is_file():
        shapes_in(weights)
    try:
        wrapped = PeftModel.from_pretrained(model, adapter)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = "layers of other sizes" if "size mismatch" in str(error) else "other layers"
        raise UserError(another_base(adapter, model.name_or_path, f"it has {reason}")) from None
    held = {name for name in get_peft_model_state_dict(wrapped, save_embedding_layers=False) if LORA in name}
    stored = {name for name in load_peft_weights(str(adapter), device="cpu") if LORA in name}
    if len(held) != len(stored):
        some = sorted(held ^ stored)[0].removeprefix("base_model.model.").partition(LORA)[0]
        where = "the adapter" if held - stored else "the model"
        raise UserError(another_base(adapter, model.name_or_path, f"{where} has nothing for {shown(some, 60)}"))
    return wrapped


def another_base(adapter: Path, base: str, reason: str) -> str:
    """The sentence about an adapter whose base is another model than the one it was tuned on."""
    return (
        f"{adapter}: was not tuned on the model that is now in {shown(base, 80)}: {reason}; give the model that it was "
        "tuned on with --base"
    )
