"""The index of an export's shards that are objects in a store: each image is one ranged read, kept in the local cache.

Such an index is read only where `shards/view.py` makes it, among the views in the user's cache: one that came along
with a directory of someone else, or with a source that was copied to the cache, could make this machine ask any store
with the user's credentials.
"""

import errno
from functools import lru_cache
from pathlib import Path

from phi3v_data.media.cells import CellReader
from phi3v_data.media.export_pack import ExportPack, cell_offset, place_in_parquet
from phi3v_data.remote.address import parse_address
from phi3v_data.remote.cache import range_cache
from phi3v_data.remote.cache_folders import VIEWS, cache_home
from phi3v_data.remote.store import StoredObject, open_store

_DESCRIBED = 64
"""Parquet shards whose descriptions stay in memory: a kilobyte or two for each row group, and a request saved."""


class RemotePack(ExportPack):
    """The index of remote shards."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if not path.resolve().is_relative_to((cache_home() / VIEWS).resolve()):
            raise NotADirectoryError(
                errno.ENOTDIR, "is an index of images in a store, made on another machine; give its address", str(path)
            )
        assert self.header.etags is not None
        self._store = open_store(parse_address(self.header.root))
        self._objects = [
            StoredObject(name, state.size, etag)
            for name, state, etag in zip(self.shards, self._states, self.header.etags, strict=True)
        ]
        self._reader_of = lru_cache(_DESCRIBED)(lambda shard: CellReader(self.column))

    def is_near(self, entry: int) -> bool:
        """Whether an image is in the cache."""
        return range_cache().has(self._key(entry))

    def _key(self, entry: int) -> str:
        shard, offset = int(self.shard_of[entry]), int(self.offsets[entry])
        return self._key_of(shard, offset, int(self.sizes[entry]))

    def _key_of(self, shard: int, offset: int, size: int) -> str:
        return self._store.key(self._objects[shard], offset, size)

    def _bytes(self, shard: int, offset: int, size: int) -> bytes:
        cache, key = range_cache(), self._key_of(shard, offset, size)
        if self.kind == "tar":
            return cache.get(key, lambda: self._store.read(self._objects[shard], offset, size))
        group, row, number = place_in_parquet(offset)
        together = f"{self._store.where(self.shards[shard])}\0{group}"
        return cache.get(key, lambda: self._from_group(shard, group, row, number), together=together)

    def _from_group(self, shard: int, group: int, row: int, number: int) -> bytes:
        """An image of a row group, which is read as a whole; all images of it are kept, as others will be wanted."""
        cache = range_cache()
        with self._store.ranges(self._objects[shard]) as file:
            cells = self._reader_of(shard).read(file, group)
        for at, index, data in cells.images():
            cache.put(self._key_of(shard, cell_offset(group, at, index), len(data)), data)
        return cells.image(row, number)
