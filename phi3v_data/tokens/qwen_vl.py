"""Qwen2.5-VL, Qwen3-VL and Qwen3.5: chat format and image tokens.

An image is resized so that both sides are multiples of `factor` pixels and its area is between two bounds; a token
stands for `factor` x `factor` pixels. The rounding is that of `smart_resize` in transformers' Qwen2-VL.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from phi3v_data.tokens.chat import CHATML
from phi3v_data.tokens.family import (
    BudgetError,
    ImageShapeError,
    SettingsError,
    TextEstimate,
    TokenFamily,
    whole_number,
)

LONGEST_RATIO = 200
LARGEST_AREA = 2**31 - 1

QWEN_CHAT = replace(
    CHATML,
    image_tag="<|image_pad|>",
    before_image="<|vision_start|>",
    after_image="<|vision_end|>",
    trains_after_end=True,
)

OTHER_SPECIAL = (
    *("<|endoftext|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|vision_pad|>", "<|video_pad|>", "<|im_start|>"),
    *("<|vision_start|>", "<|vision_end|>"),
)


@dataclass(frozen=True)
class QwenTokens(TokenFamily):
    """Token counts of the Qwen family; the image budget is the largest area of an image, `--max_pixels`.

    Args:
        patch_size: pixels of a side of a patch of the vision tower.
        merge_size: patches of a side of one token.
        min_pixels: smallest area of a resized image.
        max_pixels: largest area of a resized image where no budget is given.
    """

    patch_size: int = 16
    merge_size: int = 2
    min_pixels: int = 256 * 256
    max_pixels: int = 4096 * 4096

    @property
    def factor(self) -> int:
        """Pixels of a side of one token."""
        return self.patch_size * self.merge_size

    @property
    def own_budget(self) -> int:
        """The largest area of an image."""
        return self.max_pixels

    def grid(self, width: int, height: int, budget: int | None) -> tuple[int, int]:
        """Columns and rows of tokens.

        Raises:
            ImageShapeError: one side is over 200 times the other.
        """
        if max(width, height) > LONGEST_RATIO * min(width, height):
            raise ImageShapeError(
                f"an image of {width} x {height} pixels is too narrow: one side may be at most {LONGEST_RATIO} times "
                "the other"
            )
        factor, largest = self.factor, budget or self.max_pixels
        smallest = min(self.min_pixels, largest)
        columns, rows = round(width / factor), round(height / factor)
        if columns * rows * factor**2 > largest:
            scale = math.sqrt(height * width / largest)
            columns, rows = (max(1, math.floor(side / scale / factor)) for side in (width, height))
        elif columns * rows * factor**2 < smallest:
            scale = math.sqrt(smallest / (height * width))
            columns, rows = (math.ceil(side * scale / factor) for side in (width, height))
        return columns, rows

    def image_tokens(self, width: int, height: int, budget: int | None) -> int:
        """One token per `factor` x `factor` pixels of the resized image; see `grid`."""
        columns, rows = self.grid(width, height, budget)
        return columns * rows

    def with_options(self, options: Mapping[str, int]) -> tuple["QwenTokens", int | None]:
        """See `TokenFamily.with_options`; the bounds must be in order.

        Raises:
            BudgetError: they are not.
        """
        family, budget = super().with_options(options)
        if "min_pixels" in options and family.min_pixels > (budget or family.max_pixels):
            most = budget or family.max_pixels
            raise BudgetError(
                f"--min_pixels {family.min_pixels}: is over the largest area of an image, {most:,} pixels"
            )
        return family, budget

    def why_not(self, option: str) -> str:
        """`longest_edge` in a Qwen processor's file is an area."""
        if option == "longest_edge":
            return f"an image of {self.name} is limited by its area: give --max_pixels, a number of pixels"
        return super().why_not(option)

    def configured(self, config: Mapping[str, Any], processor: Mapping[str, Any]) -> "QwenTokens":
        """With the image processor's patch size and bounds; `min_pixels` and `max_pixels` go before `size`."""

        def bound(own: str, edge: str, default: int) -> int:
            within = whole_number(processor, "size", edge, default=default)
            return whole_number(processor, own, default=within)

        least = bound("min_pixels", "shortest_edge", self.min_pixels)
        most = bound("max_pixels", "longest_edge", self.max_pixels)
        if least > most:
            raise SettingsError(f"min_pixels is {least:,}, over max_pixels {most:,}: lower it")
        return replace(
            self,
            patch_size=whole_number(processor, "patch_size", default=self.patch_size),
            merge_size=whole_number(processor, "merge_size", default=self.merge_size),
            min_pixels=least,
            max_pixels=most,
        )


QWEN3_VL = QwenTokens(
    name="qwen3_vl",
    model_types=("qwen3_vl",),
    chat=QWEN_CHAT,
    other_special=OTHER_SPECIAL,
    estimate=TextEstimate(per_turn=10, per_image=2, per_row=0),
    max_budget=LARGEST_AREA,
    budget_option="max_pixels",
    other_options=("min_pixels",),
    takes_suggestion=False,
)

QWEN2_5_VL = replace(
    QWEN3_VL,
    name="qwen2_5_vl",
    model_types=("qwen2_5_vl",),
    chat=replace(QWEN_CHAT, default_system="You are a helpful assistant."),
    estimate=TextEstimate(per_turn=10, per_image=2, per_row=11),
    patch_size=14,
    min_pixels=56 * 56,
    max_pixels=12_845_056,
)

QWEN3_5 = replace(
    QWEN3_VL,
    name="qwen3_5",
    model_types=("qwen3_5",),
    chat=replace(QWEN_CHAT, answer_prefix="<think>\n\n</think>\n\n", strips="messages"),
    other_special=(*OTHER_SPECIAL, "<think>", "</think>"),
    estimate=TextEstimate(per_turn=14, per_image=2, per_row=0),
)

FAMILIES = (QWEN2_5_VL, QWEN3_VL, QWEN3_5)
