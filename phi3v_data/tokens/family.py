"""A model family as the validator needs it: the tokens of an image, the texts of a row, the special strings.

It needs neither torch nor transformers. A family is a module-level object that the entry point group
`phi3v_data.token_families` names; `phi3v_data.tokens.registry` finds it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

from phi3v_data.errors import UserError
from phi3v_data.tokens.chat import ChatFormat, TurnText


class BudgetError(UserError, ValueError):
    """An image budget that a family does not take."""


class SettingsError(UserError, ValueError):
    """A value in a processor's files that a family does not take."""


class ImageShapeError(ValueError):
    """The image processor of a family cannot take an image of this width and height."""


class ImageText(NamedTuple):
    """The text that an image tag becomes: texts, each with the number of image tokens behind it, then `end`.

    `(("", 256),)` are 256 image tokens and nothing else.
    """

    parts: tuple[tuple[str, int], ...]
    end: str = ""


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
        max_budget: largest image budget; None for a family without one.
        default_budget: the budget where neither the user nor the data set names one; None: that of the processor.
        budget_option: the option of the image budget, without its dashes.
        other_options: further options of images, each with the field here that it sets.
        takes_suggestion: the tile budget that a data set suggests is meant for this family.
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
    budget_option: str = "num_crops"
    other_options: tuple[str, ...] = ()
    takes_suggestion: bool = True

    @abstractmethod
    def image_tokens(self, width: int, height: int, budget: int | None) -> int:
        """Ids that stand in the sequence for an image of `width` x `height` pixels under an image budget.

        Raises:
            ImageShapeError: the image processor cannot take an image of this shape.
        """

    def several_image_tokens(self, width: int, height: int, budget: int | None) -> int:
        """The same for an image of a sample that has several, if they are counted in another way."""
        return self.image_tokens(width, height, budget)

    @property
    def several_differ(self) -> bool:
        """Whether `several_image_tokens` differs from `image_tokens`."""
        return type(self).several_image_tokens is not TokenFamily.several_image_tokens

    def image_text(self, width: int, height: int, budget: int | None, *, several: bool = False) -> ImageText:
        """The text that an image tag becomes; `several`: the sample has several images."""
        count = self.several_image_tokens if several else self.image_tokens
        return ImageText((("", count(width, height, budget)),))

    def image_tiles(self, width: int, height: int, budget: int | None, *, several: bool = False) -> int:
        """Inputs of the vision tower that an image becomes: tiles, or one where there are none."""
        return 1

    def image_words(self, width: int, height: int, budget: int | None) -> str:
        """The layout of an image in words, to follow its size; empty if there is nothing to say."""
        return ""

    def configured(self, config: Mapping[str, Any], processor: Mapping[str, Any]) -> Self:
        """The family with the settings of a model directory.

        Args:
            config: the parsed `config.json`.
            processor: the image processor's values, with those of `processor_config.json` that are not its own.

        Raises:
            SettingsError: a value that the family does not take.
        """
        return self

    @property
    def own_budget(self) -> int | None:
        """The image budget where none is given: that of the processor, once `configured`; None if there is none."""
        return self.default_budget

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
            pieces += self.chat.prompt_parts(turn, system=system, begins=index == 0)
            pieces.append(self.chat.answer_text(turn.assistant, last=index == len(turns) - 1))
            added += self.ids_after_image * turn.num_images
        return [piece for piece in pieces if piece], added

    def with_options(self, options: Mapping[str, int]) -> tuple[Self, int | None]:
        """The family under the options of images that were given, and the image budget among them, None if not given.

        Raises:
            BudgetError: an option that the family does not have, or a value that it does not take.
        """
        family, budget = self, None
        for name, value in options.items():
            if name == self.budget_option and self.max_budget is not None:
                self.check_budget(value)
                budget = value
            elif name in self.other_options:
                changes: dict[str, Any] = {name: value}
                family = replace(family, **changes)
            else:
                raise BudgetError(f"--{name} {value}: {self.why_not(name)}")
        return family, budget

    def why_not(self, option: str) -> str:
        """Why the family does not have an option of images, and which one it has."""
        if self.max_budget is None:
            return f"the model family {self.name} has no image budget: leave {option} out"
        return f"images of the model family {self.name} are limited by --{self.budget_option}: give that instead"

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
        if suggested is None or not self.takes_suggestion:
            return self.default_budget
        return min(suggested, self.max_budget)

    def check_budget(self, budget: int | None) -> None:
        """Raise BudgetError unless the family takes this image budget; None for a family without one."""
        if self.max_budget is not None:
            check_budget(budget, self.max_budget, self.budget_option)
        elif budget is not None:
            raise BudgetError(f"the model family {self.name} has no image budget: leave num_crops out")


def check_budget(budget: int | None, largest: int, option: str = "num_crops") -> None:
    """Raise BudgetError unless `budget` is a whole number from 1 to `largest`."""
    if isinstance(budget, bool) or not isinstance(budget, int) or not 1 <= budget <= largest:
        raise BudgetError(f"{option} must be a whole number from 1 to {largest}, not {budget!r}")


def whole_number(values: Mapping[str, Any], *keys: str, default: int, least: int = 1, largest: int = 2**31 - 1) -> int:
    """A whole number from `least` to `largest` at a path of keys in a processor's values; `default` if none is there.

    Raises:
        SettingsError: the value is anything else.
    """
    value: Any = values
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= largest:
        raise SettingsError(
            f"{'.'.join(keys)} must be a whole number from {least} to {largest}, not {str(value)[:40]!r}"
        )
    return value
