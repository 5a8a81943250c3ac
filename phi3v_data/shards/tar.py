"""WebDataset shards: members of one sample are neighbours, and share a name up to the first dot.

    000017.json 000017.0.jpg 000017.1.jpg

The JSON of a sample is its row; it refers to an image by the member's name or by what follows the key (`0.jpg`), or has
the image in it as a data URL.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import msgspec

from phi3v_data.errors import UserError
from phi3v_data.media.packed import PackedImage
from phi3v_data.messages import shown
from phi3v_data.shards.rows import BadRowError, ShardRow
from phi3v_data.sources.archive import member_class, tar_members
from phi3v_data.sources.members import Limits
from phi3v_data.suffixes import STORED_IMAGES

MAX_JSON = 64 << 20
"""Bytes of the JSON of one sample, as of a line of a JSONL file."""

_END_MARK = 1024
_DATA_URL = re.compile(rb"data:image/([A-Za-z0-9.+-]+);base64,([A-Za-z0-9+/]+={0,2})")
_SUFFIX_OF = {kind.lower(): suffixes[0] for kind, suffixes in STORED_IMAGES.items()}
_SUFFIXES = frozenset(suffix for suffixes in STORED_IMAGES.values() for suffix in suffixes)


def read_tar(path: Path, number: int, stem: str) -> Iterator[ShardRow]:
    """Yield the samples of a shard in order; see `rows.ShardReader`.

    Raises:
        UserError: the file is damaged, compressed, or not a tar.
        BadRowError: a sample without JSON, or with one that cannot be read.
    """

    def refuse(why: str) -> NoReturn:
        raise UserError(f"{path} {why}; it is not read")

    try:
        with tarfile.open(path, "r:", tarinfo=member_class(Limits(), refuse)) as packed:
            yield from _samples(packed, path.name, number, stem)
        if not _ends_in_zeros(path):
            raise tarfile.ReadError("no end mark")
    except tarfile.TarError as error:
        raise UserError(
            f"{path} is damaged, cut short or compressed ({error}); WebDataset shards are plain tar files: unpack a "
            "compressed one with gunzip"
        ) from None


def _ends_in_zeros(path: Path) -> bool:
    """Whether the file ends as a complete tar does; a cut one may end between two members, without an error."""
    with path.open("rb") as file:
        file.seek(-min(_END_MARK, path.stat().st_size), os.SEEK_END)
        return file.read() == bytes(_END_MARK)


def _samples(packed: tarfile.TarFile, shard: str, number: int, stem: str) -> Iterator[ShardRow]:
    key, row, images = "", None, dict[str, PackedImage]()
    for member in tar_members(packed):
        name = PurePosixPath(member.name)
        if not member.isreg() or name.name.startswith(".") or "__MACOSX" in name.parts:
            continue
        base, _, field = name.name.partition(".")
        this = str(name.parent / base)
        if this != key and key:
            yield _finished(shard, key, row, images)
            row, images = None, {}
        key = this
        if field.lower() == "json":
            data = _content(packed, member, f"{shard}: {member.name}")
            row = _json(data, f"{shard}: {member.name}")
            images |= _data_urls(data, member, number, stem)
        elif f".{field.rpartition('.')[2].lower()}" in _SUFFIXES:
            image = PackedImage(f"{stem}/{member.name}", number, member.offset_data, member.size)
            for reference in (member.name, name.name, field):
                images[reference] = image
    if key:
        yield _finished(shard, key, row, images)


def _finished(shard: str, key: str, row: Any, images: dict[str, PackedImage]) -> ShardRow:
    where = f"{shard}: {key}"
    if not isinstance(row, dict):
        raise BadRowError(where, "the sample has no .json with an object, which would be its conversation")
    return ShardRow(where, row, images)


def _content(packed: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> bytes:
    if member.size > MAX_JSON:
        raise BadRowError(where, f"has {member.size:,} bytes, over the limit of {MAX_JSON:,}")
    stream = packed.extractfile(member)
    return stream.read() if stream else b""


def _data_urls(data: bytes, member: tarfile.TarInfo, number: int, stem: str) -> dict[str, PackedImage]:
    """The images in the text of a JSON member, by their data URLs."""
    images: dict[str, PackedImage] = {}
    for found in _DATA_URL.finditer(data):
        url = found[0].decode()
        suffix = _SUFFIX_OF.get(found[1].decode().lower(), "")
        name = f"{stem}/{member.name}.{len(images)}{suffix}"
        offset = member.offset_data + found.start(2)
        images.setdefault(url, PackedImage(name, number, offset, len(found[2]), is_base64=True))
    return images


def _json(data: bytes, where: str) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRowError(where, f"is not JSON ({shown(str(error))})") from None
