"""Conversations and images as model inputs: the part of encoding that depends on the model family.

turn, image layouts   -> prompt        ids up to the generation point, image n as a run of -n
answer                -> answer        ids, and how many of them are trained
image                 -> image_arrays  numpy arrays of one image
all images of a batch -> collate_images, the model's keyword arguments
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from phi3v_data.schema import Turn
from phi3v_data.tokens.chat import TurnText
from phi3v_data.tokens.family import ImageText, TokenFamily

if TYPE_CHECKING:
    from PIL.Image import Image

ImageArrays: TypeAlias = Mapping[str, NDArray[Any]]
"""Model inputs of one image, by name, before images are collated."""

PaddingSide: TypeAlias = Literal["left", "right"]

NOTHING_INSIDE = ImageText(())

NO_LABEL = -100
"""Label of a token that is not trained."""


class PromptError(ValueError):
    """A user's text cannot be encoded, for example because it contains an image tag."""

    turn: int | None = None
    """Index of the turn that it belongs to, where that is known."""


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """An image as the model takes it, known from its size in the file.

    `num_tokens` stand in the sequence, `num_tiles` pass through the vision tower. `facts` (pixels, rows, columns; for
    JSON) and `text` describe it to people. `inside` is the content of the sequence if that is not one run of image
    tokens.
    """

    num_tokens: int
    num_tiles: int = 1
    facts: Mapping[str, int] | None = None
    text: str = ""
    inside: ImageText = NOTHING_INSIDE


@dataclass(frozen=True, slots=True)
class AnswerIds:
    """An answer as the last of a sample: of `ids`, all are trained, or the first `num_trained_last`.

    Where another turn follows, only the first `num_before_turn` of them stand in the sequence, and of these the first
    `num_trained` are trained.
    """

    ids: list[int]
    num_before_turn: int
    num_trained: int
    num_trained_last: int | None = None

    @property
    def num_trained_if_last(self) -> int:
        """How many of the ids are trained as the last ones of a sample."""
        return len(self.ids) if self.num_trained_last is None else self.num_trained_last


class TurnIds(NamedTuple):
    """The ids of a turn: up to its generation point, and its answer, None if there is none yet."""

    prompt: list[int]
    answer: AnswerIds | None


