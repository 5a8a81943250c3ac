"""The index of images in the shards of an export: members of tar files, base64 text in them, cells of parquet files."""

import binascii
import errno
import os
from array import array
from base64 import b64decode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Literal, TypeAlias

import msgspec
import numpy as np

from phi3v_data.columns import DamagedFileError, read_columns, write_columns
from phi3v_data.media.cells import CellReader, Cells
from phi3v_data.media.formats import UnreadableImageError
from phi3v_data.media.pack import IN_MEMORY, Pack, ShardState, hash_of_name, is_regular, order_of_names
from phi3v_data.remote.address import Address

Kind: TypeAlias = Literal["tar", "parquet"]

_MAGIC = b"phi3vpk3"
_MAX_INDEX = 1 << 36
_COLUMNS = ("ends", "shards", "offsets", "sizes", "is_base64", "image_sizes", "hashes", "order")
_GROUP, _ROW = 1 << 40, 1 << 12
"""Multipliers of row group and row in the offset of a parquet cell; the rest is the number of the image in the cell."""

MAX_IMAGES_PER_CELL = _ROW
NO_SIZE = (0, 0)
"""Width and height of an image of which they are not known."""


@dataclass(frozen=True, slots=True)
class PackedImage:
    """Location of one image. `offset`: byte in a tar file, or `cell_offset` in a parquet file."""

    name: str
    shard: int
    offset: int
    size: int  # bytes there
    is_base64: bool = False  # they are the base64 text of the image
    image_size: tuple[int, int] = NO_SIZE  # width and height


@dataclass(frozen=True, slots=True)
class RemoteShards:
    """Shards in a store: the address of their folder, and of each its state as that of a file and its etag."""

    address: Address
    states: Sequence[ShardState]
    etags: Sequence[str]


def cell_offset(group: int, row: int, number: int) -> int:
    """The offset of image `number` of a row's cell, `row` counted within its row group."""
    return group * _GROUP + row * _ROW + number


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Header of an index."""

    kind: Kind
    column: str
    root: str
    shards: list[str]
    states: list[tuple[int, int, int, int]]
    count: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
    etags: list[str] | None = None


class ExportPack(Pack):
    """The index of an export's shards."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            found = read_columns(path, _MAGIC, _MAX_INDEX, in_memory=IN_MEMORY)
        except DamagedFileError:
            found = None
        if found is None:
            raise NotADirectoryError(errno.ENOTDIR, "is neither a folder nor an index of packed images", str(path))
        header, body = found
        try:
            self.header = msgspec.convert(header, _Header)
            self._take(self.header.count, body)
        except (msgspec.ValidationError, ValueError):
            raise NotADirectoryError(errno.ENOTDIR, "is an index with values that cannot be", str(path)) from None
        self.kind, self.column, self.shards = self.header.kind, self.header.column, self.header.shards
        self.root = Path(self.header.root)
        self._states = [ShardState(*values) for values in self.header.states]
        self._reader = -1, CellReader(self.column)  # of the shard that was read last
        self._group: tuple[tuple[int, int], Cells | None] = (-1, -1), None  # the row group that was read last

    def _take(self, count: int, body: memoryview) -> None:
        """Take the columns, which may come from someone else. Raises ValueError."""
        columns = [np.frombuffer(body, np.int64, count, 8 * count * number) for number in range(len(_COLUMNS))]
        self.ends, self.shard_of, self.offsets, self.sizes, self.is_base64, *others = columns
        self._image_sizes, self._hashes, self._order = others
        self.blob = body[8 * count * len(_COLUMNS) :]
        num_shards = len(self.header.shards)
        if not num_shards == len(self.header.states) == len(self.header.etags or self.header.shards):
            raise ValueError
        if not count:
            return
        starts = np.concatenate(([0], self.ends[:-1]))
        if self.ends[-1] != len(self.blob) or not bool((starts < self.ends).all()):
            raise ValueError
        first = np.frombuffer(self.blob, np.uint8)[starts]
        if bool((first == ord("/")).any() or (first & 0xC0 == 0x80).any()):  # an absolute path, half a character
            raise ValueError
        str(self.blob, "utf-8")
        for column, limit in ((self.shard_of, num_shards), (self._order, count)):
            if not 0 <= int(column.min()) <= int(column.max()) < limit:
                raise ValueError
        if min(int(column.min()) for column in (self.offsets, self.sizes, self._image_sizes)) < 0:
            raise ValueError

    def file_size(self, entry: int) -> int:
        """Bytes of an image; of base64 text, up to two more."""
        size = int(self.sizes[entry])
        return size * 3 // 4 if self.is_base64[entry] else size

    def image_size(self, entry: int) -> tuple[int, int]:
        width, height = divmod(int(self._image_sizes[entry]), 1 << 32)
        return width, height

    def states(self) -> list[ShardState | None]:
        """The states in which the shards must be."""
        return list(self._states)

    def _read(self, entry: int, size: int) -> bytes:
        shard, offset = int(self.shard_of[entry]), int(self.offsets[entry])
        data = self._bytes(shard, offset, size)
        if len(data) != size:
            raise _stale(self.root / self.shards[shard])
        if not self.is_base64[entry]:
            return data
        try:
            return b64decode(data)
        except binascii.Error:
            raise UnreadableImageError("is damaged: its base64 text is incomplete") from None

    def _bytes(self, shard: int, offset: int, size: int) -> bytes:
        """The bytes at a place in a shard."""
        return self._pread(shard, offset, size) if self.kind == "tar" else self._from_parquet(shard, offset)

    def _opened(self, shard: int) -> IO[bytes]:
        path = self.root / self.shards[shard]
        try:
            file = open(path, "rb", buffering=0, opener=_open)  # noqa: SIM115 - the caller keeps or closes it
        except IsADirectoryError:
            raise _stale(path) from None
        found = os.fstat(file.fileno())
        if not is_regular(found) or ShardState.of(found) != self._states[shard]:
            file.close()
            raise _stale(path)
        return file

    def _from_parquet(self, shard: int, offset: int) -> bytes:
        group, row, number = place_in_parquet(offset)
        known, cells = self._group
        if cells is None or known != (shard, group):
            reader = self._reader
            if reader[0] != shard:
                reader = self._reader = shard, CellReader(self.column)
            with self._shard(shard) as file:  # which has one position, so each process opens its own `Pack`
                cells = reader[1].read(file, group)
            self._group = (shard, group), cells
        return cells.image(row, number)


