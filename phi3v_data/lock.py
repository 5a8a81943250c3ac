"""One writer a directory, by `flock`: the kernel drops the lock with the process, so a kill leaves no stale one."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from phi3v_data.errors import BusyError, UserError
from phi3v_data.mounts import UNSUPPORTED, file_system

ORPHAN_SECONDS = 30.0
"""How long workers of a killed run are waited for; they end themselves at once when their parent dies."""


@contextmanager
def lock_file(path: Path, busy: str) -> Iterator[None]:
    """Hold `path` exclusively; its folder must exist.

    Raises:
        BusyError: `busy`, when another process holds it.
        UserError: the file system has no locks.
    """
    while True:
        descriptor = _open(path)
        try:
            try:
                _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, path)
            except BlockingIOError:
                raise BusyError(busy) from None
            if _is_at(descriptor, path):
                yield
                return
        finally:
            os.close(descriptor)


def share_lock(path: Path) -> int:
    """Mark this process as a worker of the directory until it ends; returns the descriptor that holds the mark."""
    descriptor = _open(path)
    _flock(descriptor, fcntl.LOCK_SH, path)
    return descriptor


@contextmanager
def shared_lock(path: Path) -> Iterator[None]:
    """`share_lock` for as long as a block runs."""
    descriptor = share_lock(path)
    try:
        yield
    finally:
        os.close(descriptor)


def wait_for_workers(path: Path, seconds: float = ORPHAN_SECONDS) -> None:
    """Wait until no worker of an earlier, killed run is left.

    Raises:
        BusyError: they are still there after `seconds`.
    """
    descriptor = _open(path)
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, path)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BusyError(
                        f"workers of an earlier run still write to {path.parent.parent}; end them and run again"
                    ) from None
                time.sleep(0.01)
    finally:
        os.close(descriptor)


def _flock(descriptor: int, operation: int, path: Path) -> None:
    """`fcntl.flock`, or a sentence where there is none: a lock that is only pretended would let two runs mix."""
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        path.unlink(missing_ok=True)
        raise UserError(
            f"{path.parent.parent} cannot be locked against a second run: {file_system(path)} has no file locks "
            f"({error.strerror}); mount it with locks (NFS: with lockd, Lustre: -o flock), or write to another disk"
        ) from error


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path}: is a link, and a lock is never taken through one; remove it") from None
        if error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        try:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise error from None


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`: another process may have removed it in between."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
