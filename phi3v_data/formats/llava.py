"""LLaVA's JSON: an array of rows, one image or a list under `image`, `<image>` in the texts, no system message.

    [{"id": "1", "image": "images/cat.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                                              {"from": "gpt", "value": "A cat."}]}]

A row without images has no key `image`: its trainer tests for the key alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from phi3v_data.formats.chat import Role
from phi3v_data.formats.placeholders import OTHER_TAGS, OtherTag
from phi3v_data.formats.tagged import TaggedFormat


@dataclass(frozen=True)
class LLaVA(TaggedFormat):
    """LLaVA, LLaVA-NeXT and their forks."""

    name = "llava"
    title = "LLaVA, LLaVA-NeXT"
    consumer = "llava"
    reserved: ClassVar[tuple[str, ...]] = ("<image>",)
    suffix = ".json"

    message_keys = ("conversations",)
    role_keys = ("from", "role")
    content_keys = ("value", "content")
    image_keys = ("image", "images")
    roles_written: ClassVar[Mapping[Role, str]] = {"user": "human", "assistant": "gpt"}
    carries_system = False
    other_tags: ClassVar[tuple[OtherTag, ...]] = OTHER_TAGS
    keeps = ("id", "answers", "group", "meta")

    def recognizes(self, row: Mapping[str, Any]) -> bool:
        return "conversations" in row and "image" in row and "images" not in row

    def image_columns(self, images: list[str | bytes]) -> dict[str, Any]:
        return {"image": images[0] if len(images) == 1 else images} if images else {}
