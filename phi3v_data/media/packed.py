"""Images inside other files: members of tar files, base64 text in such members, cells of parquet files.

In a directory with packed images, `DIR/images` is not a folder but an index, and `DIR/images/NAME` is the path of a
packed image as of any other. `images.read_image_file` reads both, so nothing else has to know the difference. The index
of an export names the files ("shards") with the state they had when it was made: size, times, inode. Of a shard in
another state nothing is read, so that an index that came along with a downloaded directory can refer to no file of this
machine. A directory with shards of its own has another index, which is copied with it: `stored.py`.

    read_packed(path)      the bytes of a packed image
    find_packed(path)      the index that it is in, and its entry
    open_pack(path)        the index
"""

import errno
import os
import stat
from functools import lru_cache
from pathlib import Path

from phi3v_data.media.export_pack import NO_SIZE, ExportPack
from phi3v_data.media.pack import Pack, ShardState
from phi3v_data.media.stored import StoredPack

_OPEN = 64
"""Indexes that stay open: those of all sets that are trained on or merged."""


def open_pack(path: Path) -> Pack:
    """The index in a file; one that was opened before is used again while it is unchanged.

    Raises:
        NotADirectoryError: it is not an index.
        OSError: it cannot be read.
    """
    return _open_pack(os.fspath(path))


def _open_pack(path: str) -> Pack:
    state = ShardState.of(os.stat(path))
    stored = _stored(path, state)
    return stored if stored is not None else _of_export(path, state, os.getpid())


@lru_cache(maxsize=_OPEN)
def _stored(path: str, state: ShardState) -> StoredPack | None:
    return StoredPack.open(Path(path))


@lru_cache(maxsize=_OPEN)
def _of_export(path: str, state: ShardState, process: int) -> ExportPack:
    pack = ExportPack(Path(path))
    if pack.header.etags is None:
        return pack
    from phi3v_data.media.remote_pack import RemotePack

    return RemotePack(Path(path))


def pack_above(path: Path) -> Path | None:
    """The file on the way to a path that ends in it: the index of `DIR/images/NAME`; None if there is none."""
    index = _index_above(os.fspath(path))
    return Path(index) if index is not None else None


_last_index = ""
"""The index of the last image that was looked for, which most probably has the next one."""


def _index_above(path: str) -> str | None:
    """As `pack_above`, in a fraction of the time of its objects, as it is asked for each image."""
    end = len(path)
    while (end := path.rfind("/", 0, end)) > 0:
        try:
            mode = os.stat(path[:end]).st_mode
        except NotADirectoryError:
            continue
        except OSError:
            return None
        return path[:end] if stat.S_ISREG(mode) else None
    return None


def find_packed(path: str | Path) -> tuple[Pack, int]:
    """The index that a packed image is in, and its entry.

    Raises:
        NotADirectoryError: no index is on the way to the path.
        FileNotFoundError: the index has no such name.
        OSError: see `open_pack`.
    """
    global _last_index
    text = os.fspath(path)
    index: str | None = _last_index
    if not index or not text.startswith(index) or text[len(index) : len(index) + 1] != "/":
        index = _index_above(text)
        if index is None:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), text)
        _last_index = index
    pack = _open_pack(index)
    entry = pack.find(text[len(index) + 1 :])
    if entry < 0:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), text)
    return pack, entry


def is_remote_index(path: Path) -> bool:
    """Whether this is the index of images in a store."""
    try:
        pack = open_pack(path) if path.is_file() else None
    except OSError:
        return False
    return isinstance(pack, ExportPack) and pack.header.etags is not None


def known_size(path: Path) -> tuple[int, int]:
    """Width and height of a packed image as its index has them, without reading it; `NO_SIZE` if it has not."""
    try:
        pack, entry = find_packed(path)
    except OSError:
        return NO_SIZE
    return pack.image_size(entry)


def read_packed(path: str | Path) -> bytes:
    """The bytes of a packed image. Raises as `find_packed` and `Pack.read`."""
    pack, entry = find_packed(path)
    return pack.read(entry)
