"""WebDataset shards: tar files in which the members of a sample have one key and follow each other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from phi3v_data.dataset import Dataset
from phi3v_data.exporting.exporter import Exporter, Part
from phi3v_data.exporting.images import Images
from phi3v_data.files import write_text
from phi3v_data.media.images import identify_readable
from phi3v_data.media.tar_member import END_MARK, tar_member
from phi3v_data.schema import Sample
from phi3v_data.suffixes import STORED_IMAGES

ENERGON, UNIFORM = "energon", "uniform"


@dataclass(frozen=True)
class WebDatasetFiles(Exporter):
    """`SPLIT-000000.tar`.

    Layouts: `energon`, one member per image; `uniform`, images as data URLs in the JSON and only texts in it, as
    `datasets` needs the same members and types in every sample.
    """

    layouts: ClassVar[tuple[str, ...]] = (ENERGON, UNIFORM)
    sharded: ClassVar[bool] = True

    def shard_of(self, part: Part) -> str:
        return f"{part.split}-{part.number:06}.tar"

    def write_part(self, part: Part, rows: Iterator[tuple[Sample, dict[str, Any]]], images: Images, stage: Path) -> int:
        num_images = 0
        prefix = part.split.replace(".", "_")  # a key ends at the first dot
        with open(stage / self.shard_of(part), "wb") as file:
            for number, (sample, row) in enumerate(rows, part.start):
                key, names = f"{prefix}-{number:09}", sample.images
                members: list[tuple[str, bytes]] = []
                if self.layout == UNIFORM:
                    row["images"] = [images.data_url(name) for name in names]
                else:
                    members = [_image_member(at, images.read(name)) for at, name in enumerate(names)]
                    row["images"] = [field for field, _ in members]
                if self.layout == UNIFORM:
                    row = {
                        key: value if isinstance(value, str) else self.row_json(sample, value).decode()
                        for key, value in row.items()
                    }
                text = self.row_json(sample, row)
                for field, data in (("json", text), *members):
                    file.write(tar_member(f"{key}.{field}", data))
                num_images += len(names)
            file.write(END_MARK)
        return num_images

    def finish(self, stage: Path, dataset: Dataset, parts: Sequence[Part], rows: dict[str, int]) -> tuple[str, ...]:
        self.write_manifest(stage, dataset)
        return ()


@dataclass(frozen=True)
class EnergonFiles(WebDatasetFiles):
    """Shards with the description and the cooker that Energon needs; `energon prepare` makes the index."""

    layouts: ClassVar[tuple[str, ...]] = (ENERGON,)

    @property
    def name(self) -> str:
        return "energon"

    @property
    def readers(self) -> str:
        return "Energon"

    def finish(self, stage: Path, dataset: Dataset, parts: Sequence[Part], rows: dict[str, int]) -> tuple[str, ...]:
        super().finish(stage, dataset, parts, rows)
        (stage / ".nv-meta").mkdir()
        write_text(stage / ".nv-meta" / "dataset.yaml", DATASET_YAML)
        write_text(stage / "cooker.py", COOKER)
        last = {part.split: part.num_parts - 1 for part in parts}
        shards = " ".join(
            f"--split-parts '{_energon_split(split)}:{split}-{{{0:06}..{number:06}}}.tar'"
            for split, number in last.items()
        )
        return (f"Energon needs an index: energon prepare PATH --non-interactive --skip-dataset-yaml {shards}",)


DATASET_YAML = """__module__: megatron.energon
__class__: CrudeWebdataset
"""

COOKER = '''"""Cooks the samples of this folder: `cookers = [Cooker(cook)]` in your TaskEncoder."""

import json
from dataclasses import dataclass
from typing import Any

from megatron.energon import Sample, basic_sample_keys, stateless


@dataclass
class ChatSample(Sample):
    """A conversation; `images` are in the order of the image blocks of `messages`."""

    id: str
    messages: list[dict[str, Any]]
    images: list[Any]


@stateless
def cook(sample: dict[str, Any]) -> ChatSample:
    """The conversation of a sample of the shard."""
    row = sample["json"] if isinstance(sample["json"], dict) else json.loads(sample["json"])
    return ChatSample(
        **basic_sample_keys(sample),
        id=row["id"],
        messages=row["messages"],
        images=[sample[name] for name in row["images"]],
    )
'''


def _energon_split(split: str) -> str:
    return "val" if split == "validation" else split


def _image_member(number: int, data: bytes) -> tuple[str, bytes]:
    suffix = STORED_IMAGES[identify_readable(data)][0]
    return f"{number}{suffix}", data
