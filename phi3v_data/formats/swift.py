"""ms-swift's own format: `messages` with strings, `<image>` tags, `images`, and a `loss` per message.

{"messages": [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A cat."}],
 "images": ["images/cat.jpg"]}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from phi3v_data.formats.chat import Role
from phi3v_data.formats.tagged import TaggedFormat


@dataclass(frozen=True)
class Swift(TaggedFormat):
    """ms-swift; other columns than its own are dropped by its reader, so that they may be written."""

    name = "swift"
    title = "ms-swift"
    consumer = "ms-swift"
    reserved = ("<image>", "<video>", "<audio>", "<bbox>", "<ref-object>", "<cot-process>", "<start-image>")

    message_keys = ("messages", "conversation", "conversations")
    role_keys = ("role", "from")
    content_keys = ("content", "value")
    image_keys = ("images", "image")
    roles_written: ClassVar[Mapping[Role, str]] = {
        "system": "system",
        "user": "user",
        "assistant": "assistant",
        "tool_call": "tool_call",
        "tool": "tool_response",
    }
    system_key = "system"
    weight_key = "loss"
    tools_key = "tools"
    keeps = ("id", "answers", "group", "meta")

    def recognizes(self, row: Mapping[str, Any]) -> bool:
        messages = row.get("messages")
        if not isinstance(messages, list | tuple):
            return False
        return all(isinstance(value.get("content"), str) for value in messages if isinstance(value, Mapping))

    def weight_written(self, weight: int) -> bool:
        return bool(weight)
