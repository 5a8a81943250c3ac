"""Formats whose messages are texts or lists of blocks, as OpenAI's; a subclass is a map of fields."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from phi3v_data.formats.base import RowFormat
from phi3v_data.formats.chat import Chat, Fault, ImageRef, Message, Part, Reading, Role, Written
from phi3v_data.formats.fields import (
    BASE64,
    as_block,
    as_data_url,
    extra_columns,
    extras,
    image_refs,
    json_text,
    list_field,
    role_of,
    text_field,
)
from phi3v_data.formats.newer import carried, has_calls, openai_messages, parsed_json
from phi3v_data.messages import counted, shown

ROLES: Mapping[str, Role] = {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


@dataclass(frozen=True)
class BlockFormat(RowFormat):
    """Messages under `messages`, each with `role` and `content`, or with `from` and `value`."""

    message_keys: ClassVar[Sequence[str]] = ("messages",)
    roles_read: ClassVar[Mapping[str, Role]] = ROLES
    image_types: ClassVar[Sequence[str]] = ("image",)  # values of `type` of a block that is an image
    image_values: ClassVar[Sequence[str]] = ()  # keys of an image block that may hold the reference
    image_columns: ClassVar[Sequence[str]] = ()  # images of blocks without a reference, in order; the first is written
    weight_key: ClassVar[str] = ""
    tools_key: ClassVar[str] = ""
    carries_pairs: ClassVar[bool] = False
    carries_tools: ClassVar[bool] = False
    keeps: ClassVar[Sequence[str]] = ()
    texts_take_images: ClassVar[bool] = False  # a user message that is a text may be the place of the row's images

    @property
    def own_columns(self) -> tuple[str, ...] | None:
        """As `TaggedFormat.own_columns`; rows without them are read by `plain_blocks.PlainBlocks`."""
        return ()

    def read(self, row: Mapping[str, Any]) -> Reading:
        faults: list[Fault] = []
        key = next((key for key in self.message_keys if key in row), self.message_keys[0])
        found = list_field(row, key, faults)
        if found is None:
            return Reading(None, faults)
        images, field = self.images_of(row, faults)
        messages = self.placed(self.messages_in(found, key, faults), images, faults, field, row)
        return Reading(self.chat_of(messages, row), faults)

    def chat_of(self, messages: tuple[Message, ...], row: Mapping[str, Any]) -> Chat:
        """The conversation with the other fields of its row."""
        return Chat(messages, tools=json_text(row.get(self.tools_key)) if self.tools_key else "", **extras(row))

    def images_of(self, row: Mapping[str, Any], faults: list[Fault]) -> tuple[list[ImageRef], str]:
        """Images of the blocks without a reference, and their column."""
        if not self.image_columns:
            return [], ""
        key = next((key for key in self.image_columns if row.get(key) not in (None, "", [])), self.image_columns[0])
        return image_refs(row.get(key), key, faults), key

    def messages_in(self, values: Sequence[Any], where: str, faults: list[Fault]) -> list[Message]:
        """The messages of an array; images without a reference have the value ''."""
        messages: list[Message] = []
        open_ids: list[Any] = []  # of the calls whose results have not come
        for number, value in enumerate(values):
            field = f"{where}[{number}]"
            if not isinstance(value, Mapping):
                faults.append(Fault("wrong-type", field, f"a message is {shown(value)}, not an object"))
                continue
            role_key = "from" if "from" in value and "role" not in value else "role"
            name = text_field(value, role_key, field, faults)
            role = None if name is None else role_of(name, f"{field}.{role_key}", faults, self.roles_read)
            key = "value" if "value" in value and "content" not in value else "content"
            found = value.get("tool_calls") if role == "assistant" else None
            calls = found if isinstance(found, list | tuple) else []
            if found is not None and not isinstance(found, list | tuple):
                faults.append(
                    Fault("wrong-type", f"{field}.tool_calls", f"'tool_calls' is {shown(found)}, not an array")
                )
            parts = [] if calls and value.get(key) is None else self.parts_of(value, field, faults, key)
            if role is not None and (parts or not calls):
                messages.append(Message(role, tuple(parts), self.weight_of(value, field, faults), f"{field}.{key}"))
            if role == "tool":
                self._check_id(value, field, open_ids, faults)
            for index, call in enumerate(calls):
                messages.append(Message("tool_call", (json_text(call),), 1, f"{field}.tool_calls[{index}]"))
            if calls:
                open_ids = [call.get("id") for call in calls if isinstance(call, Mapping)]
        return messages

    @staticmethod
    def _check_id(message: Mapping[str, Any], where: str, open_ids: list[Any], faults: list[Fault]) -> None:
        """Compare the id of a result with that of the next call: their order is all that a sample keeps."""
        expected = open_ids.pop(0) if open_ids else None
        given = message.get("tool_call_id")
        if given is not None and given != expected:
            faults.append(
                Fault(
                    "wrong-type",
                    f"{where}.tool_call_id",
                    f"the id {shown(given)} is not that of the next call, {shown(expected)}",
                    "give the results in the order of the calls",
                )
            )

    def placed(
        self,
        messages: Sequence[Message],
        images: Sequence[ImageRef],
        faults: list[Fault],
        field: str,
        row: Mapping[str, Any],
    ) -> tuple[Message, ...]:
        """The messages with the images of the row at the blocks without a reference, in order."""
        places = [image.field for message in messages for image in message.images if not image.value]
        if len(places) != len(images):
            faults.append(
                Fault(
                    "image-count",
                    places[0] if places and field not in row else field,
                    f"the messages have {counted(len(places), 'image block')} for {counted(len(images), 'image')}",
                    "give one image block per image, where the image belongs",
                )
            )
        if not places:
            return tuple(messages)
        rest = iter(images)

        def fill(part: Part) -> Part | None:
            return next(rest, None) if isinstance(part, ImageRef) and not part.value else part

        return tuple(
            replace(message, parts=tuple(part for part in map(fill, message.parts) if part is not None))
            for message in messages
        )

    def parts_of(self, message: Mapping[str, Any], where: str, faults: list[Fault], key: str = "content") -> list[Part]:
        """Texts and images of a message; an image without a reference has the value ''."""
        content = message.get(key)
        field = f"{where}.{key}"
        if key not in message:
            faults.append(Fault("missing-field", field, f"'{key}' is missing"))
            return []
        if isinstance(content, str):
            return [content] if content else []
        if not isinstance(content, list | tuple):
            faults.append(Fault("wrong-type", field, f"'{key}' is {shown(content)}, not a text or blocks"))
            return []
        parts: list[Part] = []
        for number, block in enumerate(content):
            place = f"{field}[{number}]"
            block = as_block(block)
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
                value = as_data_url(block[key]) if key == BASE64 else block[key]
                return image_refs(value, f"{where}.{key}", faults)
        if self.image_columns:
            return [ImageRef("", where)]
        faults.append(Fault("missing-field", where, f"an image block has none of {', '.join(self.image_values)}"))
        return []

    def plain_image(self, block: Mapping[str, Any]) -> tuple[str, str] | None:
        """The reference of a usual image block, or '' for the next image of the row, and its path in the block.

        None if the block needs a closer look. A class that overrides `image_of` overrides this method, too.
        """
        for key in self.image_values:
            value = block.get(key)
            if value is not None:
                if type(value) is not str or not value:
                    return None
                return as_data_url(value) if key == BASE64 else value, f".{key}"
        return ("", "") if self.image_columns else None

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
        tools = self.carries_tools and (not has_calls(chat.messages) or openai_messages(chat.messages) is not None)
        chat = carried(chat, lost, self.always, pairs=self.carries_pairs, tools=tools)
        if not self.weight_key and any(message.weight == 0 for message in chat.messages):
            lost.append("weight")
        row, left_out = extra_columns(chat, self.keeps, self.always)
        row |= self.written_columns(chat)
        messages: Sequence[Message | dict[str, Any]] = chat.messages
        if has_calls(chat.messages):
            messages = openai_messages(chat.messages) or messages
        row["messages"] = [
            self.message_written(message) if isinstance(message, Message) else message for message in messages
        ]
        if chat.tools:
            row[self.tools_key] = parsed_json(chat.tools) or chat.tools
        if chat.rejected is not None:
            *prompt, chosen = row.pop("messages")
            row |= {"prompt": prompt, "chosen": [chosen], "rejected": [self.message_written(chat.rejected)]}
        return Written(row, tuple(lost), left_out)

    def written_columns(self, chat: Chat) -> dict[str, Any]:
        """The column of a row's images."""
        return {self.image_columns[0]: [image.value for image in chat.images]} if self.image_columns else {}

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
