"""axolotl's multimodal format: blocks with the path of an image in each; no image column.

    {"messages": [{"role": "user", "content": [{"type": "image", "path": "images/cat.jpg"},
                                               {"type": "text", "text": "What is it?"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}]}

Of an `images` column axolotl uses the first image only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from phi3v_data.formats.blocks import BlockFormat
from phi3v_data.formats.chat import ImageRef


@dataclass(frozen=True)
class Axolotl(BlockFormat):
    """axolotl's `type: chat_template` for images."""

    name = "axolotl"
    title = "axolotl"
    consumer = "axolotl"

    image_values = ("path", "url", "image", "base64")
    keeps = ("id", "answers", "group", "meta")

    def recognizes(self, row: Mapping[str, Any]) -> bool:
        messages = row.get("messages")
        if not isinstance(messages, list | tuple):
            return False
        contents = [value.get("content") for value in messages if isinstance(value, Mapping)]
        blocks = [block for content in contents if isinstance(content, list | tuple) for block in content]
        images = [block for block in blocks if isinstance(block, Mapping) and block.get("type") == "image"]
        return bool(images) and all(any(key in block for key in self.image_values) for block in images)

    def image_written(self, image: ImageRef) -> dict[str, Any]:
        value = str(image.value)
        key = "base64" if value.startswith("data:") else "url" if "://" in value else "path"
        return {"type": "image", key: value}
