"""Locks of a directory, by `flock`: the kernel releases a lock with its process, so that a kill leaves none.

One process writes to a directory (`lock_file`), or several that share it (`join_lock`, see `writing/claims.py`).
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from phi3v_data.errors import BusyError, UserError
from phi3v_data.mounts import UNSUPPORTED, file_system

ORPHAN_SECONDS = 30.0
"""How long to wait for workers of a killed run, in seconds; they exit as soon as their parent dies."""


@contextmanager
def lock_file(path: Path, busy: str) -> Iterator[None]:
    """Lock `path` exclusively inside the block; its folder must exist.

    Raises:
        BusyError: with the message `busy`, if another process has the lock.
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


@contextmanager
def lock_beside(lock: Path, busy: str) -> Iterator[None]:
    """As `lock_file`, with a file beside what is written, which is removed at the end."""
    with lock_file(lock, busy):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def join_lock(path: Path, busy: str) -> Iterator[Callable[[], bool]]:
    """Keep `lock_file` out inside the block, together with other processes; without file locks, do nothing.

    Gives a function to call at the end: whether this process was the only one that was left; False without locks.

    Raises:
        BusyError: with the message `busy`, if a process has the lock of `lock_file`.
    """
    while True:
        descriptor = _open(path)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError(busy) from None
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                path.unlink(missing_ok=True)
                yield lambda: False
                return
            if _is_at(descriptor, path):
                yield partial(_is_alone, descriptor)
                return
        finally:
            os.close(descriptor)


def _is_alone(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def share_lock(path: Path) -> int:
    """Take a shared lock that marks this process as a worker of the directory; return its descriptor."""
    descriptor = _open(path)
    try:
        _flock(descriptor, fcntl.LOCK_SH, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def shared_lock(path: Path, *, required: bool = True) -> Iterator[None]:
    """Hold the lock of `share_lock` inside the block; if it is not `required`, a file system without locks will do."""
    try:
        descriptor = share_lock(path)
    except UserError:
        if required:
            raise
        yield
        return
    try:
        yield
    finally:
        os.close(descriptor)


def wait_for_workers(path: Path, seconds: float = ORPHAN_SECONDS, *, required: bool = True) -> None:
    """Wait until no worker of an earlier, killed run is left; if `required` is false, not without file locks.

    Raises:
        BusyError: workers are still running after `seconds`.
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
            except UserError:
                if required:
                    raise
                return
    finally:
        os.close(descriptor)


def _flock(descriptor: int, operation: int, path: Path) -> None:
    """Call `fcntl.flock`; raise UserError if the file system has no locks, since two runs could then mix."""
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
            raise UserError(f"{path}: is a link, and locks are not taken through links; remove it") from None
        if error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        try:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise error from None


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`; another process may have removed it in the meantime."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
