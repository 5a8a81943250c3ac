"""axolotl's multimodal format: blocks with the path of an image in each; no image column.

    {"messages": [{"role": "user", "content": [{"type": "image", "path": "images/cat.jpg"},
                                               {"type": "text", "text": "What is it?"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}]}

Of an `images` column axolotl uses the first image only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from phi3v_data.formats.blocks import BlockFormat
from phi3v_data.formats.chat import Chat, Fault, ImageRef, Message
from phi3v_data.formats.fields import ROLES


@dataclass(frozen=True)
class Axolotl(BlockFormat):
    """axolotl's `type: chat_template` for images."""

    name = "axolotl"
    title = "axolotl"
    consumer = "axolotl"

    message_keys = ("messages", "conversations")
    roles_read = ROLES
    image_values = ("path", "url", "image", "base64")
    image_columns = ("images", "image")
    keeps = ("id", "answers", "group", "meta")

    @property
    def own_columns(self) -> tuple[str, ...] | None:
        return ()  # `placed` differs where the numbers of images and blocks do, which is not plain

    def recognizes(self, row: Mapping[str, Any]) -> bool:
        messages = row.get("messages")
        if not isinstance(messages, list | tuple):
            return False
        contents = [value.get("content") for value in messages if isinstance(value, Mapping)]
        blocks = [block for content in contents if isinstance(content, list | tuple) for block in content]
        images = [block for block in blocks if isinstance(block, Mapping) and block.get("type") == "image"]
        return bool(images) and all(any(key in block for key in self.image_values) for block in images)

    def placed(
        self,
        messages: Sequence[Message],
        images: Sequence[ImageRef],
        faults: list[Fault],
        field: str,
        row: Mapping[str, Any],
    ) -> tuple[Message, ...]:
        """As axolotl: the first image of the column goes to the first bare block, else after the first user text."""
        places = [image for message in messages for image in message.images if not image.value]
        if not places and len(images) == 1:
            user = next((at for at, message in enumerate(messages) if message.role == "user"), None)
            if user is not None:
                with_image = replace(messages[user], parts=(*messages[user].parts, images[0]))
                return (*messages[:user], with_image, *messages[user + 1 :])
        return super().placed(messages, images, faults, field, row)

    def written_columns(self, chat: Chat) -> dict[str, Any]:
        return {}

    def image_written(self, image: ImageRef) -> dict[str, Any]:
        value = str(image.value)
        key = "base64" if value.startswith("data:") else "url" if "://" in value else "path"
        return {"type": "image", key: value}
