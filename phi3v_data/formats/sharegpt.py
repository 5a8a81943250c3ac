"""ShareGPT, as LLaMA-Factory reads it: `conversations` or `messages`, images in a column, `<image>` in the texts.

    {"conversations": [{"from": "human", "value": "<image>What is it?"}, {"from": "gpt", "value": "A cat."}],
     "images": ["images/cat.jpg"], "system": "Be terse."}

`dataset_info.json` beside the data may give columns and roles other names. Rows are written with `messages`, `role`
and `content` and an entry of `dataset_info.json` that says `formatting: sharegpt` with every tag: with
`formatting: openai`, LLaMA-Factory adds a sentence of its own to every system message.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from phi3v_data.formats.chat import Chat, Fault, Message, Role
from phi3v_data.formats.dataset_info import Entry
from phi3v_data.formats.pairs import Line, read_pairs
from phi3v_data.formats.tagged import FieldNames, TaggedFormat
from phi3v_data.messages import shown


@dataclass(frozen=True)
class ShareGPT(TaggedFormat):
    """LLaMA-Factory's `formatting: sharegpt`; with an entry of `dataset_info.json`, any of its formattings."""

    entry: Entry | None = None

    name = "sharegpt"
    title = "ShareGPT, LLaMA-Factory"
    consumer = "llama-factory"
    reserved = ("<image>", "<video>", "<audio>")
    suffix = ".json"

    message_keys = ("messages", "conversations", "conversation")
    role_keys = ("role", "from")
    content_keys = ("content", "value")
    image_keys = ("images", "image")
    roles_written: ClassVar[Mapping[Role, str]] = {
        "system": "system",
        "user": "user",
        "assistant": "assistant",
        "tool_call": "function_call",
        "tool": "observation",
    }
    system_key = "system"
    tools_key = "tools"
    carries_pairs = True
    alternates = True
    keeps = ("id", "answers", "group", "meta")

    def recognizes(self, row: Mapping[str, Any]) -> bool:
        return "conversations" in row and "image" not in row

    @cached_property
    def names(self) -> FieldNames:
        if self.entry is None:
            return super().names
        columns, tags = self.entry.columns, self.entry.tags
        return FieldNames(
            messages=(columns.messages or "conversations",),
            role=(tags.role_tag or "from",),
            content=(tags.content_tag or "value",),
            images=(columns.images,) if columns.images else (),
            system=columns.system or "",
            tools=columns.tools or "",
            roles=tags.roles(),
        )

    @property
    def own_columns(self) -> tuple[str, ...] | None:
        if self.entry is None:
            return ("kto_tag", "chosen", "rejected")
        if self.entry.ranking or self.entry.formatting == "alpaca":
            return None
        return (self.entry.columns.kto_tag or "",)

    def lines_of(self, row: Mapping[str, Any], faults: list[Fault]) -> list[Line] | None:
        if self.entry is None or self.entry.formatting != "alpaca":
            return super().lines_of(row, faults)
        columns = self.entry.columns
        query = [column for column in (columns.prompt, columns.query) if column]
        response = (columns.chosen if self.entry.ranking else columns.response) or ""
        return read_pairs(row, query, response, columns.history or "", faults)

    def with_pair(self, chat: Chat, row: Mapping[str, Any], faults: list[Fault]) -> Chat:
        label = row.get(self.entry.columns.kto_tag or "" if self.entry else "kto_tag")
        if label is not None and label is not True:
            field = (self.entry.columns.kto_tag if self.entry else None) or "kto_tag"
            if label is False:
                faults.append(Fault("nothing-trained", field, "the answer is labelled false, not a good one"))
            else:
                faults.append(Fault("wrong-type", field, f"{shown(field)} is {shown(label)}, not true or false"))
        columns = ("chosen", "rejected")
        if self.entry is not None:
            if not self.entry.ranking:
                return chat
            columns = (self.entry.columns.chosen or "chosen", self.entry.columns.rejected or "rejected")
        if self.entry is not None and self.entry.formatting == "alpaca":
            value = row.get(columns[1])
            if isinstance(value, str):
                return replace(chat, rejected=Message("assistant", (value,) if value else (), field=columns[1]))
            faults.append(Fault("wrong-type", columns[1], f"'{columns[1]}' is {shown(value)}, not a text"))
            return chat
        values = [row.get(column) for column in columns]
        if self.entry is None and not all(isinstance(value, Mapping) for value in values):
            return chat
        missing = [column for value, column in zip(values, columns, strict=True) if value is None]
        if missing:
            faults += [Fault("missing-field", column, f"'{column}' is missing") for column in missing]
            return chat
        read = [self.message_of(value, column, faults) for value, column in zip(values, columns, strict=True)]
        pair = [Message(line[0], (line[1],) if line[1] else (), field=line[2]) for line in read if line is not None]
        if len(pair) < 2:
            return chat
        return replace(chat, messages=(*chat.messages, pair[0]), rejected=pair[1])

    def add_pair(self, row: dict[str, Any], rejected: str) -> None:
        row["chosen"] = row[self.message_keys[0]].pop()
        row["rejected"] = {**row["chosen"], self.content_keys[0]: rejected}
