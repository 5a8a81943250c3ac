"""A directory whose images are in tar shards of its own, instead of one file for each.

    DIR/images                     the index: shard, offset, size and hash of the content by name (`columns.py`)
    DIR/shards/images-000000.tar   members are the images, each under its name in the rows

The index is a part of the set and is copied with it, so nothing in it depends on a machine, and nothing in it is
believed: it is read only if all numbers are possible, names no file but those of `DIR/shards/`, follows no link, opens
a shard only if it is a regular file of the recorded size, and gives no bytes but those whose hash it has. So a shard
that was cut off, exchanged or changed gives an error for each image that is affected, and never another image.

`store_writer.py` makes both; `packed.py` opens the index like that of an export.
"""

import errno
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import xxhash

from phi3v_data.columns import DamagedFileError, read_columns
from phi3v_data.files import SHARDS
from phi3v_data.media.pack import IN_MEMORY, Ints, Pack, ShardState, hash_of_name, is_regular, mixed
from phi3v_data.media.pack_names import check_names
from phi3v_data.messages import shown

MAGIC = b"phi3vst1"
COLUMNS = ("ends", "shard_of", "offsets", "sizes", "digests", "listing", "hashes", "order")
NUMBER = np.dtype("<i8")
BLOCK = 512
"""Members of a tar file begin at multiples of it, with a header of at least one block."""

_MAX_INDEX = 1 << 40
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}\.tar")


