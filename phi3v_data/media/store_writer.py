"""Writes images into tar shards and their index: see `stored.py`."""

from array import array
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np

from phi3v_data.columns import write_columns
from phi3v_data.files import SHARDS
from phi3v_data.media.pack import entry_name, hash_of_name, order_of_names
from phi3v_data.media.stored import MAGIC, NUMBER, hash_of_content
from phi3v_data.media.tar_member import END_MARK, padded, tar_member

SHARD_BYTES = 256 << 20
"""A shard is complete before it would become larger; one image alone may be."""

INDEX = "images"


class StoreWriter:
    """Writes `root/shards/` and, at the end, `root/images`; neither may be there yet."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._shards: list[list[str | int]] = []
        self._file: IO[bytes] | None = None
        self._at = 0  # in the shard that is open
        self._blob = bytearray()
        self._columns = [array("q") for _ in range(6)]  # ends, shards, offsets, sizes, digests, hashes

    def __len__(self) -> int:
        return len(self._columns[0])

    def add(self, name: str, data: bytes) -> None:
        """Add an image. Raises OSError."""
        member = tar_member(name, data)
        if self._file is None or (self._at and self._at + len(member) + len(END_MARK) > SHARD_BYTES):
            self._next()
        assert self._file is not None
        self._file.write(member)
        self._blob += name.encode()
        offset = self._at + len(member) - padded(len(data))
        values = (len(self._blob), len(self._shards), offset, len(data), hash_of_content(data), hash_of_name(name))
        for column, value in zip(self._columns, values, strict=True):
            column.append(value)
        self._at += len(member)

    def finish(self) -> None:
        """End the last shard and write the index, if there are images.

        Raises:
            RepeatedNameError: two images have one name.
            OSError: it cannot be written.
        """
        if self._file is None:
            return
        self._end()
        ends, *others, hashes = (np.frombuffer(column, np.int64) for column in self._columns)
        ordered, order = order_of_names(self._blob, ends, hashes)
        names = (entry_name(self._blob, ends, entry) for entry in range(len(self)))
        keys = list(map(_place_in_folders, names))
        listing = np.array(sorted(range(len(self)), key=keys.__getitem__), np.int64)
        columns = [column.astype(NUMBER) for column in (ends, *others, listing, ordered, order)]
        header = {"shards": self._shards, "count": len(self)}
        write_columns(self.root / INDEX, MAGIC, header, [*columns, self._blob])

    def close(self) -> None:
        """Close what is open, after an error."""
        if self._file is not None:
            with suppress(OSError):  # what could not be written before is tried again
                self._file.close()

    def _next(self) -> None:
        if self._file is not None:
            self._end()
        folder = self.root / SHARDS
        folder.mkdir(exist_ok=True)
        self._file = open(folder / self._name(), "wb")  # noqa: SIM115 - `_end` or `close` closes it
        self._at = 0

    def _name(self) -> str:
        return f"images-{len(self._shards):06d}.tar"

    def _end(self) -> None:
        assert self._file is not None
        self._file.write(END_MARK)
        self._file.close()
        self._shards.append([self._name(), self._at + len(END_MARK)])


def _place_in_folders(name: str) -> bytes:
    """Key that sorts names as `ImageTree` lists files: those of a folder by their bytes, then its folders."""
    *folders, file = name.encode().split(b"/")
    return b"".join(b"\1%b\0" % folder for folder in folders) + b"\0" + file
