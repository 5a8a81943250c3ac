"""Parquet files for the Hub, with the images inside and a card."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

from phi3v_data.dataset import Dataset
from phi3v_data.exporting.card import check_split_names, split_name, write_export_card
from phi3v_data.exporting.exporter import Exporter, Part
from phi3v_data.exporting.images import Images
from phi3v_data.schema import Sample

GROUP_IMAGES = 100
"""Most images of a row group: the Hub's viewer reads one at a time, and refuses large ones."""

GROUP_ROWS = 1000
GROUP_BYTES = 64 << 20

_TEXT = {"dtype": "string", "_type": "Value"}
_JSON = {"_type": "Json"}
_COLUMNS = {
    "answers": {"feature": _TEXT, "_type": "List"},
    "group": _TEXT,
    "meta": _JSON,
}


@dataclass(frozen=True)
class HubFiles(Exporter):
    """`data/SPLIT-00000-of-00001.parquet`."""

    sharded: ClassVar[bool] = True

    def write_part(self, part: Part, rows: Iterator[tuple[Sample, dict[str, Any]]], images: Images, stage: Path) -> int:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = stage / self.shard_of(part)
        path.parent.mkdir(exist_ok=True)
        texts, schema = self.schema(pa.string()), self.schema(pa.json_())
        num_images = 0
        with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
            group: list[dict[str, Any]] = []
            group_images = group_bytes = 0
            for sample, row in rows:
                names = sample.images
                size = sum(map(images.size, names))
                full = group_images + len(names) > GROUP_IMAGES or group_bytes + size > GROUP_BYTES
                if group and (full or len(group) == GROUP_ROWS):
                    writer.write_table(_table(group, texts).cast(schema))
                    group, group_images, group_bytes = [], 0, 0
                row["images"] = [{"bytes": images.read(name), "path": name.rpartition("/")[2]} for name in names]
                for message in row["messages"]:
                    message["content"] = [self.row_json(sample, block).decode() for block in message["content"]]
                group.append(row)
                group_images += len(names)
                group_bytes += size
                num_images += len(names)
            writer.write_table(_table(group, texts).cast(schema))
        return num_images

    def shard_of(self, part: Part) -> str:
        """Name of the file of a part."""
        return f"data/{split_name(part.split)}-{part.number:05}-of-{part.num_parts:05}.parquet"

    def features(self) -> dict[str, Any]:
        """The columns, as `datasets` describes them."""
        message: dict[str, Any] = {"role": _TEXT, "content": {"feature": _JSON, "_type": "List"}}
        if "weight" in self.row_format.always:
            message["weight"] = {"dtype": "int64", "_type": "Value"}
        return {
            "id": _TEXT,
            "images": {"feature": {"_type": "Image"}, "_type": "List"},
            "messages": {"feature": message, "_type": "List"},
            **{name: column for name, column in _COLUMNS.items() if name in self.row_format.always},
        }

    def schema(self, json_type: Any) -> Any:
        """The columns as Arrow stores them, with this type for JSON; `datasets` wants its own type for it."""
        import pyarrow as pa

        text = pa.string()
        message = [("role", text), ("content", pa.list_(json_type))]
        if "weight" in self.row_format.always:
            message.append(("weight", pa.int64()))
        kinds = {
            "id": text,
            "images": pa.list_(pa.struct([("bytes", pa.binary()), ("path", text)])),
            "messages": pa.list_(pa.struct(message)),
            "answers": pa.list_(text),
            "group": text,
            "meta": json_type,
        }
        features = self.features()
        described = json.dumps({"info": {"features": features}})
        return pa.schema([(name, kinds[name]) for name in features], metadata={"huggingface": described})

    def finish(self, stage: Path, dataset: Dataset, parts: Sequence[Part], rows: dict[str, int]) -> tuple[str, ...]:
        self.write_manifest(stage, dataset)
        files = {split: [self.shard_of(part) for part in parts if part.split == split] for split in rows}
        return write_export_card(stage, dataset, files)

    def check_set(self, dataset: Dataset) -> None:
        check_split_names(dataset)


def _table(rows: list[dict[str, Any]], schema: Any) -> Any:
    """The rows as a table, with the arrays of nested columns made by hand: by pyarrow it takes twice the time."""
    import pyarrow as pa

    def nested(name: str, values: list[list[dict[str, Any]]]) -> Any:
        """A column of lists of objects."""
        kind = schema.field(name).type
        flat = [value for each in values for value in each]
        fields = [kind.value_type.field(at) for at in range(kind.value_type.num_fields)]
        columns: list[list[Any]] = [[value.get(field.name) for value in flat] for field in fields]
        arrays = [
            _lists(column, field.type) if pa.types.is_list(field.type) else pa.array(column, field.type)
            for field, column in zip(fields, columns, strict=True)
        ]
        return pa.ListArray.from_arrays(_offsets(values), pa.StructArray.from_arrays(arrays, fields=fields), type=kind)

    arrays = []
    for field in schema:
        if field.name in ("images", "messages"):
            arrays.append(nested(field.name, [row[field.name] for row in rows]))
        else:
            values = [row.get(field.name) for row in rows]
            arrays.append(pa.array([value or None for value in values] if field.name == "meta" else values, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _lists(values: list[Sequence[Any]], kind: Any) -> Any:
    """An array of lists of plain values."""
    import pyarrow as pa

    flat = pa.array([value for each in values for value in each], kind.value_type)
    return pa.ListArray.from_arrays(_offsets(values), flat, type=kind)


def _offsets(values: Sequence[Sequence[Any]]) -> Any:
    """Where each list begins in all of them together, and the end."""
    import pyarrow as pa

    return pa.array(list(accumulate(map(len, values), initial=0)), pa.int32())
