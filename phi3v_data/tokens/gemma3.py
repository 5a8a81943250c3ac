"""Gemma 3: chat format and image tokens. Every image is resized to one size and has 256 tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from phi3v_data.tokens.chat import ChatFormat, TurnText
from phi3v_data.tokens.family import ImageText, SettingsError, TextEstimate, TokenFamily, whole_number

BEGIN, END = "<start_of_image>", "<end_of_image>"


@dataclass(frozen=True)
class Gemma3Chat(ChatFormat):
    """A system message is the beginning of the first user's text."""

    def prompt_parts(self, turn: TurnText, *, system: str = "", begins: bool = True) -> list[str]:
        """See `ChatFormat.prompt_parts`."""
        parts = self.user_parts(turn)
        opening = f"{system}\n\n" if begins and system else ""
        parts[0] = f"{self.begin if begins else ''}{self.user}{self.after_role}{opening}{parts[0]}"
        parts[-1] += f"{self.end_of_turn}{self.after_end}{self.assistant}{self.after_role}"
        return parts


@dataclass(frozen=True)
class Gemma3Tokens(TokenFamily):
    """Token counts of Gemma 3; no image budget.

    Args:
        tokens_per_image: image tokens of an image, its markers left out.
    """

    tokens_per_image: int = 256

    def image_tokens(self, width: int, height: int, budget: int | None) -> int:
        """All images alike: with a marker on both sides and an empty line before and after."""
        self.check_budget(budget)
        return self.tokens_per_image + 4

    def image_text(self, width: int, height: int, budget: int | None, *, several: bool = False) -> ImageText:
        """Image tokens between markers and empty lines."""
        return ImageText(((f"\n\n{BEGIN}", self.tokens_per_image),), f"{END}\n\n")

    def configured(self, config: Mapping[str, Any], processor: Mapping[str, Any]) -> "Gemma3Tokens":
        """With the processor's tokens per image.

        Raises:
            SettingsError: `do_pan_and_scan`, which cuts further images out of one, is on.
        """
        if processor.get("do_pan_and_scan"):
            raise SettingsError("do_pan_and_scan is not supported: set it to false in preprocessor_config.json")
        return replace(
            self, tokens_per_image=whole_number(processor, "image_seq_length", default=self.tokens_per_image)
        )


GEMMA3 = Gemma3Tokens(
    name="gemma3",
    model_types=("gemma3",),
    chat=Gemma3Chat(
        system="",
        user="<start_of_turn>user",
        assistant="<start_of_turn>model",
        end_of_turn="<end_of_turn>",
        image_tag=BEGIN,
        image_token="<image_soft_token>",
        after_images="",
        begin="<bos>",
        strips="texts",
        trains_after_end=True,
    ),
    other_special=(END, "<start_of_turn>", "<bos>", "<eos>", "<pad>", "<unk>"),
    estimate=TextEstimate(per_turn=10, per_row=1),
    takes_suggestion=False,
)

FAMILIES = (GEMMA3,)
