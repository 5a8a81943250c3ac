"""TRL's conversational format: blocks in the messages, images in a column, in the order of their blocks.

    {"images": ["images/cat.jpg"], "messages": [{"role": "user", "content": [{"type": "image"},
                                                                             {"type": "text", "text": "What is it?"}]},
                                                {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}]}

Every content is written as blocks, and no block has a key `image`: with a string, TRL puts all images before the first
user message; with the key, it does not count the block as a place for an image.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from phi3v_data.formats.blocks import BlockFormat


@dataclass(frozen=True)
class TRL(BlockFormat):
    """TRL's trainers and transformers' chat templates."""

    name = "trl"
    title = "TRL, transformers"
    consumer = "trl"

    image_column = "images"
    image_values = ("image", "url", "path", "base64")
    keeps = ("id", "answers", "group", "meta")

    def recognizes(self, row: Mapping[str, Any]) -> bool:
        messages = row.get("messages")
        if not isinstance(messages, list | tuple) or "images" not in row:
            return False
        return any(
            isinstance(value, Mapping)
            and "weight" not in value
            and isinstance(content := value.get("content"), list)
            and not any(isinstance(block, str) for block in content)
            for value in messages
        )
