"""Phi-3-vision and Phi-3.5-vision: chat format, special strings, image tokens.

The released image processor adds one `<s>` at the start of a prompt and one after every image.
"""

from dataclasses import dataclass

from phi3v_data.tokens.chat import ChatFormat
from phi3v_data.tokens.family import TextEstimate, TokenFamily
from phi3v_data.tokens.phi3v_geometry import MAX_NUM_CROPS, check_num_crops, crop_geometry

CHAT = ChatFormat(
    system="<|system|>",
    user="<|user|>",
    assistant="<|assistant|>",
    end_of_turn="<|end|>",
    end_of_text="<|endoftext|>",
    image_tag="<|image_{number}|>",
    other_stops=("<|assistant|>",),  # it begins a message, which no answer contains
)

OTHER_SPECIAL = (
    "<|image|>",
    "<|placeholder{number}|>",
    *(
        f"<|{name}|>"
        for name in (
            *("tool", "step", "function_output", "tag", "function_call", "raw", "continue", "function_list", "calc"),
            *("code", "summary", "resource", "assistant_mask", "start", "message"),
        )
    ),
    *("</s>", "<s>", "<unk>"),
)
"""Special tokens of the released tokenizers that the chat format does not use."""


@dataclass(frozen=True)
class Phi3VTokens(TokenFamily):
    """Token counts of Phi-3-vision."""

    def image_tokens(self, width: int, height: int, budget: int | None) -> int:
        """Image tokens by the crop geometry; `budget` is `num_crops`, 1 to 16.

        Raises:
            ImageShapeError: one side is over about 336 * num_crops times the other.
            ValueError: `budget` out of range.
        """
        check_num_crops(budget)
        assert budget is not None
        return crop_geometry(width, height, budget).num_tokens


PHI3V = Phi3VTokens(
    name="phi3v",
    model_types=("phi3_v",),
    chat=CHAT,
    other_special=OTHER_SPECIAL,
    estimate=TextEstimate(per_image=3, per_row=2),  # per image: its BOS, and the newline behind several
    ids_at_start=1,
    ids_after_image=1,
    context_switch=4096,  # `original_max_position_embeddings` of the released models
    max_budget=MAX_NUM_CROPS,
    default_budget=MAX_NUM_CROPS,
)

FAMILIES = (PHI3V,)
