"""InternVL: chat format and image tokens.

An image is resized to the grid of tiles whose shape is nearest to its own, with the whole image as one tile more where
there are several. Ties are decided as in `get_optimal_tiled_canvas` of transformers' GOT-OCR2 image processor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from phi3v_data.tokens.chat import CHATML
from phi3v_data.tokens.family import ImageText, TextEstimate, TokenFamily, whole_number

LARGEST_BUDGET = 64


@dataclass(frozen=True)
class InternVLTokens(TokenFamily):
    """Token counts of InternVL; the image budget is the largest number of tiles, `--num_crops`.

    Args:
        tokens_per_tile: image tokens of a tile.
        tile_height: pixels of a tile.
        tile_width: pixels of a tile.
        fewest: smallest number of tiles.
        most: largest number of tiles where no budget is given.
    """

    tokens_per_tile: int = 256
    tile_height: int = 448
    tile_width: int = 448
    fewest: int = 1
    most: int = 12

    @property
    def own_budget(self) -> int:
        """The largest number of tiles."""
        return self.most

    def grid(self, width: int, height: int, budget: int | None) -> tuple[int, int]:
        """Columns and rows of tiles."""
        most = budget or self.most
        if most < 2:
            return 1, 1
        ratio, best, nearest = width / height, (1, 1), float("inf")
        for columns, rows in grids(self.fewest, most):
            difference = abs(ratio - columns / rows)
            # Of two that are as near, the larger one where the image fills more than half of it.
            large = width * height > 0.5 * self.tile_height * self.tile_width * columns * rows
            if difference < nearest or (difference == nearest and large):
                nearest, best = difference, (columns, rows)
        return best

    def image_tiles(self, width: int, height: int, budget: int | None, *, several: bool = False) -> int:
        """Tiles, and the whole image where there are several."""
        columns, rows = self.grid(width, height, budget)
        return columns * rows + (columns * rows > 1)

    def image_tokens(self, width: int, height: int, budget: int | None) -> int:
        """Image tokens of all tiles, and a marker at both ends."""
        return self.image_tiles(width, height, budget) * self.tokens_per_tile + 2

    def image_text(self, width: int, height: int, budget: int | None, *, several: bool = False) -> ImageText:
        """Image tokens between markers."""
        return ImageText((("<img>", self.image_tiles(width, height, budget) * self.tokens_per_tile),), "</img>")

    def image_words(self, width: int, height: int, budget: int | None) -> str:
        """Columns and rows of tiles."""
        columns, rows = self.grid(width, height, budget)
        return f"in {columns} x {rows} tiles + global view" if columns * rows > 1 else "in one tile"

    def configured(self, config: Mapping[str, Any], processor: Mapping[str, Any]) -> "InternVLTokens":
        """With the processor's tiles; `crop_to_patches` of its image processor is not what it goes by."""
        return replace(
            self,
            tokens_per_tile=whole_number(processor, "image_seq_length", default=self.tokens_per_tile),
            tile_height=whole_number(processor, "size", "height", default=self.tile_height),
            tile_width=whole_number(processor, "size", "width", default=self.tile_width),
            fewest=whole_number(processor, "min_patches", default=self.fewest),
            most=whole_number(processor, "max_patches", default=self.most, largest=LARGEST_BUDGET),
        )


@cache
def grids(fewest: int, most: int) -> tuple[tuple[int, int], ...]:
    """Columns and rows of every grid of `fewest` to `most` tiles, the smallest first."""
    numbers = range(1, most + 1)
    found = [(columns, rows) for columns in numbers for rows in numbers if fewest <= columns * rows <= most]
    return tuple(sorted(found, key=lambda grid: grid[0] * grid[1]))


INTERNVL = InternVLTokens(
    name="internvl",
    model_types=("internvl",),
    chat=replace(CHATML, image_tag="<IMG_CONTEXT>", after_image="\n"),
    other_special=("<img>", "</img>", "<video>", "<|im_start|>", "<|endoftext|>"),
    estimate=TextEstimate(per_turn=10, per_row=0),
    max_budget=LARGEST_BUDGET,
    takes_suggestion=False,
)

FAMILIES = (INTERNVL,)
