"""The chat format of a model family: its markers, and the texts built from them.

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
from typing import NamedTuple

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
        after_images: follows the images that come before the user's text; images inside the text stand alone.
        end_of_turn: ends each message; an answer is trained up to it.
        after_end: follows `end_of_turn`; trained only behind the last answer.
        end_of_text: ends the last answer of a training sample; empty if the family has none.
        other_stops: further strings at which generation stops, besides `end_of_turn` and `end_of_text`.
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

    @property
    def markers(self) -> tuple[str, ...]:
        """Every marker of the format; the image tag with `{number}` where it is numbered."""
        markers = (self.system, self.user, self.assistant, self.end_of_turn, self.end_of_text, self.image_tag)
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
        offsets = turn.offsets or (0,) * turn.num_images
        leading = sum(offset == 0 for offset in offsets)
        parts = [""] * leading
        before, position = self.after_images if leading else "", 0
        for offset in offsets[leading:]:
            parts.append(before + turn.user[position:offset])
            before, position = "", offset
        return [*parts, before + turn.user[position:]]

    def prompt_parts(self, turn: TurnText, *, system: str = "") -> list[str]:
        """The text of a turn up to its generation point, cut at its image tags; `system` only for the first turn."""
        opening = f"{self.system}{self.after_role}{system}{self.end_of_turn}{self.after_end}" if system else ""
        parts = self.user_parts(turn)
        parts[0] = f"{opening}{self.user}{self.after_role}{parts[0]}"
        parts[-1] += f"{self.end_of_turn}{self.after_end}{self.assistant}{self.after_role}"
        return parts

    def user_text(self, turn: TurnText, first_image: int = 1) -> str:
        """The user's text with its image tags, the first of which has the number `first_image`."""
        return self._with_tags(self.user_parts(turn), first_image)

    def turn_prompt(self, turn: TurnText, *, system: str = "", first_image: int = 1) -> str:
        """The text of a turn up to its generation point; `system` only for the first turn."""
        return self._with_tags(self.prompt_parts(turn, system=system), first_image)

    def answer_ending(self, *, last: bool) -> str:
        """The text after an answer; `last`: it is the last one of a training sample."""
        return self.end_of_turn + self.after_end + (self.end_of_text if last else "")

    def supervised_ending(self, *, last: bool) -> str:
        """The beginning of `answer_ending` that is trained along with the answer."""
        return self.answer_ending(last=True) if last else self.end_of_turn

    def answer_text(self, answer: str, *, last: bool) -> str:
        """An answer with the text after it."""
        return answer + self.answer_ending(last=last)

    def conversation_text(self, turns: Sequence[TurnText], *, system: str = "") -> str:
        """The whole text of a training sample, with one tag per image."""
        text, first_image = "", 1
        for index, turn in enumerate(turns):
            text += self.turn_prompt(turn, system="" if index else system, first_image=first_image)
            text += self.answer_text(turn.assistant, last=index == len(turns) - 1)
            first_image += turn.num_images
        return text

    def _with_tags(self, parts: Sequence[str], first_image: int) -> str:
        text = parts[0]
        for number, part in enumerate(parts[1:], first_image):
            text += self.numbered_tag(number) + part
        return text


def marker_pattern(marker: str) -> str:
    """A regular expression for a marker; `{number}` becomes a group of digits."""
    return r"(\d+)".join(map(re.escape, marker.split(NUMBER)))
