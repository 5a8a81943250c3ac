"""Inputs of Gemma 3.

pixel_values    (images, 3, height, width) float32
token_type_ids  (rows, tokens) int64: 1 at image tokens, which attend to one another both ways
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from phi3v_train.models.huggingface.renderer import HubRenderer
from phi3v_train.models.renderer import ImageArrays


class Gemma3Renderer(HubRenderer):
    """Encodes for attention in both directions within an image."""

    def token_inputs(self, ids: NDArray[np.int64], images: Sequence[ImageArrays]) -> ImageArrays:
        """`token_type_ids` (T,)."""
        return {"token_type_ids": (ids < 0).astype(np.int64)}
