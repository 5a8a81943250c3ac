"""Identity of the data of a run: split, rows, tile budget and a digest of the bytes of each source."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from phi3v_train.data.sources import Source

_CHUNK = 1 << 22


def data_identity(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Split, rows, tile budget and content of each source; the content of all its files is read once."""
    return [
        {
            "split": source.split.name,
            "rows": len(source),
            "num_crops": source.num_crops,
            "xxh3_128": digest([source.directory / name for name in source.split.files]),
        }
        for source in sources
    ]


def digest(paths: Sequence[Path]) -> str:
    """xxh3_128 over the bytes of files, one after another."""
    state = xxhash.xxh3_128()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                state.update(chunk)
    return state.hexdigest()


def describe_data(data: Sequence[Mapping[str, Any]]) -> str:
    """`train 30 rows (content 1a2b3c4d)`."""
    return " + ".join(f"{each['split']} {each['rows']} rows (content {each['xxh3_128'][:8]})" for each in data)
