"""Chat format and token counts of the toy family, which is unlike Phi-3-vision in all that a family may choose."""

from dataclasses import dataclass
from math import ceil

from phi3v_data.tokens.chat import ChatFormat
from phi3v_data.tokens.family import ImageShapeError, TextEstimate, TokenFamily

PIXELS_PER_TOKEN = 1024
LONGEST_RATIO = 50


@dataclass(frozen=True)
class ToyTokens(TokenFamily):
    """Image tokens by area; no tile budget."""

    def image_tokens(self, width: int, height: int, budget: int | None) -> int:
        """One token per 1,024 pixels, at least one.

        Raises:
            ImageShapeError: one side is over 50 times the other.
        """
        self.check_budget(budget)
        if max(width, height) > LONGEST_RATIO * min(width, height):
            raise ImageShapeError(f"an image of {width} x {height} pixels is too narrow for the toy family")
        return ceil(width * height / PIXELS_PER_TOKEN)


TOY = ToyTokens(
    name="toy",
    model_types=("toy_vl",),
    chat=ChatFormat(
        system="[SYS]",
        user="[ASK]",
        assistant="[ANSWER]",
        end_of_turn="[STOP]",
        image_tag="[IMG]",
        after_role="",
        after_end="",
        after_images="",
    ),
    other_special=("[PAD]",),
    estimate=TextEstimate(bytes_per_token=1, per_turn=4, per_row=0),
)
