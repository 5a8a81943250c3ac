"""Rows of a Parquet file on the Hugging Face Hub: TRL's blocks, with the bytes of each image in the row.

Arrow stores each block as JSON text, which `datasets` decodes.

{"id": "1", "images": [{"bytes": ..., "path": "cat.jpg"}],
 "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
              {"role": "assistant", "content": [{"type": "text", "text": "A cat."}], "weight": 1}]}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from phi3v_data.formats.blocks import BlockFormat


@dataclass(frozen=True)
class Hub(BlockFormat):
    """Parquet files that `datasets` and TRL load."""

    name = "hub"
    title = "datasets"
    consumer = "trl"
    suffix = ".parquet"

    image_columns = ("images",)
    image_values = ("image", "url", "path", "base64")
    weight_key = "weight"
    keeps = ("id", "answers", "group", "meta")

    def recognizes(self, row: Mapping[str, Any]) -> bool:
        messages = row.get("messages")
        if not isinstance(messages, list | tuple) or "images" not in row:
            return False
        return any(isinstance(value, Mapping) and _is_of_hub(value) for value in messages)


def _is_of_hub(message: Mapping[str, Any]) -> bool:
    """Whether a message has what TRL's rows do not have: a weight, or blocks as JSON text."""
    content = message.get("content")
    if not isinstance(content, list | tuple):
        return False
    return "weight" in message or any(isinstance(block, str) for block in content)
