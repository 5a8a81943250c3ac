"""ms-swift's own format: `messages` with strings, `<image>` tags, `images`, and a `loss` per message.

{"messages": [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A cat."}],
 "images": ["images/cat.jpg"]}
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from phi3v_data.formats.chat import Chat, Fault, Message, Role
from phi3v_data.formats.pairs import Line, read_pairs
from phi3v_data.formats.tagged import TaggedFormat
from phi3v_data.messages import shown

QUERIES = ("query", "prompt", "input", "instruction", "question", "problem")
RESPONSES = (
    "response", "answer", "output", "targets", "target", "answer_key", "answers", "solution", "text", "completion",
    "content",
)  # fmt: skip
"""Columns that ms-swift takes for the question and the answer of a row without messages, in its order."""


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
    carries_pairs = True
    keeps = ("id", "answers", "group", "meta")

    def recognizes(self, row: Mapping[str, Any]) -> bool:
        messages = row.get("messages")
        if not isinstance(messages, list | tuple):
            return "query" in row and "response" in row
        return all(isinstance(value.get("content"), str) for value in messages if isinstance(value, Mapping))

    @property
    def own_columns(self) -> tuple[str, ...] | None:
        return ("label", "rejected_response", "loss_scale")

    def lines_of(self, row: Mapping[str, Any], faults: list[Fault]) -> list[Line] | None:
        if any(row.get(key) is not None for key in self.message_keys):
            return super().lines_of(row, faults)
        if "instruction" in row and "input" in row:
            query: list[str] = ["instruction", "input"]
        else:
            query = [key for key in QUERIES if row.get(key) is not None][:1]
        response = next((key for key in RESPONSES if row.get(key) is not None and key not in query), "")
        if not query or not response:
            return super().lines_of(row, faults)
        if isinstance(answers := row[response], list | tuple):
            said = f"{shown(response)} is {shown(answers)}, not a text"
            faults.append(Fault("wrong-type", response, said, "ms-swift takes the first text of it: write that alone"))
            return None
        return read_pairs(row, query, response, "history", faults)

    def weight_of(self, message: Mapping[str, Any], where: str, faults: list[Fault]) -> int:
        scale = message.get("loss_scale")
        if scale is None or message.get("loss") is not None:
            return super().weight_of(message, where, faults)
        if scale not in (0, 1):
            faults.append(Fault("wrong-type", f"{where}.loss_scale", f"'loss_scale' is {shown(scale)}, not 0 or 1"))
        return 1 if scale else 0

    def with_pair(self, chat: Chat, row: Mapping[str, Any], faults: list[Fault]) -> Chat:
        label = row.get("label")
        if isinstance(label, bool) and not label:
            faults.append(Fault("nothing-trained", "label", "the answer is labelled false, not a good one"))
        rejected = row.get("rejected_response")
        if rejected is None:
            return chat
        if not isinstance(rejected, str):
            faults.append(
                Fault("wrong-type", "rejected_response", f"'rejected_response' is {shown(rejected)}, not a text")
            )
            return chat
        return replace(chat, rejected=Message("assistant", (rejected,) if rejected else (), field="rejected_response"))

    def add_pair(self, row: dict[str, Any], rejected: str) -> None:
        row["rejected_response"] = rejected

    def weight_written(self, weight: int) -> bool:
        return bool(weight)
