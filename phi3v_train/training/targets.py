"""Which linear layers get LoRA adapters, by their official full names; needs no torch."""

import re
from collections.abc import Iterable

from phi3v_data.errors import UserError
from phi3v_train.config import ALL_LINEAR, MethodConfig

DECODER_TARGETS = r"model\.layers\.\d+\.(self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj)"
"""The decoder's linear layers, which QLoRA keeps in 4 bits; head, tower and projector stay as they are."""

LANGUAGE_TARGETS = rf"{DECODER_TARGETS}|lm_head"
"""The decoder's linear layers and the head, which the Phi-3.5-vision sample trains too."""

NAMES = re.compile(r"[\w.]+(,[\w.]+)*")
"""A list of names, as opposed to a regular expression."""

DECODER_LINEARS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
TOWER_LINEARS = (*(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
PROJECTOR_LINEARS = ("img_projection.0", "img_projection.2")
VISION = "model.vision_embed_tokens"


def vision_targets(num_layers: int) -> str:
    """Full names of the linear layers of the projector and of the tower's first `num_layers` layers, those that run."""
    layers = "|".join(map(str, range(num_layers)))
    return (
        rf"model\.vision_embed_tokens\.(img_processor\.vision_model\.encoder\.layers\.({layers})\."
        r"(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])|img_projection\.[02])"
    )


def lora_targets(method: MethodConfig, num_vision_layers: int) -> str:
    """PEFT's `target_modules`, a regular expression over full names.

    `--lora_targets` chooses among the linear layers that are not frozen and that a loss reaches.
    """
    wanted = method.lora_targets
    language = DECODER_TARGETS if wanted == ALL_LINEAR else LANGUAGE_TARGETS
    targets = [] if method.freeze_language_model else [language]
    if not method.freeze_vision_model:
        targets.append(vision_targets(num_vision_layers))
    reached = "|".join(targets)
    if wanted is None or wanted == ALL_LINEAR:
        return reached
    if NAMES.fullmatch(wanted):
        wanted = rf"(.*\.)?({'|'.join(re.escape(name) for name in wanted.split(','))})"
    return rf"(?=({wanted})$)({reached})"


def linear_names(num_layers: int, num_vision_layers: int) -> list[tuple[str, tuple[str, int]]]:
    """Full name of every linear layer that a loss reaches, its part and its number within one layer of that part."""
    names = [
        (f"model.layers.{layer}.{name}", ("decoder", number))
        for layer in range(num_layers)
        for number, name in enumerate(DECODER_LINEARS)
    ]
    names.append(("lm_head", ("head", 0)))
    tower = f"{VISION}.img_processor.vision_model.encoder.layers"
    names += [
        (f"{tower}.{layer}.{name}", ("tower", number))
        for layer in range(num_vision_layers)
        for number, name in enumerate(TOWER_LINEARS)
    ]
    return names + [(f"{VISION}.{name}", ("projector", number)) for number, name in enumerate(PROJECTOR_LINEARS)]


def targeted(method: MethodConfig, num_vision_layers: int, names: Iterable[str]) -> list[str]:
    """Those of the names that get an adapter.

    Raises:
        UserError: `--lora_targets` names none of them, or only frozen ones.
    """
    pattern = re.compile(lora_targets(method, num_vision_layers))
    found = [name for name in names if pattern.fullmatch(name)]
    if not found:
        frozen = " that is not frozen" if method.freeze_language_model or method.freeze_vision_model else ""
        raise UserError(
            f"--lora_targets {method.lora_targets}: matches no linear layer{frozen}; examples: qkv_proj,o_proj; "
            rf"fc1,fc2; lm_head; model\.layers\.\d+\.mlp\..*; {ALL_LINEAR}"
        )
    return found
