"""TRL's conversational format: blocks in the messages, images in a column, in the order of their blocks.

    {"images": ["images/cat.jpg"], "messages": [{"role": "user", "content": [{"type": "image"},
                                                                             {"type": "text", "text": "What is it?"}]},
                                                {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}]}

Every content is written as blocks, and no block has a key `image`: TRL puts all images before the first user message
that is a string; with the key, it does not count the block as a place for an image.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from phi3v_data.formats.blocks import ROLES, BlockFormat
from phi3v_data.formats.chat import Fault, ImageRef, Message, Reading, Role
from phi3v_data.formats.fields import list_field
from phi3v_data.formats.placeholders import IMAGE
from phi3v_data.messages import counted

_PLACE = re.compile(r"(\w+)\[([0-9]+)\]\.(\w+)")  # of the content of a message


@dataclass(frozen=True)
class TRL(BlockFormat):
    """TRL's trainers and transformers' chat templates."""

    name = "trl"
    title = "TRL, transformers"
    consumer = "trl"

    image_columns = ("images", "image")
    tools_key = "tools"
    carries_pairs = True
    image_values = ("image", "url", "path", "base64")
    keeps = ("id", "answers", "group", "meta")
    texts_take_images = True

    @property
    def own_columns(self) -> tuple[str, ...] | None:
        return ("prompt", "completion", "chosen", "rejected")

    def recognizes(self, row: Mapping[str, Any]) -> bool:
        if "prompt" in row and ("completion" in row or ("chosen" in row and "rejected" in row)):
            return True
        messages = row.get("messages")
        if not isinstance(messages, list | tuple) or "images" not in row:
            return False
        if row["images"] and not any(
            not isinstance(text := value.get("content"), str) or IMAGE in text or value.get("role") not in ROLES
            for value in messages
            if isinstance(value, Mapping)
        ):
            return True  # texts without a tag, before the first of which TRL puts the images
        return any(
            isinstance(value, Mapping)
            and "weight" not in value
            and isinstance(content := value.get("content"), list)
            and not any(isinstance(block, str) for block in content)
            for value in messages
        )

    def read(self, row: Mapping[str, Any]) -> Reading:
        if row.get("messages") is not None or not (row.keys() & {"prompt", "chosen"}):
            return super().read(row)
        faults: list[Fault] = []
        answer = "chosen" if row.get("chosen") is not None else "completion"
        prompt = self._side(row, "prompt", "user", faults) if row.get("prompt") is not None else []
        chosen = self._side(row, answer, "assistant", faults)
        rejected = self._side(row, "rejected", "assistant", faults) if answer == "chosen" else []
        is_read = not faults
        if row.get("prompt") is None:  # the prompt is what both sides begin with
            same = 0
            while same < min(len(chosen), len(rejected)) and _is_same(chosen[same], rejected[same]):
                same += 1
            prompt, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
        images, field = self.images_of(row, faults)
        messages = self.placed([*prompt, *chosen], images, faults, field, row)
        chat = self.chat_of(messages, row)
        if answer == "chosen" and len(rejected) == 1 and len(chosen) == 1:
            chat = replace(chat, rejected=rejected[0])
        elif answer == "chosen" and is_read:
            faults.append(Fault("turn-order", "rejected", "chosen and rejected must differ in the last answer only"))
        return Reading(chat, faults)

    def placed(
        self,
        messages: Sequence[Message],
        images: Sequence[ImageRef],
        faults: list[Fault],
        field: str,
        row: Mapping[str, Any],
    ) -> tuple[Message, ...]:
        """As TRL: all images go before the text of the first user message that is a string; without one, to blocks."""
        users = (at for at, message in enumerate(messages) if message.role == "user" and _is_text(message, row))
        user = next(users, None)
        if not images or user is None:
            return super().placed(messages, images, faults, field, row)
        num_blocks = sum(not image.value for message in messages for image in message.images)
        if num_blocks:
            words = f"the messages have {counted(num_blocks, 'image block')} beside a user message that is a text"
            said = f"{words}, before which TRL puts {counted(len(images), 'image')}"
            faults.append(Fault("image-count", field, said, "write all contents as blocks, one image block per image"))
        first = replace(messages[user], parts=(*images, *messages[user].parts))
        rest = (*messages[:user], first, *messages[user + 1 :])
        return tuple(
            replace(message, parts=tuple(part for part in message.parts if isinstance(part, str) or part.value))
            for message in rest
        )

    def _side(self, row: Mapping[str, Any], key: str, role: Role, faults: list[Fault]) -> list[Message]:
        """The messages of one column, which may be a text; images without a reference are placed later."""
        value = row.get(key)
        if isinstance(value, str):
            return [Message(role, (value,) if value else (), field=key)]
        found = list_field(row, key, faults)
        return [] if found is None else list(self.messages_in(found, key, faults))


def _is_text(message: Message, row: Mapping[str, Any]) -> bool:
    """Whether the content of a message is a string in its row."""
    found = _PLACE.fullmatch(message.field)
    if found is None:
        return True  # a prompt that is a text itself
    value = row[found[1]][int(found[2])]
    return isinstance(value.get(found[3]), str)


def _is_same(one: Message, other: Message) -> bool:
    texts = [[part if isinstance(part, str) else part.value for part in message.parts] for message in (one, other)]
    return one.role == other.role and texts[0] == texts[1]
