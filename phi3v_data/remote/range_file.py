"""A seekable file over a function that reads ranges; a reader puts the buffer around it that it needs."""

import io
from collections.abc import Callable
from typing import Any


class RangeFile(io.RawIOBase):
    """A file of `size` bytes, of which `read(offset, size)` gives a range, fewer bytes at its end."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read, self._size, self._at = read, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._read(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
