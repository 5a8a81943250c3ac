"""MosaicML streaming: shards of its MDS format, version 2, and an index per split.

    PATH/train/index.json
    PATH/train/shard.00000.mds

A shard is a uint32 (number of samples), their offsets and the end as uint32, the configuration as JSON, then the
samples: a uint32 per column (bytes of its value), then the values, columns in the order of their names. All numbers are
little-endian.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from phi3v_data.dataset import Dataset
from phi3v_data.errors import UserError
from phi3v_data.exporting.exporter import Exporter, Part, to_json
from phi3v_data.exporting.images import MEDIA_TYPES, Images
from phi3v_data.files import load_json, write_json
from phi3v_data.messages import shown
from phi3v_data.schema import Sample

LIST_OF = {"JPEG": "list[jpeg]", "PNG": "list[png]"}
"""Format of all images of a set -> encoding of the column, whose values are then lists of PIL images."""

MIXED = "bytes"
"""Encoding of the column if the images have other formats, or several; the bytes are those of a list."""

HASH = "sha256"

_END = 1 << 32  # offsets are uint32
_HEADER = 1 << 10  # more than the bytes of a shard before its offsets and behind them
_COLUMNS = {"answers": "json", "group": "str", "id": "str", "messages": "json", "meta": "json"}


@dataclass(frozen=True)
class MosaicFiles(Exporter):
    """`SPLIT/index.json` and `SPLIT/shard.00000.mds`."""

    sharded: ClassVar[bool] = True
    usual_shard_bytes: ClassVar[int] = 64 << 20  # as `MDSWriter`

    images_encoding: str = MIXED

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shard_bytes >= _END:
            given = self.shard_bytes // 1_000_000
            raise UserError(f"--shard_mb {given}: a shard of {self.name} must be smaller than 4295 MB")

    @property
    def name(self) -> str:
        return "mosaicml"

    @property
    def readers(self) -> str:
        return "MosaicML streaming"

    def marks(self, sample: Sample, images: Images) -> Iterable[str]:
        return map(images.kind, sample.images)

    def with_fields(self, present: frozenset[str]) -> Exporter:
        kinds = present & MEDIA_TYPES.keys()
        only = next(iter(kinds)) if len(kinds) == 1 else ""
        encoding = LIST_OF.get(only, MIXED) if kinds else LIST_OF["JPEG"]
        row_format = replace(self.row_format, always=tuple(sorted(present - kinds)))
        return replace(self, row_format=row_format, images_encoding=encoding)

    def cut_size(self, row_bytes: int, sample: Sample) -> int:
        """At least the bytes of a sample without its images: blocks take more than the turns of a row."""
        num_turns, num_images = len(sample.conversations), len(sample.images)
        return row_bytes + 200 + 200 * num_turns + 80 * num_images + 24 * (len(sample.meta) + len(sample.answers))

    @property
    def cut_bytes(self) -> int:
        return max(1, self.shard_bytes - _HEADER)

    def columns(self) -> dict[str, str]:
        """Column -> its encoding, in the order of a sample."""
        optional = {name: kind for name, kind in _COLUMNS.items() if name in self.row_format.always}
        columns = {"id": "str", "messages": "json", "images": self.images_encoding, **optional}
        return dict(sorted(columns.items()))

    def config(self) -> dict[str, Any]:
        """Configuration of a shard, which its entry in the index repeats."""
        columns = self.columns()
        return {
            "column_encodings": list(columns.values()),
            "column_names": list(columns),
            "column_sizes": [None] * len(columns),
            "compression": None,
            "format": "mds",
            "hashes": [HASH],
            "size_limit": self.shard_bytes,
            "version": 2,
        }

    def shard_of(self, part: Part) -> str:
        return f"{part.split}/shard.{part.number:05}.mds"

    def write_part(self, part: Part, rows: Iterator[tuple[Sample, dict[str, Any]]], images: Images, stage: Path) -> int:
        path = stage / self.shard_of(part)
        path.parent.mkdir(exist_ok=True)
        num_samples = part.stop - part.start - len(part.left_out)
        config = json.dumps(self.config(), sort_keys=True).encode()
        offsets = np.zeros(num_samples + 1, np.int64)
        offsets[0] = 4 + 4 * len(offsets) + len(config)
        names = tuple(self.columns())
        num_images = 0
        with open(path, "w+b") as file:
            file.seek(offsets[0])
            for number, (sample, row) in enumerate(rows):
                row["images"] = _image_list([images.read(name) for name in sample.images])
                values = [_encoded(name, row[name]) for name in names]
                sizes = np.array([len(value) for value in values], np.int64)
                offsets[number + 1] = offsets[number] + 4 * len(sizes) + sizes.sum()
                if offsets[number + 1] >= _END:
                    raise UserError(f"the sample {shown(sample.id, 60)} is too large: a shard of MDS has at most 4 GiB")
                file.writelines([sizes.astype("<u4").tobytes(), *values])
                num_images += len(sample.images)
            file.seek(0)
            file.write(num_samples.to_bytes(4, "little") + offsets.astype("<u4").tobytes() + config)
            file.seek(0)
            digest = hashlib.file_digest(file, HASH).hexdigest()
        entry = {
            **self.config(),
            "raw_data": {"basename": path.name, "bytes": int(offsets[-1]), "hashes": {HASH: digest}},
            "samples": num_samples,
            "zip_data": None,
        }
        write_json(_entry_file(stage, part), entry)
        return num_images

    def finish(self, stage: Path, dataset: Dataset, parts: Sequence[Part], rows: dict[str, int]) -> tuple[str, ...]:
        for split, count in rows.items():
            if count:
                files = [_entry_file(stage, part) for part in parts if part.split == split]
                write_json(stage / split / "index.json", {"shards": list(map(load_json, files)), "version": 2})
                for file in files:
                    file.unlink()
        notes = []
        if empty := [split for split, count in rows.items() if not count]:
            notes.append(f"without rows, and left out: {', '.join(empty)}")
        if self.images_encoding == MIXED:
            notes.append(
                "images are of several formats, so their column is `bytes`: "
                "`mds_decode('list[jpeg]', sample['images'])` of streaming.base.format.mds.encodings opens all of them"
            )
        return tuple(notes)


def _image_list(images: Sequence[bytes]) -> bytes:
    """A list of images: a zero, their number, the bytes of each, and the images."""
    sizes = np.array([0, len(images), *map(len, images)], "<u4")
    return b"".join([sizes.tobytes(), *images])


def _encoded(name: str, value: Any) -> bytes:
    if name == "meta":
        return str(value or "{}").encode()  # is JSON text already
    if _COLUMNS.get(name) == "json":
        return to_json(value).encode()
    return value if isinstance(value, bytes) else str(value).encode()


def _entry_file(stage: Path, part: Part) -> Path:
    """The entry of a shard in the index, until there is one."""
    return stage / part.split / f"shard.{part.number:05}.json"
