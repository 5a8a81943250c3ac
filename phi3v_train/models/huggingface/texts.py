"""A conversation as text, cut at its generation points: by a family's chat format, or by any chat template."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from phi3v_data.schema import Turn
from phi3v_data.tokens.chat import ChatFormat
from phi3v_train.models.chat_rendering import TemplateError, render
from phi3v_train.models.renderer import PromptError, turn_text

Message = dict[str, Any]


class Segment(NamedTuple):
    """A turn: its text up to the generation point with a tag for each image, and its answer with what ends it.

    The first `trained` characters of `answer` are trained. `answer` is None if there is none yet.
    """

    prompt: str
    answer: str | None
    trained: int = 0


class Texts(Protocol):
    """Turns a conversation into text."""

    def __call__(self, turns: Sequence[Turn], answers: Sequence[str], system: str = "") -> list[Segment]:
        """The segments of all turns; `answers` may lack the last one.

        Raises:
            PromptError: the conversation cannot be written.
        """


@dataclass(frozen=True)
class ChatTexts:
    """Writes by a chat format."""

    chat: ChatFormat

    def __call__(self, turns: Sequence[Turn], answers: Sequence[str], system: str = "") -> list[Segment]:
        """See `Texts`."""
        segments, first_image, last = [], 1, len(turns) - 1
        for index, turn in enumerate(turns):
            prompt = self.chat.turn_prompt(turn_text(turn), system=system, first_image=first_image, begins=index == 0)
            first_image += len(turn.images)
            answer = None
            trained = 0
            if index < len(answers):
                answer = self.chat.answer_text(answers[index], last=index == last)
                ending = len(self.chat.answer_ending(last=index == last))
                trained = len(answer) - ending + len(self.chat.supervised_ending(last=index == last))
            segments.append(Segment(prompt, answer, trained))
        return segments


@dataclass(frozen=True)
class TemplateTexts:
    """Writes by a chat template, and checks that each prompt begins with the text before it.

    An answer is trained up to the marker that ends it, found by `end_of_turn`; without one, all of it.
    """

    tokenizer: Any
    template: str
    end_of_turn: str = ""

    def __call__(self, turns: Sequence[Turn], answers: Sequence[str], system: str = "") -> list[Segment]:
        """See `Texts`."""
        messages: list[Message] = [message("system", [text_item(system)])] if system else []
        segments, before = [], ""
        for index, turn in enumerate(turns):
            messages.append(message("user", user_items(turn)))
            prompt = self.render(messages, index, generation=True)
            start = common_start(before, prompt)
            if start < len(before.rstrip()):
                error = PromptError(
                    "the chat template writes earlier turns in another way once a further turn follows, so a "
                    "conversation of several turns cannot be trained as one sample: give each turn a row of its own"
                )
                error.turn = index
                raise error
            if index >= len(answers):
                segments.append(Segment(prompt[len(before) :], None))
                break
            messages.append(message("assistant", [text_item(answers[index])]))
            whole = self.render(messages, index, generation=False)
            if not whole.startswith(prompt):
                error = PromptError("the chat template writes an answer that does not follow its generation prompt")
                error.turn = index
                raise error
            answer = whole[len(prompt) :]
            segments.append(Segment(prompt[len(before) :], answer, self.trained(answer, answers[index])))
            before = whole
        return segments

    def render(self, messages: list[Message], turn: int, *, generation: bool) -> str:
        """The text of some messages.

        Raises:
            PromptError: whatever the template raises, or it exceeds the limits.
        """
        try:
            return render(self.template, messages, generation=generation, names=self.tokenizer.special_tokens_map)
        except TemplateError as problem:
            error = PromptError(f"the chat template fails: {problem}")
            error.turn = turn
            raise error from None

    def trained(self, answer: str, stored: str) -> int:
        """Characters of an answer's text that are trained."""
        start = answer.rfind(stored.strip()) + len(stored.strip())
        end = answer.find(self.end_of_turn, start) if self.end_of_turn else -1
        return len(answer) if end < 0 else end + len(self.end_of_turn)


def message(role: str, items: list[Message]) -> Message:
    """A message as chat templates of vision-language models take it."""
    return {"role": role, "content": items}


def text_item(text: str) -> Message:
    """A text of a message."""
    return {"type": "text", "text": text}


def user_items(turn: Turn) -> list[Message]:
    """Images and texts of a user's message, in their order."""
    items: list[Message] = []
    position = 0
    for offset in turn.image_offsets or (0,) * len(turn.images):
        if offset > position:
            items.append(text_item(turn.user[position:offset]))
        items.append({"type": "image"})
        position = offset
    if position < len(turn.user) or not items:
        items.append(text_item(turn.user[position:]))
    return items


def common_start(first: str, second: str) -> int:
    """Number of characters that two texts have in common at their start."""
    if second.startswith(first):
        return len(first)
    return next((index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(second))
