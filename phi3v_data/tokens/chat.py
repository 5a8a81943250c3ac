"""The chat format of a model family: its markers, and the texts built from them.

    {begin}                                                                   once, at the start of a sample
    {system}{after_role}SYSTEM{end_of_turn}{after_end}                        where there is a system message
    {user}{after_role}IMAGES AND USER{end_of_turn}{after_end}{assistant}{after_role}      the prompt of a turn
    ANSWER{end_of_turn}{after_end}                                            its answer
    {end_of_text}                                                             once, behind the last answer

Encoding, generation, token counts and the chat template of a family all come from its one `ChatFormat`, so changing a
marker is one edit.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

NUMBER = "{number}"
"""Placeholder of the number in an image tag or a special string, such as `<|image_{number}|>`."""


class TurnText(NamedTuple):
    """The texts of a turn and the offsets of its images in `user`; without offsets all images come first."""

    user: str
    assistant: str = ""
    num_images: int = 0
    offsets: Sequence[int] = ()


@dataclass(frozen=True)
class ChatFormat:
    """Markers of a conversation and the texts built from them.

    Args:
        image_tag: represents one image in a prompt; with `{number}`, images are numbered from 1 over all turns.
        before_image: precedes each image tag.
        after_image: follows each image tag.
        after_images: follows the images that come before the user's text; images inside the text stand alone.
        images_first: the template writes all images of a turn before its text, wherever they are in the row.
        end_of_turn: ends each message; an answer is trained up to it.
        after_end: follows `end_of_turn`; trained only behind the last answer.
        end_of_text: ends the last answer of a training sample; empty if the family has none.
        other_stops: further strings at which generation stops, besides `end_of_turn` and `end_of_text`.
        plain_roles: the strings that begin messages are plain text, which may be in any text.
        begin: begins a sample.
        default_system: the system message of rows that have none.
        before_text: precedes a text that begins a message, after the role; with an answer, it is trained.
        answer_prefix: ends the prompt of every turn, such as an empty block of thoughts; it is not trained.
        image_token: represents a part of an image in the sequence, if that is not `image_tag` itself.
        strips: the template strips white space around every text, also between images, or around whole messages.
        trains_after_end: `after_end` is trained behind every answer.
    """

    system: str
    user: str
    assistant: str
    end_of_turn: str
    image_tag: str
    end_of_text: str = ""
    after_role: str = "\n"
    after_end: str = "\n"
    after_images: str = "\n"
    other_stops: tuple[str, ...] = ()
    before_image: str = ""
    after_image: str = ""
    images_first: bool = False
    plain_roles: bool = False
    begin: str = ""
    default_system: str = ""
    before_text: str = ""
    answer_prefix: str = ""
    image_token: str = ""
    strips: Literal["", "texts", "messages"] = ""
    trains_after_end: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """Every marker of the format; the image tag with `{number}` where it is numbered."""
        roles = () if self.plain_roles else (self.system, self.user, self.assistant)
        markers = (*roles, self.end_of_turn, self.end_of_text, self.image_tag, self.image_token)
        return tuple(dict.fromkeys(marker for marker in markers if marker))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Strings at which generation stops."""
        return tuple(text for text in (self.end_of_text, *self.other_stops, self.end_of_turn) if text)

    @property
    def image_pattern(self) -> re.Pattern[str]:
        """Regular expression for an image tag; the number of a numbered tag is group 1."""
        return re.compile(marker_pattern(self.image_tag))

    def numbered_tag(self, number: int) -> str:
        """The tag of image `number`, counted from 1 through all turns."""
        return self.image_tag.replace(NUMBER, str(number))

    def user_parts(self, turn: TurnText) -> list[str]:
        """The user's text cut at its image tags: one part more than there are images."""
        offsets = () if self.images_first else turn.offsets
        offsets = offsets or (0,) * turn.num_images
        texts = [turn.user[start:end] for start, end in pairwise((0, *offsets, len(turn.user)))]
        if self.strips == "texts":
            texts = [text.strip() for text in texts]
        elif self.strips == "messages":
            texts[0] = texts[0].lstrip()
            texts[-1] = texts[-1].rstrip()
        leading = sum(offset == 0 for offset in offsets)
        texts[leading] = (self.after_images if leading else self.before_text) + texts[leading]
        parts = [text + self.before_image for text in texts[:-1]] + texts[-1:]
        return [*parts[:1], *(self.after_image + part for part in parts[1:])]

    def opening(self, system: str) -> str:
        """The text before the first user's message, with the system message of a row or the default one."""
        text = system or self.default_system
        if self.strips == "messages":
            text = text.strip()
        if not text:
            return self.begin
        return f"{self.begin}{self.system}{self.after_role}{self.before_text}{text}{self.end_of_turn}{self.after_end}"

    def prompt_parts(self, turn: TurnText, *, system: str = "", begins: bool = True) -> list[str]:
        """The text of a turn up to its generation point, cut at its image tags.

        `begins`: it is the first turn of a sample, whose system message is `system`.
        """
        parts = self.user_parts(turn)
        parts[0] = f"{self.opening(system) if begins else ''}{self.user}{self.after_role}{parts[0]}"
        parts[-1] += f"{self.end_of_turn}{self.after_end}{self.assistant}{self.after_role}{self.answer_prefix}"
        return parts

    def turn_prompt(self, turn: TurnText, *, system: str = "", first_image: int = 1, begins: bool = True) -> str:
        """The text of a turn up to its generation point; see `prompt_parts`."""
        return self._with_tags(self.prompt_parts(turn, system=system, begins=begins), first_image)

    def answer_ending(self, *, last: bool) -> str:
        """The text after an answer; `last`: it is the last one of a training sample."""
        return self.end_of_turn + self.after_end + (self.end_of_text if last else "")

    def supervised_ending(self, *, last: bool) -> str:
        """The beginning of `answer_ending` that is trained along with the answer."""
        if (last and self.end_of_text) or self.trains_after_end:
            return self.answer_ending(last=last)
        return self.end_of_turn

    def answer_text(self, answer: str, *, last: bool) -> str:
        """An answer with the text after it."""
        text = answer.strip() if self.strips else answer
        return self.before_text + text + self.answer_ending(last=last)

    def conversation_text(self, turns: Sequence[TurnText], *, system: str = "") -> str:
        """The whole text of a training sample, with one tag per image."""
        text, first_image = "", 1
        for index, turn in enumerate(turns):
            text += self.turn_prompt(turn, system=system, first_image=first_image, begins=index == 0)
            text += self.answer_text(turn.assistant, last=index == len(turns) - 1)
            first_image += turn.num_images
        return text

    def _with_tags(self, parts: Sequence[str], first_image: int) -> str:
        text = parts[0]
        for number, part in enumerate(parts[1:], first_image):
            text += self.numbered_tag(number) + part
        return text


CHATML = ChatFormat(
    system="<|im_start|>system",
    user="<|im_start|>user",
    assistant="<|im_start|>assistant",
    end_of_turn="<|im_end|>",
    image_tag="<image>",
    after_images="",
)
"""Markers of ChatML, with nothing around an image's tag."""


def marker_pattern(marker: str) -> str:
    """A regular expression for a marker; `{number}` becomes a group of digits."""
    return r"(\d+)".join(map(re.escape, marker.split(NUMBER)))
