"""The JSON member of a sample in a WebDataset shard: TRL's blocks, with the members of its images.

    000017.json   {"id": "1", "images": ["0.jpg"], "messages": [{"role": "user", "content": [{"type": "image"}, ...]}]}
    000017.0.jpg

In the layout `uniform`, which `datasets` can load, there is no other member: `images` has data URLs, and every field is
a text, arrays as JSON, because `datasets` takes the types of all rows from the first five.
"""

import gzip
import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3v_data.errors import UserError
from phi3v_data.files import unreadable
from phi3v_data.formats.blocks import BlockFormat
from phi3v_data.formats.chat import Reading


@dataclass(frozen=True)
class WebDataset(BlockFormat):
    """webdataset, Energon."""

    name = "webdataset"
    title = "webdataset, Energon"
    consumer = "webdataset"

    image_column = "images"
    weight_key = "weight"
    keeps = ("id", "answers", "group", "meta")

    def recognizes(self, row: Mapping[str, Any]) -> bool:
        return False  # a row that was read is one of TRL; only the file differs

    def read(self, row: Mapping[str, Any]) -> Reading:
        return super().read({key: _decoded(value) if key in _ARRAYS else value for key, value in row.items()})


_ARRAYS = ("images", "messages", "answers")


def _decoded(value: Any) -> Any:
    if isinstance(value, str):
        with suppress(ValueError):
            return json.loads(value)
    return value


def read_shard(path: Path) -> Iterator[tuple[str, Any]]:
    """Key and row of each sample of a shard: its JSON, with the bytes of an image for each member that it names.

    Raises:
        UserError: the shard cannot be read, is not complete, or a sample has no JSON member.
    """
    try:
        with gzip.open(path) if path.suffix in (".gz", ".tgz") else open(path, "rb") as file:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for key, members in _samples(archive):
                    yield key, _row(path, key, members)
                end = archive.offset
            file.seek(end)
            if file.read(512) != bytes(512):  # Python's tarfile takes a file that was cut off for a complete one
                raise tarfile.ReadError("it has no end mark")
    except (tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: is not a complete tar file ({error}); copy it again from its source") from None
    except OSError as error:
        raise unreadable(path, error) from None


def _samples(archive: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members of each sample: consecutive files whose path is equal up to the first dot of the base name."""
    key, members = "", dict[str, bytes]()
    for info in archive:
        archive.members = []  # type: ignore[attr-defined]  # else every header is kept
        file = archive.extractfile(info) if info.isfile() else None
        if file is None:
            continue
        folder, _, base = info.name.rpartition("/")
        stem, _, field = base.partition(".")
        found = f"{folder}/{stem}" if folder else stem
        if found != key and members:
            yield key, members
            members = {}
        key = found
        members[field] = file.read()
    if members:
        yield key, members


def _row(path: Path, key: str, members: Mapping[str, bytes]) -> Any:
    if "json" not in members:
        raise UserError(f"{path}: sample {key} has no {key}.json; it has {', '.join(sorted(members))}")
    try:
        row = json.loads(members["json"])
    except ValueError as error:
        raise UserError(f"{path}: {key}.json is not JSON ({error})") from None
    images = row.get("images") if isinstance(row, dict) else None
    if isinstance(images, list):
        row["images"] = [members.get(image, image) if isinstance(image, str) else image for image in images]
    return row
