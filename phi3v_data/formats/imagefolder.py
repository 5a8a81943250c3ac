"""Rows of `metadata.jsonl` in an image folder of `datasets`: TRL's blocks, with the names of the image files.

    {"images_file_names": ["images/cat.jpg"],
     "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}]}

Names are relative to the folder of `metadata.jsonl`; `datasets` loads them as the column `images`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from phi3v_data.formats.blocks import BlockFormat


@dataclass(frozen=True)
class ImageFolder(BlockFormat):
    """`load_dataset("imagefolder", data_dir=...)`."""

    name = "imagefolder"
    title = "datasets"
    consumer = "trl"

    image_columns = ("images_file_names",)
    weight_key = "weight"
    files_below = True
    keeps = ("id", "answers", "group", "meta")

    def recognizes(self, row: Mapping[str, Any]) -> bool:
        return "images_file_names" in row and "messages" in row
