"""Writes a conversations directory as parquet or WebDataset shards, with other libraries than the package's reader."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phi3v_data.dataset import Dataset

KINDS = ("tar", "parquet")


def messages_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The turns of a row as messages with blocks, images before the text of their turn."""
    messages = []
    for turn in row["conversations"]:
        blocks: list[dict[str, str]] = [{"type": "image"} for _ in turn.get("images", ())]
        messages.append({"role": "user", "content": [*blocks, {"type": "text", "text": turn["user"]}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": turn["assistant"]}]})
    return messages


def write_shards(
    directory: Path, out: Path, kind: str, shards: int = 2, change: Callable[[dict[str, Any]], None] | None = None
) -> Path:
    """Write every split in `shards` shards; `change` may change a row before it is written."""
    out.mkdir(parents=True)
    dataset = Dataset(directory)
    for split in dataset:
        rows = [json.loads(dataset[split].raw(number)) for number in range(len(dataset[split]))]
        for shard in range(shards):
            part = rows[shard * len(rows) // shards : (shard + 1) * len(rows) // shards]
            if kind == "tar":
                write_tar(out / f"{split}-{shard:06d}.tar", directory, part, change)
            else:
                write_parquet(out / f"{split}-{shard:05d}-of-{shards:05d}.parquet", directory, part, change)
    return out


def write_tar(
    path: Path, directory: Path, rows: list[dict[str, Any]], change: Callable[[dict[str, Any]], None] | None = None
) -> None:
    with tarfile.open(path, "w") as packed:
        for number, row in enumerate(rows):
            names = [name for turn in row["conversations"] for name in turn.get("images", ())]
            fields = [f"{index}{Path(name).suffix}" for index, name in enumerate(names)]
            value = {"id": row["id"], "images": fields, "messages": messages_of(row)}
            value |= {key: row[key] for key in ("answers", "meta", "group") if key in row}
            if change:
                change(value)
            add(packed, f"{number:06d}.json", json.dumps(value).encode())
            for field, name in zip(fields, names, strict=True):
                add(packed, f"{number:06d}.{field}", (directory / "images" / name).read_bytes())


def add(packed: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    packed.addfile(member, io.BytesIO(data))


def write_parquet(
    path: Path, directory: Path, rows: list[dict[str, Any]], change: Callable[[dict[str, Any]], None] | None = None
) -> None:
    values = []
    for row in rows:
        names = [name for turn in row["conversations"] for name in turn.get("images", ())]
        images = [{"bytes": (directory / "images" / name).read_bytes(), "path": Path(name).name} for name in names]
        value = {"id": row["id"], "images": images, "messages": messages_of(row), "answers": row.get("answers", [])}
        if change:
            change(value)
        values.append(value)
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(values), path, row_group_size=3)
