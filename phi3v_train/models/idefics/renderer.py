"""Inputs of Idefics3 and SmolVLM.

    pixel_values          (1, tiles of all images, 3, height, width) float32
    pixel_attention_mask  (1, tiles of all images, height, width) int64: 1 where a tile is not padding

The model puts tiles of all samples into one row before its tower, so they are not padded to the sample with most tiles.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phi3v_train.models.huggingface.renderer import HubRenderer
from phi3v_train.models.renderer import ImageArrays


class IdeficsRenderer(HubRenderer):
    """Encodes tiles."""

    model_inputs = ("pixel_values", "pixel_attention_mask")

    def collate_images(self, images: Sequence[ImageArrays]) -> dict[str, NDArray[Any]]:
        """All tiles, padded below and on the right to the largest one."""
        shapes = [image["pixel_values"].shape[-2:] for image in images]
        height, width = max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)
        result = {}
        for name in images[0]:
            arrays = []
            for image in images:
                array = image[name]
                below, right = height - array.shape[-2], width - array.shape[-1]
                if below or right:
                    array = np.pad(array, [(0, 0)] * (array.ndim - 2) + [(0, below), (0, right)])
                arrays.append(array)
            result[name] = np.concatenate(arrays, axis=1)
        return result