def place_in_parquet(offset: int) -> tuple[int, int, int]:
    """Row group, row in it and number in the cell of a `cell_offset`."""
    group, rest = divmod(offset, _GROUP)
    return group, *divmod(rest, _ROW)


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)


def _stale(path: Path) -> OSError:
    return OSError(errno.ESTALE, "was changed since it was opened; run the command again", str(path))


def write_pack(
    path: Path,
    kind: Kind,
    root: Path,
    shards: Sequence[str],
    images: Iterable[PackedImage],
    *,
    column: str = "",
    remote: RemoteShards | None = None,
) -> None:
    """Write the index of `images`, whose shards are in `root`, atomically; images are taken one by one.

    The state of the shards is that before the first image is taken.

    Args:
        column: the column of a parquet file that has the images.
        remote: the shards are objects in a store; `root` is not used.

    Raises:
        RepeatedNameError: two images have one name.
        OSError: it cannot be written, or a shard is not there.
    """
    states = remote.states if remote else [ShardState.of(os.stat(root / shard)) for shard in shards]
    blob = bytearray()
    numbers = array("q")
    for image in images:
        blob += image.name.encode()
        width, height = image.image_size
        place = (len(blob), image.shard, image.offset, image.size, image.is_base64)
        numbers.extend((*place, (width << 32) + height, hash_of_name(image.name)))
    table = np.frombuffer(numbers, np.int64).reshape(-1, 7)
    hashes, order = order_of_names(blob, table[:, 0], table[:, 6])
    header = {
        "kind": kind,
        "column": column,
        "root": str(remote.address) if remote else os.path.abspath(root),
        "shards": list(shards),
        "states": [[state.size, state.mtime, state.ctime, state.inode] for state in states],
        "count": len(table),
        **({"etags": list(remote.etags)} if remote else {}),
    }
    columns = [*(np.ascontiguousarray(table[:, number]) for number in range(6)), hashes, order]
    write_columns(path, _MAGIC, header, [*columns, blob])
