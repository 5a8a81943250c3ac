"""LLaVA-NeXT and LLaVA-OneVision: chat formats and image tokens.

An image is fitted into the best of a list of grids of tiles; the whole image is one tile more. Tokens of the padding
around the image are left out, and each row of the rest ends in a token for a line end. Rounding is that of
transformers' processors; of several images in a sample, LLaVA-OneVision takes each as one tile (its processor's own
count of tokens does not know this).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from phi3v_data.tokens.chat import CHATML, ChatFormat, TurnText
from phi3v_data.tokens.family import (
    BudgetError,
    ImageShapeError,
    SettingsError,
    TextEstimate,
    TokenFamily,
    whole_number,
)

LARGEST_EDGE = 1 << 14
"""Pixels of a side of the largest grid that is believed."""

Grids = tuple[tuple[int, int], ...]

ONE_BY_THREE: Grids = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
UP_TO_SIX: Grids = tuple((384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7))


@dataclass(frozen=True)
class LlavaNextChat(ChatFormat):
    """`[INST] <image>\\nQUESTION [/INST] ANSWER</s> ` of LLaVA-NeXT on Mistral."""

    def opening(self, system: str) -> str:
        """A system message between markers of its own."""
        return f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""

    def prompt_parts(self, turn: TurnText, *, system: str = "", begins: bool = True) -> list[str]:
        """See `ChatFormat.prompt_parts`."""
        parts = self.user_parts(turn)
        parts[0] = f"{self.opening(system) if begins else ''}{self.user}{parts[0]}"
        parts[-1] += self.assistant
        return parts

    def user_parts(self, turn: TurnText) -> list[str]:
        """Images first, each on a line of its own, then the text."""
        parts = [""] + ["\n"] * turn.num_images
        parts[-1] += turn.user
        return parts


@dataclass(frozen=True)
class LlavaNextTokens(TokenFamily):
    """Token counts of LLaVA-NeXT; the image budget is the largest number of tiles of a grid, `--num_crops`.

    Args:
        grids: heights and widths, in pixels, that an image may be fitted into.
        tile_edge: pixels of a tile's side.
        side_tokens: tokens of a tile's side.
        whole_tokens: tokens of the tile that holds the whole image.
    """

    grids: Grids = ONE_BY_THREE
    tile_edge: int = 336
    side_tokens: int = 24
    whole_tokens: int = 576

    @property
    def own_budget(self) -> int:
        """The number of tiles of the largest grid."""
        return max(map(self.num_tiles, self.grids))

    def allowed(self, budget: int | None) -> Grids:
        """The grids that an image budget allows.

        Raises:
            BudgetError: there is none.
        """
        grids = tuple(grid for grid in self.grids if budget is None or self.num_tiles(grid) <= budget)
        if not grids:
            least = min(map(self.num_tiles, self.grids))
            raise BudgetError(f"num_crops must be at least {least}, the number of tiles of the smallest grid")
        return grids

    def num_tiles(self, grid: tuple[int, int]) -> int:
        """Tiles of a grid."""
        return (grid[0] // self.tile_edge) * (grid[1] // self.tile_edge)

    def best(self, width: int, height: int, budget: int | None) -> tuple[int, int]:
        """The grid that keeps most of an image's pixels, of these the one that wastes least."""
        best, most, least = (0, 0), 0, math.inf
        for rows, columns in self.allowed(budget):
            scale = min(columns / width, rows / height)
            effective = min(int(width * scale) * int(height * scale), width * height)
            wasted = rows * columns - effective
            if effective > most or (effective == most and wasted < least):
                best, most, least = (rows, columns), effective, wasted
        if not most:
            raise ImageShapeError(f"an image of {width} x {height} pixels is too narrow for the grids of the model")
        return best

    def unpadded(self, width: int, height: int, budget: int | None) -> tuple[int, int]:
        """Rows and columns of tokens of the grid once the padding around the image is taken away."""
        grid = self.best(width, height, budget)
        rows, columns = (self.side_tokens * (edge // self.tile_edge) for edge in grid)
        if width / height > columns / rows:
            rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
        return rows, columns

    def image_tokens(self, width: int, height: int, budget: int | None) -> int:
        """Tokens of the whole image and of the grid, whose rows end in one token more."""
        rows, columns = self.unpadded(width, height, budget)
        return self.whole_tokens + rows * columns + rows

    def image_tiles(self, width: int, height: int, budget: int | None, *, several: bool = False) -> int:
        """Tiles of the grid, and the whole image."""
        if several and self.several_differ:
            return 1
        return self.num_tiles(self.best(width, height, budget)) + 1

    def image_words(self, width: int, height: int, budget: int | None) -> str:
        """Columns and rows of tiles."""
        rows, columns = (edge // self.tile_edge for edge in self.best(width, height, budget))
        return f"in {columns} x {rows} tiles + global view"

    def configured(self, config: Mapping[str, Any], processor: Mapping[str, Any]) -> "LlavaNextTokens":
        """With the processor's grids and sizes."""
        edge = self.edge(processor)
        patch = whole_number(processor, "patch_size", default=14)
        side = edge // patch
        if not side:
            raise SettingsError(f"patch_size must be a whole number from 1 to {edge}, the side of a tile, not {patch}")
        more = whole_number(processor, "num_additional_image_tokens", default=0, least=0)
        drops = processor.get("vision_feature_select_strategy") == "default"
        return replace(
            self,
            grids=pinpoints(processor, self.grids, edge),
            tile_edge=edge,
            side_tokens=side,
            whole_tokens=side**2 + more - drops,
        )

    def edge(self, processor: Mapping[str, Any]) -> int:
        """Pixels of a tile's side."""
        for keys in (("crop_size", "height"), ("size", "height"), ("size", "shortest_edge")):
            found = whole_number(processor, *keys, default=0)
            if found:
                return found
        return self.tile_edge


@dataclass(frozen=True)
class LlavaOnevisionTokens(LlavaNextTokens):
    """Token counts of LLaVA-OneVision.

    Args:
        most_tiles: the grid's tokens are reduced to those of so many tiles.
    """

    most_tiles: int = 9

    def unpadded(self, width: int, height: int, budget: int | None) -> tuple[int, int]:
        """The same, at most `most_tiles` tiles of tokens."""
        rows, columns = super().unpadded(width, height, budget)
        ratio = math.sqrt(rows * columns / (self.most_tiles * self.side_tokens**2))
        return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)

    def several_image_tokens(self, width: int, height: int, budget: int | None) -> int:
        """One tile and a line end."""
        return self.whole_tokens + 1

    def configured(self, config: Mapping[str, Any], processor: Mapping[str, Any]) -> "LlavaOnevisionTokens":
        """With the processor's grids and sizes."""
        tokens = whole_number(processor, "num_image_tokens", default=self.whole_tokens)
        aspect = processor.get("vision_aspect_ratio")
        aspect = f"anyres_max_{self.most_tiles}" if aspect is None else str(aspect)
        found = re.fullmatch(r"anyres_max_([0-9]{1,3})", aspect)
        edge = self.edge(processor)
        if found is None or not int(found[1]):
            raise SettingsError(f"vision_aspect_ratio must be anyres_max_N, not {aspect[:40]!r}")
        return replace(
            self,
            grids=pinpoints(processor, self.grids, edge),
            tile_edge=edge,
            side_tokens=math.isqrt(tokens),
            whole_tokens=tokens,
            most_tiles=int(found[1]),
        )


def pinpoints(processor: Mapping[str, Any], default: Grids, edge: int) -> Grids:
    """`image_grid_pinpoints` of a processor whose tiles have sides of `edge` pixels.

    Raises:
        SettingsError: it is not a list of pairs of whole numbers, none of them less than `edge`.
    """
    values = processor.get("image_grid_pinpoints")
    if values is None:
        return default
    if not isinstance(values, list | tuple) or not values or not all(map(is_pair, values)):
        raise SettingsError(f"image_grid_pinpoints must be pairs of heights and widths, not {str(values)[:40]!r}")
    if min(map(min, values)) < edge:
        raise SettingsError(f"image_grid_pinpoints must not be less than {edge}, the side of a tile")
    return tuple((pair[0], pair[1]) for pair in values)


def is_edge(value: Any) -> bool:
    """Whether a value is a side of a grid in pixels."""
    return type(value) is int and 0 < value <= LARGEST_EDGE


def is_pair(value: Any) -> bool:
    """Whether a value is a height and a width in pixels."""
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(is_edge, value))


LLAVA_NEXT = LlavaNextTokens(
    name="llava_next",
    model_types=("llava_next",),
    chat=LlavaNextChat(
        system="",
        user="[INST] ",
        assistant=" [/INST]",
        end_of_turn="</s>",
        image_tag="<image>",
        after_role="",
        after_end=" ",
        after_images="",
        before_text=" ",
        images_first=True,
        plain_roles=True,
    ),
    other_special=("<s>", "<unk>", "<pad>"),
    estimate=TextEstimate(per_turn=10, per_row=1),
    ids_at_start=1,
    max_budget=36,
    takes_suggestion=False,
)

LLAVA_ONEVISION = LlavaOnevisionTokens(
    name="llava_onevision",
    model_types=("llava_onevision",),
    chat=replace(CHATML, after_image="\n", images_first=True),
    other_special=("<|im_start|>", "<|endoftext|>", "<video>"),
    estimate=TextEstimate(per_turn=10, per_row=0),
    max_budget=36,
    takes_suggestion=False,
    grids=UP_TO_SIX,
    tile_edge=384,
    side_tokens=27,
    whole_tokens=729,
)

FAMILIES = (LLAVA_NEXT, LLAVA_ONEVISION)