class StoredPack(Pack):
    """The index of a directory with shards of its own."""

    open_shards: ClassVar[int] = 128

    def __init__(self, path: Path, header: Any, body: memoryview) -> None:
        super().__init__(path)
        self.shards, self._shard_sizes = _shards(header)
        count = header["count"]
        columns = [np.frombuffer(body, NUMBER, count, 8 * count * number) for number in range(len(COLUMNS))]
        self.ends, self.shard_of, self.offsets, self.sizes, self._digests, self._listing, *names = columns
        self._hashes, self._order = names
        self.blob = body[8 * count * len(COLUMNS) :]
        hashes, folders = check_names(self.blob, self.ends)
        self._check_places()
        self._check_order(hashes)
        self._check_folders(folders)

    @classmethod
    def open(cls, path: Path) -> "StoredPack | None":
        """Read an index; None if the file is none.

        Raises:
            NotADirectoryError: it is damaged, or has numbers that cannot be.
        """
        try:
            found = read_columns(path, MAGIC, _MAX_INDEX, in_memory=IN_MEMORY)
            return cls(path, *found) if found is not None else None
        except (DamagedFileError, ValueError, KeyError, TypeError, OverflowError) as error:
            why = str(error).removeprefix(f"{path}: ") if isinstance(error, DamagedFileError) else "has a wrong value"
            raise NotADirectoryError(
                errno.ENOTDIR, f"is a damaged index of images ({why}); copy it again together with {SHARDS}/", str(path)
            ) from None

    def listing(self) -> Ints:
        """All entries in the order of files in folders: see `store_writer.py`."""
        return self._listing

    def states(self) -> list[ShardState | None]:
        """The state of each shard now; None if it is missing, is reached through a link, or has another size."""
        return [self._try(lambda file: ShardState.of(os.fstat(file)), shard) for shard in range(len(self.shards))]

    def places(self) -> Ints:
        """Place and content of each image as one number."""
        return mixed(self.offsets, self._digests)

    def _read(self, entry: int, size: int) -> bytes:
        shard = int(self.shard_of[entry])
        data = self._pread(shard, int(self.offsets[entry]), size)
        if len(data) != size or hash_of_content(data) != self._digests[entry]:
            raise self._refuse(shard, errno.ESTALE, "was changed or damaged")
        return data

    def _is_current(self, shard: int, file: IO[bytes]) -> bool:
        try:
            return os.path.samestat(
                os.lstat(f"{self.path.parent}/{SHARDS}/{self.shards[shard]}"), os.fstat(file.fileno())
            )
        except OSError:
            return False

    def _try(self, look: Callable[[int], ShardState], shard: int) -> ShardState | None:
        try:
            with self._opened(shard) as file:
                return look(file.fileno())
        except OSError:
            return None

    def _opened(self, shard: int) -> IO[bytes]:
        try:
            folder = os.open(self.path.parent / SHARDS, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                descriptor = os.open(self.shards[shard], flags, dir_fd=folder)
            finally:
                os.close(folder)
        except FileNotFoundError:
            raise self._refuse(shard, errno.ENOENT, "is missing") from None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise self._refuse(shard, errno.ELOOP, "is a link or behind one, and links are not followed") from None
            raise
        found = os.fstat(descriptor)
        if not is_regular(found) or found.st_size != self._shard_sizes[shard]:
            os.close(descriptor)
            raise self._refuse(shard, errno.ESTALE, "is not the file that the index was made for")
        return open(descriptor, "rb", buffering=0)

    def _refuse(self, shard: int, code: int, why: str) -> OSError:
        name = f"{SHARDS}/{self.shards[shard]}"
        return OSError(code, f"the shard {name} {why}; copy {SHARDS}/ and images again", str(self.path.parent / name))

    def _check_places(self) -> None:
        """Refuse numbers that cannot be; members are in the order of their places, and none is in another.

        Raises:
            ValueError: there is one.
        """
        count = len(self.ends)
        if not count:
            return
        limits = np.array(self._shard_sizes, np.int64)
        shard, offsets, sizes, order = self.shard_of, self.offsets, self.sizes, self._order
        _require(_within(shard, 0, len(limits) - 1))
        _require(_within(order, 0, count - 1) and _within(self._listing, 0, count - 1))
        _require(_within(offsets, BLOCK, int(limits.max())) and _within(sizes, 0, int(limits.max())))
        _require(bool((offsets + sizes <= limits[shard]).all()))
        same = shard[1:] == shard[:-1]
        _require(bool((shard[1:] >= shard[:-1]).all()))
        _require(bool((offsets[1:] >= offsets[:-1] + sizes[:-1] + BLOCK)[same].all()))

    def _check_order(self, hashes: Ints) -> None:
        """Refuse a listing without all entries, and hashes that are not those of the names, or of equal names.

        Raises:
            ValueError: something is wrong.
            DamagedFileError: two images have one name.
        """
        _require(_is_permutation(self._order) and _is_permutation(self._listing))
        _require(bool((self._hashes == hashes[self._order]).all()))
        _require(bool((self._hashes[1:] >= self._hashes[:-1]).all()))
        for place in np.flatnonzero(self._hashes[1:] == self._hashes[:-1]).tolist():
            one, other = (self.name(int(self._order[place + step])) for step in (0, 1))
            if one == other:
                raise DamagedFileError(f"the name {shown(one, 60)} is there twice")

    def _check_folders(self, folders: set[str]) -> None:
        """Refuse a name that is a file and a folder of other names. Raises DamagedFileError."""
        if not len(self):
            return
        names = sorted(folders)
        hashes = np.fromiter(map(hash_of_name, names), np.int64, len(names))
        places = np.minimum(np.searchsorted(self._hashes, hashes), len(self) - 1)
        for found in np.flatnonzero(self._hashes[places] == hashes).tolist():
            if self.find(names[found]) >= 0:
                raise DamagedFileError(f"{shown(names[found], 60)} names a file and a folder alike")


def _is_permutation(order: Ints) -> bool:
    """Whether each entry is there once."""
    seen = np.zeros(len(order), np.bool_)
    seen[order] = True
    return bool(seen.all())


def hash_of_content(data: bytes) -> int:
    """Hash of the bytes of an image."""
    return xxhash.xxh3_64_intdigest(data) - (1 << 63)


def _shards(header: Any) -> tuple[list[str], list[int]]:
    """Names and sizes of the shards in the header of an index. Raises ValueError, TypeError, KeyError."""
    names, sizes = [name for name, _ in header["shards"]], [size for _, size in header["shards"]]
    _require(type(header["count"]) is int and header["count"] >= 0)
    _require(all(type(name) is str and _SHARD_NAME.fullmatch(name) is not None for name in names))
    _require(len(set(names)) == len(names))
    _require(all(type(size) is int and 0 <= size < 1 << 62 for size in sizes))
    return names, sizes


def _within(values: Ints, least: int, most: int) -> bool:
    return least <= int(values.min()) and int(values.max()) <= most


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError


def owned_shards(images: Path) -> Sequence[str]:
    """Names of the shards that belong to an index; none if `images` is a folder or absent.

    Raises:
        OSError: it is a file, but not an index.
    """
    if not os.path.lexists(images) or os.path.isdir(images):
        return ()
    pack = StoredPack.open(images)
    if pack is None:
        raise NotADirectoryError(errno.ENOTDIR, "is neither a folder nor an index of images", str(images))
    return pack.shards
