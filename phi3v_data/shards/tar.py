"""WebDataset shards: members of one sample are neighbours, and share a name up to the first dot.

    000017.json 000017.0.jpg 000017.1.jpg

The JSON of a sample is its row; it refers to an image by the member's name or by what follows the key (`0.jpg`), or has
the image in it as a data URL.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any, NoReturn

import msgspec

from phi3v_data.errors import UserError
from phi3v_data.jsonl import BOM
from phi3v_data.media.export_pack import NO_SIZE, PackedImage
from phi3v_data.media.formats import LIMITS
from phi3v_data.media.images import size_in_header
from phi3v_data.messages import shown
from phi3v_data.shards.files import ShardFile
from phi3v_data.shards.rows import BadRowError, ShardRow
from phi3v_data.sources.archive import member_class, tar_members
from phi3v_data.sources.members import Limits
from phi3v_data.suffixes import STORED_IMAGES

MAX_JSON = 64 << 20
"""Bytes of the JSON of one sample, as of a line of a JSONL file."""

_END_MARK = 1024
_NO_FOLDER = PurePosixPath()
_DATA_URL = re.compile(rb"data:image/([A-Za-z0-9.+-]+);base64,([A-Za-z0-9+/]+={0,2})")
_SUFFIX_OF = {kind.lower(): suffixes[0] for kind, suffixes in STORED_IMAGES.items()}
_SUFFIXES = frozenset(suffix for suffixes in STORED_IMAGES.values() for suffix in suffixes)


@dataclass(slots=True)
class TarSample:
    """Neighbours with one key.

    Attributes:
        key: the name up to its first dot, with the folder.
        json: name, offset and size of the member with its row, if there is one.
        text: content of that member; None if it is over the limit.
        images: name, field, offset and size of each member that is an image, in order.
        image_sizes: width and height of each image; only of a remote shard.
        others: fields of all other members.
        repeated: a member whose field another one of the sample has, too; empty if all differ.
    """

    key: str
    json: tuple[str, int, int] | None = None
    text: bytes | None = None
    images: list[tuple[str, str, int, int]] = field(default_factory=list)
    image_sizes: list[tuple[int, int]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    repeated: str = ""
    fields: set[str] = field(default_factory=set)
    """All fields in lower case, as WebDataset compares them."""


def tar_samples(shard: ShardFile) -> Iterator[TarSample]:
    """Yield the samples of a shard in order.

    Raises:
        UserError: the file is damaged, compressed, or not a tar.
    """

    def refuse(why: str) -> NoReturn:
        raise UserError(f"{shard} {why}; it is not read")

    try:
        with shard.open() as file:
            with tarfile.open(fileobj=file, mode="r:", tarinfo=member_class(Limits(), refuse)) as packed:
                yield from _samples(packed, shard)
            if not _ends_in_zeros(file):
                raise tarfile.ReadError("no end mark")
    except tarfile.TarError as error:
        raise UserError(
            f"{shard} is damaged, cut short or compressed ({error}); WebDataset shards are plain tar files: unpack a "
            "compressed one with gunzip"
        ) from None


def read_tar(shard: ShardFile, number: int, stem: str) -> Iterator[ShardRow]:
    """Yield the rows of a shard in order; see `rows.ShardReader`.

    Raises:
        UserError: as `tar_samples`.
        BadRowError: a sample without JSON, or with one that cannot be read.
    """
    for sample in tar_samples(shard):
        where = f"{shard.name}: {sample.key}"
        row, images = None, dict[str, PackedImage]()
        if sample.repeated:
            raise BadRowError(where, two_members(sample))
        if sample.json is not None:
            name, offset, size = sample.json
            if sample.text is None:
                raise BadRowError(f"{shard.name}: {name}", f"has {size:,} bytes, over the limit of {MAX_JSON:,}")
            row = _json(sample.text, f"{shard.name}: {name}")
            images |= _data_urls(sample.text, _plain(name), offset, number, stem)
        for at, (name, field_, offset, size) in enumerate(sample.images):
            found = sample.image_sizes[at] if sample.image_sizes else NO_SIZE
            plain = _plain(name)
            image = PackedImage(f"{stem}/{plain}", number, offset, size, image_size=found)
            images |= dict.fromkeys((name, plain, _split(name)[1], field_), image)
        if not isinstance(row, dict):
            raise BadRowError(where, "the sample has no .json with an object, which would be its conversation")
        yield ShardRow(where, row, images)


def two_members(sample: TarSample) -> str:
    """Message about a sample with two members of one name."""
    return (
        f"the sample has two members {shown(PurePosixPath(sample.repeated).name)}, and it is not known which is meant"
    )


def _ends_in_zeros(file: IO[bytes]) -> bool:
    """Whether the file ends as a complete tar does; a cut one may end between two members, without an error."""
    file.seek(-min(_END_MARK, file.seek(0, os.SEEK_END)), os.SEEK_END)
    return file.read() == bytes(_END_MARK)


def _samples(packed: tarfile.TarFile, shard: ShardFile) -> Iterator[TarSample]:
    sample: TarSample | None = None
    for member in tar_members(packed):
        if member.issparse():
            raise UserError(
                f"{shard}: the member {shown(member.name)} was packed with tar --sparse, so its bytes are not in one "
                "place; pack the shard again without that option"
            )
        if not (member.isreg() or member.islnk() or member.issym()):
            continue
        folder, name = _split(member.name)
        if name.startswith(".") or "__MACOSX" in (*folder.parts, name):
            continue
        base, _, suffix = name.partition(".")
        key = base if folder is _NO_FOLDER else str(folder / base)
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample = TarSample(key)
        if suffix.lower() in sample.fields:
            sample.repeated = sample.repeated or member.name
        sample.fields.add(suffix.lower())
        if not member.isreg():
            sample.others.append(f"{suffix} (a link)")
        elif suffix.lower() == "json":
            sample.json = member.name, member.offset_data, member.size
            stream = packed.extractfile(member) if member.size <= MAX_JSON else None
            sample.text = stream.read() if stream else None
        elif f".{suffix.rpartition('.')[2].lower()}" in _SUFFIXES:
            sample.images.append((member.name, suffix, member.offset_data, member.size))
            if shard.is_remote:
                stream = packed.extractfile(member) if member.size <= LIMITS.file_bytes else None
                data = stream.read() if stream else b""
                sample.image_sizes.append(size_in_header(data))
                shard.keep(member.offset_data, data)
        else:
            sample.others.append(suffix)
    if sample is not None:
        yield sample


def _split(name: str) -> tuple[PurePosixPath, str]:
    """The folder of a member and its name in it; paths take time, and most members are in no folder."""
    if "/" not in name and name not in ("", "."):
        return _NO_FOLDER, name
    path = PurePosixPath(name)
    return path.parent, path.name


def _plain(name: str) -> str:
    """A name without components that mean nothing: `tar -cf train.tar .` writes `./000017.json`."""
    return str(PurePosixPath(name)) if "./" in name or "//" in name else name


def _data_urls(data: bytes, member: str, start: int, number: int, stem: str) -> dict[str, PackedImage]:
    """The images in the text of a JSON member, by their data URLs."""
    images: dict[str, PackedImage] = {}
    for found in _DATA_URL.finditer(data):
        url = found[0].decode()
        suffix = _SUFFIX_OF.get(found[1].decode().lower(), "")
        name = f"{stem}/{member}.{len(images)}{suffix}"
        offset = start + found.start(2)
        images.setdefault(url, PackedImage(name, number, offset, len(found[2]), is_base64=True))
    return images


def _json(data: bytes, where: str) -> Any:
    try:
        return msgspec.json.decode(data.removeprefix(BOM))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRowError(where, f"is not JSON ({shown(str(error))})") from None
