"""Ranges of remote objects on the local disk: bounded, shared by all processes of a machine, checked when read.

One file for each range, named by a hash of address, etag, offset and size, so that a changed object has other names.
It begins with the digest of its bytes: a damaged one is fetched again. Files are written aside and renamed. When they
exceed the limit, those that were not used for the longest time are removed, and no file with another name than these. A
range that two processes or threads want at once is fetched once, or twice where the file system has no locks.
"""

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import xxhash

from phi3v_data.errors import UserError
from phi3v_data.messages import shown
from phi3v_data.remote.cache_folders import cache_home, locked, make_private

LIMIT_VARIABLE = "PHI3V_CACHE_GB"
"""Environment variable with the limit, in units of 1e9 bytes; 0: nothing is kept."""

USUAL_GB = 20.0

_DIGEST = 16
_STRIPES = 1024  # locks for ranges that are being fetched
_KEPT = 0.8  # of the limit, after files were removed
_ABANDONED = 3600.0  # seconds after which a file that is being written belongs to a killed process
_NAME = re.compile(r"[0-9a-f]{30}(\.\d+-\d+)?")  # the second one is being written
_COUNT_DIGITS = 20


def cache_limit() -> int:
    """Bytes that the cache may have.

    Raises:
        UserError: the variable has no number.
    """
    text = os.environ.get(LIMIT_VARIABLE) or USUAL_GB
    try:
        return max(0, int(float(text) * 1e9))
    except (ValueError, OverflowError):
        raise UserError(f"{LIMIT_VARIABLE} is {shown(text)}; give a number of GB, such as 20") from None


class RangeCache:
    """The ranges below a folder.

    Args:
        limit: bytes of all files together; one that is larger than half of it is not kept.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self.hits = self.misses = 0
        self._warned = False

    def get(self, key: str, fetch: Callable[[], bytes], *, together: str = "") -> bytes:
        """The bytes of a key, from the disk or else from `fetch`, whose result is kept.

        Keys with the same `together` are fetched one after the other, as one fetch may keep the others, too.
        """
        path = self._path(key)
        data = self._read(path)
        if data is not None:
            self.hits += 1
            return data
        with self._alone(self._path(together) if together else path):
            data = self._read(path)  # another one was fetching it
            if data is not None:
                self.hits += 1
                return data
            self.misses += 1
            data = fetch()
            self._write(path, data)
            return data

    def put(self, key: str, data: bytes) -> None:
        """Keep the bytes of a key."""
        path = self._path(key)
        if not path.exists():
            self._write(path, data)

    def has(self, key: str) -> bool:
        """Whether there is a file of a key."""
        return self._path(key).exists()

    def size(self) -> int:
        """Bytes of all files, counted now."""
        return sum(size for _, size, _ in self._files())

    def _path(self, key: str) -> Path:
        name = xxhash.xxh3_128_hexdigest(key.encode())
        return self.folder / name[:2] / name[2:]

    def _read(self, path: Path) -> bytes | None:
        try:
            with open(path, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                content = file.read(size)
        except OSError:
            return None
        data = content[_DIGEST:]
        if len(content) != size or content[:_DIGEST] != xxhash.xxh3_128_digest(data):
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)  # used just now
        return data

    def _write(self, path: Path, data: bytes) -> None:
        """Keep bytes; a disk that is full or cannot be written to costs only time, and is said once."""
        if len(data) + _DIGEST > self.limit // 2:
            return
        aside = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._make_room(len(data) + _DIGEST)
            with open(aside, "wb") as file:
                file.write(xxhash.xxh3_128_digest(data))
                file.write(data)
            os.rename(aside, path)
        except OSError as error:
            with suppress(OSError):
                aside.unlink()
            if not self._warned:
                self._warned = True
                print(
                    f"{self.folder}: nothing can be kept ({error.strerror}); images in a store are fetched each time",
                    file=sys.stderr,
                    flush=True,
                )

    def _make_room(self, size: int) -> None:
        """Add to the bytes that all processes have counted, and remove old files if they would exceed the limit.

        The number is written in place, which a full disk allows.
        """
        descriptor = os.open(self.folder / "bytes", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with locked(descriptor):
            text = os.pread(descriptor, _COUNT_DIGITS + 1, 0)
            total = int(text) if text.isdigit() and len(text) <= _COUNT_DIGITS else self.size()
            if total + size > self.limit:
                total = self._remove_old(int(self.limit * _KEPT) - size)
            os.pwrite(descriptor, b"%0*d" % (_COUNT_DIGITS, total + size), 0)
            if len(text) > _COUNT_DIGITS:
                os.ftruncate(descriptor, _COUNT_DIGITS)

    def _remove_old(self, limit: int) -> int:
        """Remove the files that were not used for the longest time down to a limit; the bytes that are left."""
        found = sorted(self._files())
        total = sum(size for _, size, _ in found)
        now = time.time()
        for used, size, path in found:
            is_aside = "." in path.rpartition("/")[2]
            if (total <= limit and not is_aside) or (is_aside and now - used < _ABANDONED):
                continue
            with suppress(OSError):
                os.unlink(path)
                total -= size
        return total

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """Time of the last use, bytes and path of each file."""
        try:
            folders = [
                entry.path
                for entry in os.scandir(self.folder)
                if len(entry.name) == 2 and entry.is_dir(follow_symlinks=False)
            ]
        except FileNotFoundError:
            return
        for folder in folders:
            with suppress(FileNotFoundError):
                for entry in os.scandir(folder):
                    with suppress(FileNotFoundError):
                        state = entry.stat(follow_symlinks=False)
                        if _NAME.fullmatch(entry.name):
                            yield state.st_mtime, state.st_size, entry.path

    @contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """Keep others out that want the same file; without a folder to write to, do nothing."""
        number = int(path.name[:8], 16) % _STRIPES
        try:
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / "locks" / f"{number:03x}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            yield
            return
        with locked(descriptor):
            yield


def range_cache() -> RangeCache:
    """The cache of this user."""
    return _cache(cache_home() / "ranges", cache_limit())


@lru_cache(maxsize=4)
def _cache(folder: Path, limit: int) -> RangeCache:
    with suppress(OSError):
        make_private(folder)
    return RangeCache(folder, limit)
