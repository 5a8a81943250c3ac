"""The format of Qwen-VL's own fine-tuning code: as LLaVA's, with `<image>` and `<video>` kept at their places.

Its trainer takes every message that is not `human` for an answer, a system message too, so that none is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from phi3v_data.formats.chat import Role
from phi3v_data.formats.placeholders import INLINE
from phi3v_data.formats.tagged import TaggedFormat


@dataclass(frozen=True)
class Qwen(TaggedFormat):
    """QwenLM's `qwen-vl-finetune`."""

    name = "qwen"
    title = "Qwen-VL finetune"
    consumer = "qwen"
    reserved = ("<image>", "<video>")

    message_keys = ("conversations",)
    role_keys = ("from", "role")
    content_keys = ("value", "content")
    image_keys = ("image", "images")
    roles_written: ClassVar[Mapping[Role, str]] = {"user": "human", "assistant": "gpt"}
    carries_system = False
    other_tags = (INLINE,)
    keeps = ("id", "answers", "group", "meta")

    def recognizes(self, row: Mapping[str, Any]) -> bool:
        return False  # its rows are LLaVA's; only the trainer differs

    def image_columns(self, images: list[str | bytes]) -> dict[str, Any]:
        return {"image": images[0] if len(images) == 1 else images} if images else {}
