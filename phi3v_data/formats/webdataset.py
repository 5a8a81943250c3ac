"""The JSON member of a sample in a WebDataset shard: TRL's blocks, with the members of its images.

    000017.json   {"id": "1", "images": ["0.jpg"], "messages": [{"role": "user", "content": [{"type": "image"}, ...]}]}
    000017.0.jpg

In the layout `uniform`, which `datasets` can load, there is no other member: `images` has data URLs, and every field is
a text, arrays as JSON, because `datasets` takes the types of all rows from the first five.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from phi3v_data.formats.blocks import BlockFormat
from phi3v_data.formats.chat import Reading


@dataclass(frozen=True)
class WebDataset(BlockFormat):
    """webdataset, Energon."""

    name = "webdataset"
    title = "webdataset, Energon"
    consumer = "webdataset"

    image_columns = ("images",)
    weight_key = "weight"
    keeps = ("id", "answers", "group", "meta")

    def recognizes(self, row: Mapping[str, Any]) -> bool:
        return isinstance(row.get("messages"), str) and isinstance(row.get("images"), str)

    def read(self, row: Mapping[str, Any]) -> Reading:
        return super().read({key: _decoded(value) if key in _ARRAYS else value for key, value in row.items()})


_ARRAYS = ("images", "messages", "answers")


def _decoded(value: Any) -> Any:
    if isinstance(value, str):
        with suppress(ValueError):
            return json.loads(value)
    return value
