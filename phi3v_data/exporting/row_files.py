"""Exports with one file per split, a JSON array or JSON Lines, and images beside it."""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from phi3v_data.choices import ImageRefs
from phi3v_data.dataset import Dataset
from phi3v_data.exporting.exporter import Exporter, Part
from phi3v_data.exporting.images import Images, count_placed
from phi3v_data.files import write_json
from phi3v_data.schema import Sample

PARTS = ".parts"


@dataclass(frozen=True)
class RowFiles(Exporter):
    """One file per split."""

    refs: ClassVar[tuple[ImageRefs, ...]] = (ImageRefs.path, ImageRefs.data, ImageRefs.url)
    asks_reader: ClassVar[bool] = True

    @property
    def is_array(self) -> bool:
        """Whether a file is a JSON array."""
        return self.row_format.suffix == ".json"

    def image_folder(self, split: str) -> str:
        """Folder in the export for the images of a split."""
        return "images"

    def file_of(self, split: str) -> str:
        """Name of the file of a split."""
        return f"{split}{self.row_format.suffix}"

    def refer(self, name: str, images: Images, stage: Path) -> str:
        assert self.image_refs is not None
        return images.reference(name, self.image_refs, self.request.url_prefix)

    def write_part(self, part: Part, rows: Iterator[tuple[Sample, dict[str, Any]]], images: Images, stage: Path) -> int:
        num_images = 0
        folder = stage / self.image_folder(part.split)
        between = b",\n" if self.is_array else b"\n"
        with open(_part_file(stage, part), "wb") as file:
            first = True
            for sample, row in rows:
                if not first:
                    file.write(between)
                first = False
                file.write(self.row_json(sample, row))
                if self.image_refs == ImageRefs.path:
                    num_images += sum(images.place(name, folder, self.request.images) for name in sample.images)
                else:
                    num_images += len(sample.images)
        return num_images

    def count_images(self, stage: Path, rows: dict[str, int], added: int) -> int:
        """The files that are there: of a part that was written twice, the second time found those of the first."""
        if self.image_refs != ImageRefs.path:
            return added
        return sum(count_placed(stage / folder) for folder in dict.fromkeys(map(self.image_folder, rows)))

    def finish(self, stage: Path, dataset: Dataset, parts: Sequence[Part], rows: dict[str, int]) -> tuple[str, ...]:
        """Join the parts of each split."""
        for split in rows:
            path = stage / self.file_of(split)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as target:
                target.write(b"[\n" if self.is_array else b"")
                for part in (part for part in parts if part.split == split):
                    piece = _part_file(stage, part)
                    if os.stat(piece).st_size:
                        if target.tell() > 2:
                            target.write(b",\n" if self.is_array else b"\n")
                        with open(piece, "rb") as source:
                            shutil.copyfileobj(source, target, 1 << 20)
                    piece.unlink()
                if target.tell():
                    target.write(b"\n]\n" if self.is_array else b"\n")
        (stage / PARTS).rmdir()
        return ()


@dataclass(frozen=True)
class ShareGPTFiles(RowFiles):
    """Also writes `dataset_info.json`, which LLaMA-Factory needs, with every column and tag.

    LLaMA-Factory takes a column or tag that is not named for absent as soon as one is named.
    """

    def finish(self, stage: Path, dataset: Dataset, parts: Sequence[Part], rows: dict[str, int]) -> tuple[str, ...]:
        notes = super().finish(stage, dataset, parts, rows)
        name = set_name(dataset)
        entries = {f"{name}_{split}": self.entry(split) for split in rows}
        write_json(stage / "dataset_info.json", entries)
        return notes

    def entry(self, split: str) -> dict[str, Any]:
        """The entry of a split in `dataset_info.json`."""
        columns = {"messages": "messages", "images": "images"}
        if "tools" in self.row_format.always:
            columns["tools"] = "tools"
        is_ranking = "rejected" in self.row_format.always
        if is_ranking:
            columns |= {"chosen": "chosen", "rejected": "rejected"}
        return {
            "file_name": self.file_of(split),
            "formatting": "sharegpt",
            **({"ranking": True} if is_ranking else {}),
            "columns": columns,
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "observation_tag": "observation",
                "function_tag": "function_call",
                "system_tag": "system",
            },
        }


@dataclass(frozen=True)
class OpenAIFiles(RowFiles):
    """Images are data URLs unless asked otherwise, as the services cannot read files of this machine."""

    refs: ClassVar[tuple[ImageRefs, ...]] = (ImageRefs.data, ImageRefs.url, ImageRefs.path)


def set_name(dataset: Dataset) -> str:
    """Name of a set: from its manifest, else that of its folder."""
    return dataset.manifest.name if dataset.manifest else Path(os.path.abspath(dataset.directory)).name


def _part_file(stage: Path, part: Part) -> Path:
    return stage / PARTS / f"{part.split}.{part.number}"
