"""Floating-point work of a model under a method, as the rates by which a step is divided among processes."""

from phi3v_train.config import MethodConfig
from phi3v_train.data.partition import Rates
from phi3v_train.models.size import ModelSize


def work_rates(size: ModelSize, method: MethodConfig, *, checkpointing: bool) -> Rates:
    """Floating-point operations of forward and backward passes.

    A pass over a linear layer costs 2 operations a weight and token, one over causal attention 2 a pair of tokens and
    feature (half of the pairs, scores and values), over the tower's full attention 4. Passes are counted by `_passes`.
    """
    language = not method.freeze_language_model
    vision = not method.freeze_vision_model
    decoder = _passes(reached=True, weights=language and not method.use_lora, checkpointing=checkpointing)
    tower = _passes(reached=vision, weights=vision and not method.use_lora, checkpointing=checkpointing)
    layers = size.weights("vision") + size.num_layers("vision") * 2 * size.tile_tokens * size.tower.attention
    projector = size.tile_features * size.weights("projector")
    one_tile = 2 * (size.tile_tokens * (layers + size.patch_weights) + projector)
    return Rates(
        token=2 * size.weights("language") * decoder,
        pair=2 * size.num_layers("language") * size.decoder.attention * decoder,
        tile=one_tile * tower,
    )


def _passes(*, reached: bool, weights: bool, checkpointing: bool) -> int:
    """Passes over a part: forward; where gradients reach it, backward to the inputs, to the weights, and again forward
    to recompute.
    """
    return 1 + reached * (1 + weights + checkpointing)
