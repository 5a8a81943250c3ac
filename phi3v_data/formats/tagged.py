"""Formats whose messages are strings with `<image>` tags; a subclass is a map of fields."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from phi3v_data.formats.base import RowFormat
from phi3v_data.formats.chat import Chat, Fault, ImageRef, Message, Part, Reading, Role, Written
from phi3v_data.formats.fields import ROLES, extra_columns, extras, image_refs, json_text, role_of, text_field
from phi3v_data.formats.newer import calls_alternate, carried, plain_call
from phi3v_data.formats.pairs import Line
from phi3v_data.formats.placeholders import (
    IMAGE,
    INLINE,
    OtherTag,
    fill_tags,
    fill_with,
    has_reserved,
    spell_out,
    text_with_tags,
)
from phi3v_data.messages import shown


@dataclass(frozen=True)
class FieldNames:
    """Names of the fields of a file, in the order in which they are tried, and of its roles."""

    messages: Sequence[str]
    role: Sequence[str]
    content: Sequence[str]
    images: Sequence[str]
    system: str
    tools: str
    roles: Mapping[str, Role]


@dataclass(frozen=True)
class TaggedFormat(RowFormat):
    """Reads any spelling in the lists; writes the first of each list."""

    message_keys: ClassVar[Sequence[str]]
    role_keys: ClassVar[Sequence[str]]
    content_keys: ClassVar[Sequence[str]]
    image_keys: ClassVar[Sequence[str]]
    roles_written: ClassVar[Mapping[Role, str]]
    system_key: ClassVar[str] = ""  # a column that may hold the system message
    weight_key: ClassVar[str] = ""  # of a message: 0 or false if it is not trained
    tools_key: ClassVar[str] = ""
    carries_system: ClassVar[bool] = True
    keeps: ClassVar[Sequence[str]] = ("id",)  # fields that the readers ignore, so that they may be written
    roles_read: ClassVar[Mapping[str, Role]] = ROLES
    carries_pairs: ClassVar[bool] = False
    alternates: ClassVar[bool] = False  # its reader takes one result per call of tools only
    other_tags: ClassVar[Sequence[OtherTag]] = ()  # read where `<image>` does not fit; never written

    @cached_property
    def names(self) -> FieldNames:
        """The names in the file; a subclass with settings of its own overrides it."""
        return FieldNames(
            messages=self.message_keys,
            role=self.role_keys,
            content=self.content_keys,
            images=self.image_keys,
            system=self.system_key,
            tools=self.tools_key,
            roles=self.roles_read,
        )

    @property
    def own_columns(self) -> tuple[str, ...] | None:
        """Columns, and keys of messages, for which this class overrides a method that reads; None: for all rows.

        A row without them is read by `plain.PlainRows` if nothing else about it is unusual. A subclass that overrides
        such a method without this one has all its rows read by its own methods.
        """
        return ()

    def read(self, row: Mapping[str, Any]) -> Reading:
        faults: list[Fault] = []
        lines = self.lines_of(row, faults)
        if lines is None:
            return Reading(None, faults)
        names = self.names
        texts: list[Line] = []
        system = row.get(names.system) if names.system else None
        if system and not isinstance(system, str):
            faults.append(Fault("wrong-type", names.system, f"{shown(names.system)} is {shown(system)}, not a text"))
        elif system:
            if not lines or lines[0][0] != "system":
                texts.append(("system", system, names.system, 1))
            elif lines[0][1] != system:
                said = f"{shown(names.system)} is not the system message among the messages"
                faults.append(Fault("key-ignored", names.system, said, "keep one of the two"))
        texts += lines
        images, field = self.images_of(row, faults)
        parts, wrong = self.fill([(text, where) for _, text, where, _ in texts], images, field)
        messages = tuple(
            Message(role, filled, weight, where) for (role, _, where, weight), filled in zip(texts, parts, strict=True)
        )
        chat = Chat(messages, tools=json_text(row.get(names.tools)) if names.tools else "", **extras(row))
        return Reading(self.with_pair(chat, row, faults), [*faults, *wrong])

    def lines_of(self, row: Mapping[str, Any], faults: list[Fault]) -> list[Line] | None:
        """The messages of a row before their tags are read; None and a fault if the row has none."""
        found = self.messages_of(row, faults)
        if found is None:
            return None
        read = (self.message_of(message, where, faults) for where, message in found)
        return [line for line in read if line is not None]

    def messages_of(self, row: Mapping[str, Any], faults: list[Fault]) -> list[tuple[str, Any]] | None:
        """Messages of a row and their paths; None and a fault if there is no array of them."""
        for key in self.names.messages:
            value = row.get(key)
            if isinstance(value, list | tuple):
                return [(f"{key}[{number}]", message) for number, message in enumerate(value)]
            if value is not None:
                hint = "write the array itself, not its JSON text" if isinstance(value, str) else ""
                faults.append(Fault("wrong-type", key, f"'{key}' is {shown(value)}, not an array of messages", hint))
                return None
        key = self.names.messages[0]
        faults.append(Fault("missing-field", key, f"'{key}' is missing"))
        return None

    def message_of(self, message: Any, where: str, faults: list[Fault]) -> Line | None:
        """Role, text, field and weight of a message; None and a fault if it has no role or no text."""
        if not isinstance(message, Mapping):
            faults.append(Fault("wrong-type", where, f"a message is {shown(message)}, not an object"))
            return None
        names = self.names
        role_key = next((key for key in names.role if key in message), names.role[0])
        content_key = next((key for key in names.content if key in message), names.content[0])
        name = text_field(message, role_key, where, faults)
        text = text_field(message, content_key, where, faults)
        role = None if name is None else role_of(name, f"{where}.{role_key}", faults, names.roles)
        if role is None or text is None:
            return None
        return role, text, f"{where}.{content_key}", self.weight_of(message, where, faults)

    def weight_of(self, message: Mapping[str, Any], where: str, faults: list[Fault]) -> int:
        """0 if the message is not trained."""
        weight = message.get(self.weight_key) if self.weight_key else None
        if weight is None or weight in (0, 1):
            return 1 if weight is None or weight else 0
        faults.append(
            Fault("wrong-type", f"{where}.{self.weight_key}", f"'{self.weight_key}' is {shown(weight)}, not 0 or 1")
        )
        return 1

    def images_of(self, row: Mapping[str, Any], faults: list[Fault]) -> tuple[list[ImageRef], str]:
        """Images of a row, in the order of their tags, and their field."""
        keys = self.names.images
        key = next((key for key in keys if row.get(key) not in (None, "", [])), keys[0] if keys else "")
        return (image_refs(row.get(key), key, faults), key) if key else ([], "images")

    def fill(
        self, texts: Sequence[tuple[str, str]], images: Sequence[ImageRef], field: str
    ) -> tuple[list[tuple[Part, ...]], list[Fault]]:
        """The parts of each text, with the images at their tags; another spelling of the tags is read with a warning.

        Args:
            texts: the text of each message and its field.
            images: the images of the row, in order.
            field: their field.
        """
        parts, wrong = fill_tags(texts, images, field=field)
        if wrong or (not images and INLINE in self.other_tags and any("</img>" in text for text, _ in texts)):
            for tag in self.other_tags:
                filled = fill_with(tag, texts, images)
                if filled is not None:
                    said = f"the images are at {tag.name}, which the readers of {self.title} do not replace"
                    return filled, [Fault("image-count", field, said, "write <image>", "warning")]
        return parts, wrong

    def with_pair(self, chat: Chat, row: Mapping[str, Any], faults: list[Fault]) -> Chat:
        """The conversation with its preference pair, in formats that have them."""
        return chat

    def write(self, chat: Chat) -> Written:
        lost: list[str] = []
        tools = bool(self.tools_key) and not (self.alternates and not calls_alternate(chat.messages))
        chat = carried(chat, lost, self.always, pairs=self.carries_pairs, tools=tools)
        messages = chat.messages
        if not self.carries_system and messages and messages[0].role == "system":
            lost.append("system-message")
            messages = folded_system(messages)
        if not self.weight_key and any(message.weight == 0 for message in messages):
            lost.append("weight")
        rows = []
        for message in messages:
            message = self._spelled(message, lost)
            if message.role == "tool_call":
                message = replace(message, parts=(plain_call(message.text),))
            entry: dict[str, Any] = {
                self.role_keys[0]: self.roles_written[message.role],
                self.content_keys[0]: text_with_tags(message, IMAGE),
            }
            if self.weight_key and (message.weight == 0 or ("weight" in self.always and message.role == "assistant")):
                entry[self.weight_key] = self.weight_written(message.weight)
            rows.append(entry)
        row, left_out = extra_columns(chat, self.keeps, self.always)
        row[self.message_keys[0]] = rows
        row |= self.image_columns([image.value for image in chat.images])
        if self.tools_key and (chat.tools or "tools" in self.always):
            row[self.tools_key] = chat.tools
        if chat.rejected is not None:
            self.add_pair(row, self._spelled(chat.rejected, lost).text)
        return Written(row, tuple(dict.fromkeys(lost)), left_out)

    def add_pair(self, row: dict[str, Any], rejected: str) -> None:
        """Add the rejected answer to a row whose last message is the chosen one."""

    def weight_written(self, weight: int) -> Any:
        """The value of `weight_key`."""
        return weight

    def image_columns(self, images: list[str | bytes]) -> dict[str, Any]:
        """The column of a row's images."""
        return {self.image_keys[0]: images}

    def _spelled(self, message: Message, lost: list[str]) -> Message:
        """The message with its reserved strings spelled out."""
        if not self.reserved or not has_reserved(message, self.reserved):
            return message
        lost.append("placeholder-in-text")
        parts = (spell_out(part, self.reserved) if isinstance(part, str) else part for part in message.parts)
        return replace(message, parts=tuple(parts))


def folded_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages with the system message put before the text of the first user message."""
    system, *rest = messages
    for number, message in enumerate(rest):
        if message.role == "user":
            first = next((at for at, part in enumerate(message.parts) if isinstance(part, str)), len(message.parts))
            parts = (*message.parts[:first], f"{system.text}\n\n", *message.parts[first:])
            return (*rest[:number], replace(message, parts=_joined(parts)), *rest[number + 1 :])
    return tuple(messages)


def _joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Parts with neighbouring texts joined."""
    result: list[Part] = []
    for part in parts:
        if isinstance(part, str) and result and isinstance(last := result[-1], str):
            result[-1] = last + part
        else:
            result.append(part)
    return tuple(result)
