"""OpenAI's chat format for vision fine-tuning, which Azure, Together and Fireworks read too.

    {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"},
                                               {"type": "image_url", "image_url": {"url": "data:image/..."}}]},
                  {"role": "assistant", "content": "A cat.", "weight": 1}]}

Its validators refuse unknown keys, so that `id`, `answers`, `group` and `meta` are not written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from phi3v_data.formats.blocks import ROLES, BlockFormat
from phi3v_data.formats.chat import Chat, Fault, ImageRef, Message, Role
from phi3v_data.formats.fields import as_block, image_refs
from phi3v_data.messages import shown


@dataclass(frozen=True)
class OpenAI(BlockFormat):
    """OpenAI and those who copied it."""

    name = "openai"
    title = "OpenAI, Azure, Together, Fireworks"
    consumer = "openai"

    roles_read: ClassVar[Mapping[str, Role]] = {**ROLES, "developer": "system"}
    image_types = ("image_url",)
    weight_key = "weight"
    tools_key = "tools"
    carries_tools = True

    @property
    def own_columns(self) -> tuple[str, ...] | None:
        return ()  # `plain_image` leaves blocks with a `detail`

    def plain_image(self, block: Mapping[str, Any]) -> tuple[str, str] | None:
        value = block.get("image_url")
        path = ".image_url"
        if type(value) is dict and "detail" not in value:
            value, path = value.get("url"), ".image_url.url"
        return (value, path) if type(value) is str and value else None

    def recognizes(self, row: Mapping[str, Any]) -> bool:
        messages = row.get("messages")
        if not isinstance(messages, list | tuple) or "images" in row:
            return False
        contents = [value.get("content") for value in messages if isinstance(value, Mapping)]
        blocks = [block for content in contents if isinstance(content, list | tuple) for block in content]
        return any(isinstance(block, Mapping) and block.get("type") == "image_url" for block in blocks)

    def chat_of(self, messages: tuple[Message, ...], row: Mapping[str, Any]) -> Chat:
        """The conversation; the `detail` of its images is kept in `meta`, one word for each if they differ."""
        chat = super().chat_of(messages, row)
        details = [_detail(block) for block in _image_blocks(row.get("messages"))]
        if not any(details):
            return chat
        words = [word or "auto" for word in details]
        return replace(chat, meta={**chat.meta, "detail": words[0] if len(set(words)) == 1 else ",".join(words)})

    def image_of(self, block: Mapping[str, Any], where: str, faults: list[Fault]) -> list[ImageRef]:
        value = block.get("image_url")
        field = f"{where}.image_url"
        if isinstance(value, Mapping):
            value, field = value.get("url"), f"{field}.url"
        if isinstance(value, str) and value:
            return image_refs(value, field, faults)
        faults.append(Fault("wrong-type", field, f"the URL of an image is {shown(value)}, not a text"))
        return []

    def content_written(self, message: Message) -> Any:
        return super().content_written(message) if message.images else message.text

    def image_written(self, image: ImageRef) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": image.value}}


def _image_blocks(messages: Any) -> list[Mapping[str, Any]]:
    contents = [value.get("content") for value in messages if isinstance(value, Mapping)]
    blocks = [as_block(block) for content in contents if isinstance(content, list | tuple) for block in content]
    return [block for block in blocks if isinstance(block, Mapping) and block.get("type") == "image_url"]


def _detail(block: Mapping[str, Any]) -> str:
    value = block.get("image_url")
    detail = value.get("detail") if isinstance(value, Mapping) else None
    return detail if isinstance(detail, str) else ""
