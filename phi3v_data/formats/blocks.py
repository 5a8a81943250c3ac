"""Formats whose messages are texts or lists of blocks, as OpenAI's; a subclass is a map of fields."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from phi3v_data.formats.base import RowFormat
from phi3v_data.formats.chat import Chat, Fault, ImageRef, Message, Part, Reading, Role, Written
from phi3v_data.formats.fields import extra_columns, extras, image_refs, list_field, role_of, text_field
from phi3v_data.messages import counted, shown

ROLES: Mapping[str, Role] = {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


@dataclass(frozen=True)
class BlockFormat(RowFormat):
    """Messages under `messages`, each with `role` and `content`."""

    roles_read: ClassVar[Mapping[str, Role]] = ROLES
    image_types: ClassVar[Sequence[str]] = ("image",)  # values of `type` of a block that is an image
    image_values: ClassVar[Sequence[str]] = ()  # keys of an image block that may hold the reference
    image_column: ClassVar[str] = ""  # images of blocks without a reference, in order
    weight_key: ClassVar[str] = ""
    tools_key: ClassVar[str] = ""
    keeps: ClassVar[Sequence[str]] = ()

    def read(self, row: Mapping[str, Any]) -> Reading:
        faults: list[Fault] = []
        found = list_field(row, "messages", faults)
        if found is None:
            return Reading(None, faults)
        images = image_refs(row.get(self.image_column), self.image_column, faults) if self.image_column else []
        messages = self.read_messages(found, "messages", images, faults)
        return Reading(Chat(messages, **extras(row)), faults)

    def read_messages(
        self, values: Sequence[Any], where: str, images: Sequence[ImageRef], faults: list[Fault]
    ) -> tuple[Message, ...]:
        """The messages of an array; images of the row go to the blocks without a reference, in order."""
        rest = list(images)
        num_places = 0
        messages = []
        for number, value in enumerate(values):
            field = f"{where}[{number}]"
            if not isinstance(value, Mapping):
                faults.append(Fault("wrong-type", field, f"a message is {shown(value)}, not an object"))
                continue
            name = text_field(value, "role", field, faults)
            role = None if name is None else role_of(name, f"{field}.role", faults, self.roles_read)
            parts: list[Part] = []
            for part in self.parts_of(value, field, faults):
                if isinstance(part, ImageRef) and not part.value:
                    num_places += 1
                    if rest:
                        parts.append(rest.pop(0))
                else:
                    parts.append(part)
            if role is not None:
                messages.append(Message(role, tuple(parts), self.weight_of(value, field, faults), f"{field}.content"))
        if num_places != len(images):
            faults.append(
                Fault(
                    "image-count",
                    self.image_column,
                    f"the messages have {counted(num_places, 'image block')} for {counted(len(images), 'image')}",
                    "give one image block per image, where the image belongs",
                )
            )
        return tuple(messages)

    def parts_of(self, message: Mapping[str, Any], where: str, faults: list[Fault]) -> list[Part]:
        """Texts and images of a message; an image without a reference has the value ''."""
        content = message.get("content")
        field = f"{where}.content"
        if "content" not in message:
            faults.append(Fault("missing-field", field, "'content' is missing"))
            return []
        if isinstance(content, str):
            return [content] if content else []
        if not isinstance(content, list | tuple):
            faults.append(Fault("wrong-type", field, f"'content' is {shown(content)}, not a text or blocks"))
            return []
        parts: list[Part] = []
        for number, block in enumerate(content):
            place = f"{field}[{number}]"
            kind = block.get("type") if isinstance(block, Mapping) else None
            if not isinstance(block, Mapping):
                faults.append(Fault("wrong-type", place, f"a block is {shown(block)}, not an object"))
            elif kind == "text":
                text = text_field(block, "text", place, faults)
                if text:
                    parts.append(text)
            elif kind in self.image_types:
                parts.extend(self.image_of(block, place, faults))
            else:
                types = ", ".join(("text", *self.image_types))
                faults.append(Fault("wrong-type", f"{place}.type", f"a block of type {shown(kind)}, not {types}"))
        return parts

    def image_of(self, block: Mapping[str, Any], where: str, faults: list[Fault]) -> list[ImageRef]:
        """The image of a block: its own reference, or '' for the next image of the row."""
        for key in self.image_values:
            if block.get(key) is not None:
                return image_refs(block[key], f"{where}.{key}", faults)
        if self.image_column:
            return [ImageRef("", where)]
        faults.append(Fault("missing-field", where, f"an image block has none of {', '.join(self.image_values)}"))
        return []

    def weight_of(self, message: Mapping[str, Any], where: str, faults: list[Fault]) -> int:
        """0 if the message is not trained."""
        weight = message.get(self.weight_key, 1) if self.weight_key else 1
        if weight is None or weight in (0, 1):
            return 0 if weight is not None and weight == 0 else 1
        faults.append(
            Fault("wrong-type", f"{where}.{self.weight_key}", f"'{self.weight_key}' is {shown(weight)}, not 0 or 1")
        )
        return 1

    def write(self, chat: Chat) -> Written:
        lost: list[str] = []
        if not self.weight_key and any(message.weight == 0 for message in chat.messages):
            lost.append("weight")
        row, left_out = extra_columns(chat, self.keeps, self.always)
        if self.image_column:
            row[self.image_column] = [image.value for image in chat.images]
        row["messages"] = [self.message_written(message) for message in chat.messages]
        return Written(row, tuple(lost), left_out)

    def message_written(self, message: Message) -> dict[str, Any]:
        """A message of the row."""
        entry: dict[str, Any] = {"role": message.role, "content": self.content_written(message)}
        if self.weight_key and (message.weight == 0 or ("weight" in self.always and message.role == "assistant")):
            entry[self.weight_key] = message.weight
        return entry

    def content_written(self, message: Message) -> Any:
        """The content of a message: blocks in order."""
        return [
            {"type": "text", "text": part} if isinstance(part, str) else self.image_written(part)
            for part in message.parts
        ]

    def image_written(self, image: ImageRef) -> dict[str, Any]:
        """The block of an image."""
        return {"type": "image"}
