"""The one interface by which shards are read: a file on this machine, or an object in a store."""

import os
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import IO, Protocol

from phi3v_data.errors import NotFoundError
from phi3v_data.files import unreadable
from phi3v_data.media.pack import ShardState
from phi3v_data.remote.cache import range_cache
from phi3v_data.remote.store import Store, StoredObject


class ShardFile(Protocol):
    """A shard; as text, what a user finds it by."""

    @property
    def name(self) -> str:
        """Its name without folders."""

    @property
    def is_remote(self) -> bool:
        """Whether reading a part of it takes a request to another machine."""

    @property
    def state(self) -> ShardState:
        """Its state, another one if its content is."""

    def open(self) -> IO[bytes]:
        """Open it as a seekable file. Raises OSError, UserError."""

    def keep(self, offset: int, data: bytes) -> None:
        """Note the bytes of an image at a place (`PackedImage.offset`), which will be read again."""


@dataclass(frozen=True)
class LocalShard:
    """A file on this machine."""

    path: Path
    is_remote = False

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """Its name without folders."""
        return self.path.name

    @cached_property
    def state(self) -> ShardState:
        """Its state.

        Raises:
            NotFoundError: there is no such file.
            UserError: it cannot be read, such as a link to itself.
        """
        try:
            return ShardState.of(os.stat(self.path))
        except FileNotFoundError:
            raise NotFoundError(f"{self.path}: no such file") from None
        except OSError as error:
            raise unreadable(self.path, error) from None

    def open(self) -> IO[bytes]:
        """Open it. Raises OSError."""
        return open(self.path, "rb")

    def keep(self, offset: int, data: bytes) -> None:
        """Do nothing: the file is here."""


@dataclass(frozen=True)
class RemoteShard:
    """An object in a store, as it was listed; `is_kept`: the local cache has room for all images of its folder."""

    store: Store
    found: StoredObject
    is_kept: bool
    is_remote = True

    def __str__(self) -> str:
        return self.store.where(self.found.name)

    @property
    def name(self) -> str:
        """Its name without folders."""
        return self.found.name.rpartition("/")[2]

    @property
    def state(self) -> ShardState:
        """Size and a hash of the etag."""
        return state_of_object(self.found.size, self.found.etag)

    def open(self) -> IO[bytes]:
        """Open it, read ahead block by block. Raises UserError when it is read."""
        return self.store.open(self.found)

    def keep(self, offset: int, data: bytes) -> None:
        """Keep an image in the local cache, if all fit."""
        if self.is_kept:
            range_cache().put(self.store.key(self.found, offset, len(data)), data)


def state_of_object(size: int, etag: str) -> ShardState:
    """The state of an object as that of a file: the hash of its etag stands for times and inode."""
    return ShardState(size, 0, 0, int.from_bytes(sha256(etag.encode()).digest()[:7], "big"))