class Renderer(ABC):
    """Turns conversations and images into one family's model inputs.

    Made from a processor; travels to worker processes by pickling. This class writes a conversation as the chat format
    says, every piece of text between images tokenized alone; a family overrides what its processor does differently.
    """

    padding_side: PaddingSide = "right"
    """Side on which training batches are padded; prompts for generation are always padded on the left."""

    def __init__(self, tokens: TokenFamily, processor: Any) -> None:
        self.tokens = tokens
        self.tokenizer = processor.tokenizer
        self.image_processor = processor.image_processor

    @property
    def pad_token_id(self) -> int:
        """Id that fills padded rows."""
        return int(self.tokenizer.pad_token_id)

    @property
    def several_differ(self) -> bool:
        """Whether an image of a sample with several images has another layout than one alone."""
        return self.tokens.several_differ

    def layouts(self, sizes: Sequence[tuple[int, int]], budget: int | None) -> list[ImageLayout]:
        """Layouts of all images (width, height) of a sample.

        Raises:
            ImageShapeError: the image processor cannot take one of this shape.
        """
        return [self.image_layout(width, height, budget) for width, height in sizes]

    @abstractmethod
    def image_layout(self, width: int, height: int, budget: int | None) -> ImageLayout:
        """Layout of an image of `width` x `height` pixels.

        Raises:
            ImageShapeError: the image processor cannot take an image of this shape.
        """

    @abstractmethod
    def image_arrays(self, image: "Image", layout: ImageLayout, budget: int | None) -> ImageArrays:
        """Model inputs of one decoded image, by name; any shapes, as `collate_images` joins them."""

    def conversation(
        self, turns: Sequence[Turn], answers: Sequence[str], layouts: Sequence[ImageLayout], *, system: str = ""
    ) -> list[TurnIds]:
        """Ids of all turns, images in them as `prompt` says; `answers` may lack the last one.

        Raises:
            PromptError: a text cannot be encoded; its `turn` says which.
        """
        result, first = [], 0
        for index, turn in enumerate(turns):
            images = layouts[first : first + len(turn.images)]
            try:
                prompt = self.prompt(turn, images, first_image=first + 1, begins=index == 0, system=system)
            except PromptError as error:
                error.turn = index
                raise
            result.append(TurnIds(prompt, self.answer(answers[index]) if index < len(answers) else None))
            first += len(turn.images)
        return result

    def token_inputs(self, ids: NDArray[np.int64], images: Sequence[ImageArrays]) -> ImageArrays:
        """Further model inputs of a sample that have a value for each token, before it is padded or packed.

        `ids` (T,) are as `prompt` makes them, image n as a run of -n; each array ends in the same T.
        """
        return {}

    def packed_inputs(self, lengths: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Further model inputs of a packed row, whose samples have `lengths` tokens."""
        return {}

    def prompt_inputs(self, ids: NDArray[np.int64], images: Sequence[ImageArrays]) -> ImageArrays:
        """The same for a prompt, as `generate` takes it."""
        return self.token_inputs(ids, images)

    @abstractmethod
    def collate_images(self, images: Sequence[ImageArrays]) -> dict[str, NDArray[Any]]:
        """The model's keyword arguments for all images of a batch (at least one), in order of rows and tags."""

    def prompt(
        self, turn: Turn, images: Sequence[ImageLayout], *, first_image: int, begins: bool, system: str = ""
    ) -> list[int]:
        """Ids of what a turn adds up to its generation point.

        Image n, counted from 1 through all turns, is a run of the id -n (`model_ids` replaces it); the first in this
        turn is `first_image`. The turn that `begins` the sequence, and no other, may have a system message.

        Raises:
            PromptError: the text contains an image tag.
        """
        refuse_tags(self.tokens, turn.user)
        parts = self.tokens.chat.prompt_parts(turn_text(turn), system=system, begins=begins)
        ids = [self.tokenizer.bos_token_id] * self.tokens.ids_at_start if begins else []
        ids += self.text_ids(parts[0])
        for offset, (layout, part) in enumerate(zip(images, parts[1:], strict=True)):
            ids += [-(first_image + offset)] * layout.num_tokens + self.text_ids(part)
        return ids

    def answer(self, text: str) -> AnswerIds:
        """Ids of an answer, which is tokenized apart from its prompt."""
        chat = self.tokens.chat
        ids = self.text_ids(chat.answer_text(text, last=True))
        after_end, end_of_text = self._endings
        return AnswerIds(ids, len(ids) - end_of_text, len(ids) - end_of_text - after_end)

    @cached_property
    def _endings(self) -> tuple[int, int]:
        """Number of ids behind the end of a turn, and at the end of a sample."""
        chat = self.tokens.chat
        texts = (chat.supervised_ending(last=False), chat.answer_ending(last=False), chat.answer_ending(last=True))
        end, after, final = (len(self.text_ids(text)) for text in texts)
        return after - end, final - after

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text without images, nothing added."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []
        return ids

    def model_ids(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The ids that the model takes, of any shape: runs of -n become what it expects for image tokens."""
        return ids


def turn_text(turn: Turn) -> TurnText:
    """A turn as the chat format takes it."""
    return TurnText(turn.user, turn.assistant, len(turn.images), turn.image_offsets)


def refuse_tags(tokens: TokenFamily, text: str) -> None:
    """Refuse a user's text that contains an image tag.

    Raises:
        PromptError: it does.
    """
    found = tokens.chat.image_pattern.search(text)
    if found:
        raise PromptError(f"the text contains {found.group()}, which stands for an image: take it out of the text")
