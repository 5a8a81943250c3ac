"""Inputs of the Qwen family.

    pixel_values    (patches of all images, channels x 2 x patch x patch) float32
    image_grid_thw  (n, 3) int64: 1, rows and columns of patches
    position_ids    (4, tokens) int64: places in the text; time, row and column of M-RoPE

M-RoPE positions are computed here, from the ids and the grids, as `get_rope_index` of transformers' models does it: in
a packed row that function would count through all samples.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from phi3v_train.models.huggingface.renderer import HubRenderer
from phi3v_train.models.renderer import ImageArrays


class QwenRenderer(HubRenderer):
    """Encodes for M-RoPE."""

    model_inputs = ("pixel_values", "image_grid_thw")

    def token_inputs(self, ids: NDArray[np.int64], images: Sequence[ImageArrays]) -> ImageArrays:
        """`position_ids` (4, T) of a sample."""
        grids = [image["image_grid_thw"][0] for image in images]
        return {"position_ids": mrope_positions(ids, grids, self.image_processor.merge_size)}

    def prompt_inputs(self, ids: NDArray[np.int64], images: Sequence[ImageArrays]) -> ImageArrays:
        """`mm_token_type_ids` (T,): 1 at image tokens; the model counts positions itself while it generates."""
        return {"mm_token_type_ids": (ids < 0).astype(np.int64)}


def mrope_positions(ids: NDArray[np.int64], grids: Sequence[NDArray[np.int64]], merge_size: int) -> NDArray[np.int64]:
    """Positions (4, T) of a sample: 0, 1, 2, ... in the first row, time, row and column of M-RoPE in the others.

    A text token has the same three positions, one more than the token before it. An image of h x w tokens has one
    time, and takes max(h, w) positions.

    Args:
        ids: (T,); image n is a run of -n.
        grids: 1, rows and columns of patches of each image.
        merge_size: patches of a side of one token.
    """
    positions = np.empty((4, len(ids)), np.int64)
    positions[0] = np.arange(len(ids))
    start, now = 0, 0
    starts = [int(place) for place in np.flatnonzero((ids < 0) & (np.r_[0, ids[:-1]] != ids))]
    for place, grid in zip(starts, grids, strict=True):
        text = place - start
        positions[1:, start:place] = now + np.arange(text)
        now += text
        rows, columns = int(grid[1]) // merge_size, int(grid[2]) // merge_size
        start = place + rows * columns
        positions[1, place:start] = now
        positions[2, place:start] = now + np.repeat(np.arange(rows), columns)
        positions[3, place:start] = now + np.tile(np.arange(columns), rows)
        now += max(rows, columns)
    positions[1:, start:] = now + np.arange(len(ids) - start)
    return positions
