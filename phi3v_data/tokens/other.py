"""Any other model: its image tokens are not known without its processor, and are counted as none."""

from dataclasses import dataclass

from phi3v_data.tokens.chat import ChatFormat
from phi3v_data.tokens.family import TokenFamily


@dataclass(frozen=True)
class OtherTokens(TokenFamily):
    """Text tokens alone."""

    def image_tokens(self, width: int, height: int, budget: int | None) -> int:
        """None are counted."""
        return 0


OTHER = OtherTokens(
    name="other",
    model_types=(),
    chat=ChatFormat(system="", user="", assistant="", end_of_turn="", image_tag="<image>", plain_roles=True),
    takes_suggestion=False,
)

FAMILIES = (OTHER,)
