"""A model family as the validator needs it: the tokens of an image, the texts of a row, the special strings.

It needs neither torch nor transformers. A family is a module-level object that the entry point group
`phi3v_data.token_families` names; `phi3v_data.tokens.registry` finds it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from phi3v_data.errors import UserError
from phi3v_data.tokens.chat import ChatFormat, TurnText


class BudgetError(UserError, ValueError):
    """A tile budget (`num_crops`) that a family does not take."""


class ImageShapeError(ValueError):
    """The image processor of a family cannot take an image of this width and height."""


@dataclass(frozen=True)
class TextEstimate:
    """Text tokens of a row without a tokenizer: its bytes, and the markers around them.

    Args:
        bytes_per_token: UTF-8 bytes of text per token.
        per_turn: markers and newlines of a turn.
        per_image: ids that stand around an image, those of the image itself left out.
        per_row: ids at both ends of a row.
    """

    bytes_per_token: float = 3.6
    per_turn: int = 12
    per_image: int = 0
    per_row: int = 1


@dataclass(frozen=True)
class TokenFamily(ABC):
    """Token counts and special strings of a model family. Instances must pickle.

    Args:
        name: name of the family, as `--model` takes it.
        model_types: values of `model_type` in `config.json` that the family reads.
        chat: the chat format.
        other_special: special strings of the tokenizer that are not markers of `chat`; `{number}` stands for digits.
        estimate: text tokens without a tokenizer.
        ids_at_start: ids that encoding adds at the start of a row.
        ids_after_image: ids that encoding adds behind each image, those of `image_tokens` left out.
        context_switch: longest sequence, in tokens, before the model switches to its long-context factors.
        max_budget: largest tile budget (`--num_crops`); None for a family without one.
        default_budget: the budget where neither the user nor the data set names one.
    """

    name: str
    model_types: tuple[str, ...]
    chat: ChatFormat
    other_special: tuple[str, ...] = ()
    estimate: TextEstimate = TextEstimate()
    ids_at_start: int = 0
    ids_after_image: int = 0
    context_switch: int | None = None
    max_budget: int | None = None
    default_budget: int | None = None

    @abstractmethod
    def image_tokens(self, width: int, height: int, budget: int | None) -> int:
        """Ids that stand in the sequence for an image of `width` x `height` pixels under a tile budget.

        Raises:
            ImageShapeError: the image processor cannot take an image of this shape.
        """

    @property
    def special_strings(self) -> tuple[str, ...]:
        """Strings that the tokenizer or the processor reads as control tokens; `{number}` stands for digits."""
        return tuple(dict.fromkeys((*self.chat.markers, *self.other_special)))

    def sequence_pieces(self, turns: Sequence[TurnText], *, system: str = "") -> tuple[list[str], int]:
        """The texts of a row that are tokenized apart, none of them empty, and the number of ids added to theirs.

        Image tokens are in neither.
        """
        pieces: list[str] = []
        added = self.ids_at_start
        for index, turn in enumerate(turns):
            pieces += self.chat.prompt_parts(turn, system="" if index else system)
            pieces.append(self.chat.answer_text(turn.assistant, last=index == len(turns) - 1))
            added += self.ids_after_image * turn.num_images
        return [piece for piece in pieces if piece], added

    def choose_budget(self, wanted: int | None, suggested: int | None) -> int | None:
        """The tile budget of a run: the wanted one, else what the data set suggests, else the default.

        A suggestion over `max_budget` counts as that; a family without a budget takes no suggestion.

        Raises:
            BudgetError: the family does not take the wanted budget.
        """
        if wanted is not None:
            self.check_budget(wanted)
            return wanted
        if self.max_budget is None:
            return None
        return self.default_budget if suggested is None else min(suggested, self.max_budget)

    def check_budget(self, budget: int | None) -> None:
        """Raise BudgetError unless the family takes this tile budget; None for a family without one."""
        if self.max_budget is not None:
            check_budget(budget, self.max_budget)
        elif budget is not None:
            raise BudgetError(f"the model family {self.name} has no tile budget: leave num_crops out")


def check_budget(budget: int | None, largest: int) -> None:
    """Raise BudgetError unless `budget` is a whole number from 1 to `largest`."""
    if isinstance(budget, bool) or not isinstance(budget, int) or not 1 <= budget <= largest:
        raise BudgetError(f"num_crops must be a whole number from 1 to {largest}, not {budget!r}")
