"""An index of packed images, whatever its shards are: names, the place of each image, and a way to read it.

There are two kinds. The index of an export's shards is made on this machine for this machine (`packed.py`); that of a
directory with shards of its own is a part of the set, and is copied with it (`stored.py`).
"""

import os
import stat
import weakref
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, ClassVar, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from phi3v_data.media.formats import LIMITS, TooLargeImageError

IN_MEMORY = 32 << 20
"""Bytes up to which an index is read instead of mapped: some 300,000 images."""

KEPT_BELOW = 512
"""Shards stay open if their descriptors are below it, so that those of many sets leave some for other files."""

Ints: TypeAlias = npt.NDArray[np.int64]

_FACTOR, _SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(29)


class ShardState(NamedTuple):
    """State of a shard: if it differs, the shard was changed or replaced."""

    size: int
    mtime: int  # ns
    ctime: int  # ns
    inode: int

    @classmethod
    def of(cls, found: os.stat_result) -> "ShardState":
        """The state of a file, from its `stat`."""
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


class RepeatedNameError(ValueError):
    """Two images of one index have the same name."""


class Pack(ABC):
    """An index, in memory or mapped, and the shards that it refers to.

    Columns, with one value per image: `ends` of the names in `blob`, `shard_of`, `offsets` and `sizes` (bytes) in the
    shards, and the sorted hashes of the names with the entry of each (`_order`).
    """

    path: Path
    shards: list[str]
    blob: memoryview
    ends: Ints
    shard_of: Ints
    offsets: Ints
    sizes: Ints
    _hashes: Ints
    _order: Ints

    open_shards: ClassVar[int] = 32
    """The first ones that are opened stay open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[int, IO[bytes]] = {}
        self._replaced: list[IO[bytes]] = []
        weakref.finalize(self, _close_all, self._files, self._replaced)

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, entry: int) -> str:
        """Name of an entry."""
        return entry_name(self.blob, self.ends, entry)

    def find(self, name: str) -> int:
        """The entry of a name; -1 if there is none."""
        value = hash_of_name(name)
        hashes = self._hashes
        place = bisect_left(hashes, value)
        while place < len(hashes) and hashes[place] == value:
            entry = int(self._order[place])
            if self.name(entry) == name:
                return entry
            place += 1
        return -1

    def listing(self) -> Ints:
        """All entries, in the order in which images are listed."""
        return np.arange(len(self))

    def file_size(self, entry: int) -> int:
        """Bytes of an image."""
        return int(self.sizes[entry])

    def image_size(self, entry: int) -> tuple[int, int]:
        """Width and height of an image if they are known without reading it, else zeros."""
        return 0, 0

    def read(self, entry: int) -> bytes:
        """The bytes of an entry.

        Raises:
            TooLargeImageError: more than `LIMITS.file_bytes`.
            UnreadableImageError: the text of an image is not base64.
            OSError: the shard cannot be read, or was changed since the index was made.
        """
        size = int(self.sizes[entry])
        if size > LIMITS.file_bytes:
            raise TooLargeImageError(f"has {size:,} bytes, over the limit of {LIMITS.file_bytes:,}")
        return self._read(entry, size)

    @abstractmethod
    def states(self) -> list[ShardState | None]:
        """The state of each shard; None if it is not the one that the index was made for."""

    def places(self) -> Ints:
        """A number for each entry, another one if the image is at another place in its shard, or has other content."""
        return self.offsets

    @abstractmethod
    def _read(self, entry: int, size: int) -> bytes: ...

    @abstractmethod
    def _opened(self, shard: int) -> IO[bytes]:
        """A shard, opened and compared with the index. Raises OSError."""

    def _is_current(self, shard: int, file: IO[bytes]) -> bool:
        """Whether an open shard is still the file of that name."""
        return True

    @contextmanager
    def _shard(self, shard: int) -> Iterator[IO[bytes]]:
        """An open shard; the first ones stay open as long as they are the files of that name."""
        known = self._kept(shard)
        if known is not None:
            yield known
            return
        file = self._opened(shard)
        if len(self._files) < self.open_shards and file.fileno() < KEPT_BELOW:
            file = self._files.setdefault(shard, file)
            yield file
            return
        with file:
            yield file

    def _kept(self, shard: int) -> IO[bytes] | None:
        """A shard that is open and still the file of that name."""
        known = self._files.get(shard)
        if known is None or self._is_current(shard, known):
            return known
        self._files.pop(shard, None)
        self._replaced.append(known)  # not closed, as another thread may be reading it
        return None

    def _pread(self, shard: int, offset: int, size: int) -> bytes:
        known = self._kept(shard)
        if known is not None:
            return os.pread(known.fileno(), size, offset)
        with self._shard(shard) as file:
            return os.pread(file.fileno(), size, offset)


def is_regular(found: os.stat_result) -> bool:
    """Whether a `stat` is of a regular file."""
    return stat.S_ISREG(found.st_mode)


def entry_name(blob: "memoryview | bytearray", ends: Ints, entry: int) -> str:
    """Name of an entry, in the names one after another and their ends."""
    start = int(ends[entry - 1]) if entry else 0
    return str(bytes(blob[start : int(ends[entry])]), "utf-8")


def hash_of_name(name: str) -> int:
    """Hash by which a name is found."""
    return xxhash.xxh3_64_intdigest(name.encode()) - (1 << 63)


def mixed(left: Ints, right: Ints) -> Ints:
    """One number of two, in this order; of two with the same `left`, another one for another `right`."""
    value = left.astype(np.uint64) * _FACTOR  # odd: multiplying by it loses nothing
    value ^= value >> _SHIFT
    value = (value ^ right.astype(np.uint64)) * _FACTOR
    value ^= value >> _SHIFT
    return value.view(np.int64)


def order_of_names(blob: bytearray, ends: Ints, hashes: Ints) -> tuple[Ints, Ints]:
    """The sorted hashes of the names, and the entry of each.

    Raises:
        RepeatedNameError: two images have one name.
    """
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    for place in np.flatnonzero(ordered[1:] == ordered[:-1]).tolist():
        one, other = (entry_name(blob, ends, int(order[place + step])) for step in (0, 1))
        if one == other:
            raise RepeatedNameError(one)
    return ordered, order


def _close_all(files: dict[int, IO[bytes]], replaced: list[IO[bytes]]) -> None:
    while files:
        files.popitem()[1].close()
    while replaced:
        replaced.pop().close()
