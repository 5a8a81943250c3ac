"""Idefics3 and SmolVLM: chat format and image tokens.

The longest side of an image is resized to `longest_edge`, both sides are then made multiples of a tile's side, and the
image is cut into rows and columns of tiles, with the whole image as one more. Rounding is that of transformers'
`Idefics3ImageProcessor`; its `get_number_of_image_patches` rounds otherwise and miscounts some shapes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from phi3v_data.tokens.chat import ChatFormat
from phi3v_data.tokens.family import ImageText, TextEstimate, TokenFamily, whole_number

LARGEST_EDGE = 4096
"""Longest side of an image, in pixels, that transformers' processor makes."""

FAKE, IMAGE, GLOBAL = "<fake_token_around_image>", "<image>", "<global-img>"

IDEFICS3_CHAT = ChatFormat(
    system="System",
    user="User",
    assistant="Assistant",
    end_of_turn="<end_of_utterance>",
    image_tag=IMAGE,
    after_role=":",
    before_text=" ",
    after_images="",
    plain_roles=True,
    begin="<|begin_of_text|>",
    trains_after_end=True,
)


@dataclass(frozen=True)
class IdeficsTokens(TokenFamily):
    """Token counts of Idefics3 and SmolVLM; the image budget is `--longest_edge`.

    Args:
        longest_edge: pixels of the longest side where no budget is given.
        tile_edge: pixels of a tile's side.
        tokens_per_tile: image tokens of a tile.
        is_split: images are cut into tiles.
    """

    longest_edge: int = 4 * 364
    tile_edge: int = 364
    tokens_per_tile: int = 169
    is_split: bool = True

    @property
    def own_budget(self) -> int:
        """The longest side of an image."""
        return self.longest_edge

    def grid(self, width: int, height: int, budget: int | None) -> tuple[int, int]:
        """Rows and columns of tiles; (0, 0) where the image is one tile."""
        if not self.is_split:
            return 0, 0
        width, height = self.resized(width, height, budget or self.longest_edge)
        tile = self.tile_edge
        ratio = width / height
        if width >= height:
            width = ceil(width / tile) * tile
            height = ceil(int(width / ratio) / tile) * tile
        else:
            height = ceil(height / tile) * tile
            width = ceil(int(height * ratio) / tile) * tile
        return (height // tile, width // tile) if max(width, height) > tile else (0, 0)

    @staticmethod
    def resized(width: int, height: int, edge: int) -> tuple[int, int]:
        """Width and height once the longest side is `edge`, at most 4,096; the short one is rounded to even."""
        ratio = width / height
        if width >= height:
            width, height = edge, int(edge / ratio)
            height += height % 2
        else:
            width, height = int(edge * ratio), edge
            width += width % 2
        width, height = max(width, 1), max(height, 1)
        ratio = width / height
        if width >= height and width > LARGEST_EDGE:
            width, height = LARGEST_EDGE, int(LARGEST_EDGE / ratio)
        elif height > width and height > LARGEST_EDGE:
            width, height = int(LARGEST_EDGE * ratio), LARGEST_EDGE
        return max(width, 1), max(height, 1)

    def image_tiles(self, width: int, height: int, budget: int | None, *, several: bool = False) -> int:
        """Tiles, the whole image among them."""
        rows, columns = self.grid(width, height, budget)
        return rows * columns + 1

    def image_tokens(self, width: int, height: int, budget: int | None) -> int:
        """Image tokens of all tiles, two markers before each, a line end after each row, one marker at the end."""
        rows, columns = self.grid(width, height, budget)
        return (rows * columns + 1) * (self.tokens_per_tile + 2) + rows + 1

    def image_text(self, width: int, height: int, budget: int | None, *, several: bool = False) -> ImageText:
        """Tiles with their rows and columns, then the whole image."""
        rows, columns = self.grid(width, height, budget)
        parts, line_end = [], ""
        for row in range(1, rows + 1):
            for column in range(1, columns + 1):
                parts.append((f"{line_end}{FAKE}<row_{row}_col_{column}>", self.tokens_per_tile))
                line_end = ""
            line_end = "\n"
        parts.append((f"{line_end * 2}{FAKE}{GLOBAL}", self.tokens_per_tile))
        return ImageText(tuple(parts), FAKE)

    def image_words(self, width: int, height: int, budget: int | None) -> str:
        """Columns and rows of tiles."""
        rows, columns = self.grid(width, height, budget)
        return f"in {columns} x {rows} tiles + global view" if rows else "in one tile"

    def configured(self, config: Mapping[str, Any], processor: Mapping[str, Any]) -> "IdeficsTokens":
        """With the processor's edges and tokens per tile."""
        return replace(
            self,
            longest_edge=whole_number(processor, "size", "longest_edge", default=self.longest_edge),
            tile_edge=whole_number(processor, "max_image_size", "longest_edge", default=self.tile_edge),
            tokens_per_tile=whole_number(processor, "image_seq_len", default=self.tokens_per_tile),
            is_split=processor.get("do_image_splitting", self.is_split) is not False,
        )


IDEFICS3 = IdeficsTokens(
    name="idefics3",
    model_types=("idefics3",),
    chat=IDEFICS3_CHAT,
    other_special=(FAKE, GLOBAL, "<row_{number}_col_{number}>", "<|begin_of_text|>", "<|end_of_text|>"),
    estimate=TextEstimate(per_turn=8, per_row=1),
    max_budget=LARGEST_EDGE,
    budget_option="longest_edge",
    takes_suggestion=False,
)

SMOLVLM = replace(
    IDEFICS3,
    name="smolvlm",
    model_types=("smolvlm",),
    chat=replace(IDEFICS3_CHAT, begin="<|im_start|>"),
    other_special=(FAKE, GLOBAL, "<row_{number}_col_{number}>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    longest_edge=4 * 512,
    tile_edge=512,
    tokens_per_tile=64,
)

FAMILIES = (IDEFICS3, SMOLVLM)
