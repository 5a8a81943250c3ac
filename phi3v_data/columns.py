"""Internal files of numbers under `DIR/.phi3v/`: columns after a JSON header, with a checksum.

    magic, 8 bytes | checksum of all that follows, 8 | length of the header, 8 | header, JSON | columns

The three numbers are little-endian, the columns as their writer has them. The content can always be recomputed, so a
file that is damaged, of another version, too large, or reached through a link is not used. If the directory came from
someone else, so did the file: readers compare its content with the actual files before they use it.
"""

import json
import mmap
import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash

from phi3v_data.files import write_whole

_PREFIX = struct.Struct("<8sQQ")
_MAX_HEADER = 64 << 20
_PIECE = 1 << 24  # checked at a time, so that signals are handled


class DamagedFileError(ValueError):
    """An internal file is damaged."""


def read_small(path: Path, limit: int) -> bytes | None:
    """The content of a regular file of at most `limit` bytes; None for any other, and for one that cannot be read."""
    try:
        descriptor = _open(path)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        try:
            data = file.read(limit + 1)
        except OSError:
            return None
    return data if len(data) <= limit else None


def write_columns(path: Path, magic: bytes, header: Any, columns: Sequence[Any]) -> None:
    """Write a file atomically. `columns` are buffers; the header is padded so that they start at a multiple of 8 bytes.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps(header, allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    views = [memoryview(column).cast("B") if len(column) else memoryview(b"") for column in columns]
    length = struct.pack("<Q", len(text))
    hasher = xxhash.xxh3_64()
    hasher.update(length + text)
    for view in views:
        hasher.update(view)
    with write_whole(path) as file:
        file.write(magic + struct.pack("<Q", hasher.intdigest()) + length + text)
        for view in views:
            file.write(view)


def read_columns(path: Path, magic: bytes, limit: int, *, in_memory: int = 0) -> tuple[Any, memoryview] | None:
    """Return the header and the memory-mapped columns; None if there is no regular file with this magic.

    A file of at most `in_memory` bytes is read instead: if a mapped one is cut off in place, a signal (SIGBUS) ends the
    processes that read it.

    Raises:
        DamagedFileError: the checksum is wrong, or the file is larger than `limit` bytes.
    """
    try:
        descriptor = _open(path)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size < _PREFIX.size:
            return None
        if status.st_size <= in_memory:
            data = memoryview(_read(descriptor, status.st_size))
        else:
            data = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)
    if len(data) < _PREFIX.size or bytes(data[: len(magic)]) != magic:
        return None
    _, checksum, length = _PREFIX.unpack_from(data)
    if len(data) > limit:
        raise DamagedFileError(f"{path}: is larger than possible")
    hasher = xxhash.xxh3_64()
    for start in range(16, len(data), _PIECE):
        hasher.update(data[start : start + _PIECE])
    if hasher.intdigest() != checksum or length % 8 or not length <= min(len(data) - _PREFIX.size, _MAX_HEADER):
        raise DamagedFileError(f"{path}: its checksum does not match its content")
    try:
        return json.loads(bytes(data[_PREFIX.size : _PREFIX.size + length])), data[_PREFIX.size + length :]
    except (ValueError, RecursionError):
        raise DamagedFileError(f"{path}: its header is not JSON") from None


def _read(descriptor: int, size: int) -> bytes:
    """All bytes of a file, fewer if it was cut off meanwhile."""
    with open(descriptor, "rb", closefd=False) as file:
        return file.read(size)


def _open(path: Path) -> int:
    """Open for reading; a link is an error, and a FIFO is not waited for."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
