"""Floating-point work of a model under a method, as the rates by which a step is divided among processes."""

from phi3v_train.config import MethodConfig
from phi3v_train.data.partition import Rates
from phi3v_train.training.memory import PATCHES, ModelSize

TILE_TOKENS = 144
"""Tokens that the projector makes of a tile."""


def work_rates(size: ModelSize, method: MethodConfig, *, checkpointing: bool) -> Rates:
    """Floating-point operations of forward and backward passes.

    A pass over a linear layer costs 2 operations a weight and token, one over causal attention 2 a pair of tokens and
    feature (half of the pairs, scores and values), over the tower's full attention 4. Passes are counted by `_passes`.
    """
    language = not method.freeze_language_model
    vision = not method.freeze_vision_model
    decoder = _passes(reached=True, weights=language and not method.use_lora, checkpointing=checkpointing)
    tower = _passes(reached=vision, weights=vision and not method.use_lora, checkpointing=checkpointing)
    layer = sum(i * o for i, o in size.vision_linears)
    attention = 2 * PATCHES * size.vision_hidden
    projector = TILE_TOKENS * sum(i * o for i, o in size.projector_linears)
    patches = PATCHES * 3 * size.patch**2 * size.vision_hidden
    one_tile = 2 * (PATCHES * size.vision_layers_used * (layer + attention) + projector + patches)
    return Rates(
        token=2 * size.decoder_weights * decoder,
        pair=2 * size.layers * size.attention * decoder,
        tile=one_tile * tower,
    )


def _passes(*, reached: bool, weights: bool, checkpointing: bool) -> int:
    """Passes over a part: forward; where gradients reach it, backward to the inputs, to the weights, and again forward
    to recompute.
    """
    return 1 + reached * (1 + weights + checkpointing)
