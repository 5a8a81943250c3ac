"""ShareGPT, as LLaMA-Factory reads it: `conversations` or `messages`, images in a column, `<image>` in the texts.

    {"conversations": [{"from": "human", "value": "<image>What is it?"}, {"from": "gpt", "value": "A cat."}],
     "images": ["images/cat.jpg"], "system": "Be terse."}

`dataset_info.json` beside the data may give columns and roles other names. Rows are written with `messages`, `role`
and `content` and an entry of `dataset_info.json` that says `formatting: sharegpt` with every tag: with
`formatting: openai`, LLaMA-Factory adds a sentence of its own to every system message.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from phi3v_data.formats.chat import Role
from phi3v_data.formats.tagged import TaggedFormat


@dataclass(frozen=True)
class ShareGPT(TaggedFormat):
    """LLaMA-Factory's `formatting: sharegpt`."""

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
    keeps = ("id", "answers", "group", "meta")

    def recognizes(self, row: Mapping[str, Any]) -> bool:
        return "conversations" in row and "image" not in row
