"""Tiles and tokens of an image in Phi-3-vision: pure arithmetic on its size.

The image is enlarged or reduced until it fills as many squares of 336 pixels as `num_crops` allows, white is added on
the short side up to whole squares, and every square becomes one tile beside a global view of the whole.

    (width, height) -> turned to landscape -> resized (336 * s, int(336 * s / ratio)) -> padded to whole squares
                    -> rows x cols tiles, and (rows * cols + 1) * 144 + 1 + (rows + 1) * 12 tokens

The formula is that of the image processor released with Phi-3-vision-128k-instruct, in the same float arithmetic, so
that a size on the edge between two grids falls on the same side.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from phi3v_data.tokens.family import ImageShapeError, check_budget

TILE_SIZE = 336
"""Side of a tile and of the global view, in pixels."""

TOKENS_PER_TILE = 144
"""Tokens of a tile or of the global view, 12 x 12, without the separator that ends each of its rows."""

MAX_NUM_CROPS = 16
"""Largest tile budget; the released models use 4 (several images) and 16 (one image)."""


@dataclass(frozen=True, slots=True)
class CropGeometry:
    """Position of an image on its canvas, in pixels and in the image's own orientation.

    `rows` and `cols` count tiles; the image is resized to `width` x `height` and placed at (`left`, `top`) on a
    white canvas of `padded_width` x `padded_height`. `turned`: the image is taller than wide, so it is
    mirrored on its diagonal before resizing and mirrored back after padding.
    """

    rows: int
    cols: int
    width: int
    height: int
    left: int
    top: int
    turned: bool

    @property
    def padded_width(self) -> int:
        """Width of the canvas, a multiple of 336."""
        return self.cols * TILE_SIZE

    @property
    def padded_height(self) -> int:
        """Height of the canvas, a multiple of 336."""
        return self.rows * TILE_SIZE

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the canvas: a row of the processor's `image_sizes`."""
        return self.rows * TILE_SIZE, self.cols * TILE_SIZE

    @property
    def num_tiles(self) -> int:
        """Tiles that carry the image, the global view among them; the rest of the budget stays empty."""
        return self.rows * self.cols + 1

    @property
    def num_tokens(self) -> int:
        """Image tokens that stand in the sequence for this image."""
        return grid_num_tokens(self.rows, self.cols)


def grid_num_tokens(rows: int, cols: int) -> int:
    """Image tokens of an image cut into `rows` x `cols` tiles.

    Each of the 12 token rows of a tile row, and of the global view, ends in a separator; one more is between both.
    """
    return (rows * cols + 1) * TOKENS_PER_TILE + 1 + (rows + 1) * 12


@lru_cache(maxsize=1 << 16, typed=True)  # True and 4.0 are no budgets, but equal to ones
def crop_geometry(width: int, height: int, num_crops: int) -> CropGeometry:
    """Geometry of an image of `width` x `height` pixels under a budget of `num_crops` tiles (1 to 16).

    Raises ImageShapeError when one side is over about 336 * num_crops times the other, ValueError for a size or a
    budget out of range.
    """
    check_num_crops(num_crops)
    if width < 1 or height < 1:
        raise ValueError(f"an image of {width} x {height} pixels has no content: both sides must be at least 1")
    turned = width < height
    ratio = height / width if turned else width / height
    scale = 1
    while (scale + 1) * ceil((scale + 1) / ratio) <= num_crops:
        scale += 1
    long_side = scale * TILE_SIZE
    short_side = int(long_side / ratio)
    if short_side == 0:
        raise ImageShapeError(
            f"an image of {width} x {height} pixels is too narrow: at num_crops {num_crops} its short side would be "
            f"resized to 0 pixels; the longer side may be at most {long_side} times the shorter"
        )
    short_tiles = ceil(short_side / TILE_SIZE)
    margin = (short_tiles * TILE_SIZE - short_side) // 2
    if turned:
        return CropGeometry(scale, short_tiles, short_side, long_side, margin, 0, True)
    return CropGeometry(short_tiles, scale, long_side, short_side, 0, margin, False)


def num_image_tokens(width: int, height: int, num_crops: int) -> int:
    """Image tokens of an image of `width` x `height` pixels; errors as in `crop_geometry`."""
    return crop_geometry(width, height, num_crops).num_tokens


def check_num_crops(num_crops: int | None) -> None:
    """Raise BudgetError, a ValueError, unless `num_crops` is a whole number from 1 to 16."""
    check_budget(num_crops, MAX_NUM_CROPS)
