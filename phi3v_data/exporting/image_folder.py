"""An image folder of `datasets`: per split a folder with `metadata.jsonl` and its images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from phi3v_data.choices import ImageRefs
from phi3v_data.dataset import Dataset
from phi3v_data.exporting.card import check_split_names, split_name, write_export_card
from phi3v_data.exporting.exporter import Part
from phi3v_data.exporting.row_files import RowFiles


@dataclass(frozen=True)
class ImageFolderFiles(RowFiles):
    """Names of images are relative to their `metadata.jsonl`, and may not lead out of its folder."""

    refs: ClassVar[tuple[ImageRefs, ...]] = (ImageRefs.path,)
    asks_reader: ClassVar[bool] = False

    def image_folder(self, split: str) -> str:
        return f"{split_name(split)}/images"

    def file_of(self, split: str) -> str:
        return f"{split_name(split)}/metadata.jsonl"

    def finish(self, stage: Path, dataset: Dataset, parts: Sequence[Part], rows: dict[str, int]) -> tuple[str, ...]:
        super().finish(stage, dataset, parts, rows)
        return write_export_card(stage, dataset, {split: (f"{split_name(split)}/**",) for split in rows})

    def check_set(self, dataset: Dataset) -> None:
        check_split_names(dataset)
