"""The user's cache folder, and the folders in it: held while a process uses them, removed when nobody has for a while.

A process that uses a folder (the copy of a source, the view of shards) has a shared lock of it until it ends, and the
time of the folder is that of its last use. So what is removed is in use by nobody, whichever process removes it.
"""

import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from phi3v_data.errors import UserError

UNUSED_DAYS = 30
"""Days after which a folder that nobody uses is removed by the next command that makes one beside it."""

VIEWS = "view"
"""Folder of the cache with the views of shards, the only place where an index of images in a store is read."""

SOURCES = "sources"
"""Folder of the cache with copies of sources."""

_WITHOUT_LOCKS = 3600.0  # seconds for which a folder is taken to be in use where there are no locks

_NAME = re.compile(r"[0-9a-f]{16}(\..+)?")
"""Names of the folders that are made here, with an ending while they are made or removed."""

_held: dict[Path, int] = {}


def cache_home() -> Path:
    """The user's cache folder of this package.

    Raises:
        UserError: it belongs to another user, who could put any rows, images and addresses there; or there is no home.
    """
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "phi3v"
    except RuntimeError:
        raise UserError("no home folder is known, and so none for the cache; set XDG_CACHE_HOME to one") from None
    try:
        owner, user = os.stat(home).st_uid, os.geteuid()
    except OSError:
        return home
    if owner not in (user, 0) and user != 0:
        raise UserError(f"{home}: belongs to another user; set XDG_CACHE_HOME to a folder of your own")
    return home


def make_private(folder: Path) -> None:
    """Make a folder in the cache, which only this user may read, as what is in it may be private in its store.

    Raises:
        OSError: it cannot be made.
    """
    home = cache_home()
    if not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        home.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def hold(folder: Path) -> bool:
    """Note that a folder is used, and keep it from being removed until this process ends; False if there is none.

    Raises:
        OSError: it cannot be opened, or is a link.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    with suppress(OSError):  # no locks on this file system
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    if not _is_at(descriptor, folder):  # removed while we waited
        os.close(descriptor)
        return False
    with suppress(OSError):
        os.utime(folder)
    if (known := _held.get(folder)) is not None:
        os.close(known)
    _held[folder] = descriptor
    return True


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep a folder from being removed inside the block. Raises OSError."""
    with locked(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC), fcntl.LOCK_SH):
        yield


@contextmanager
def locked(descriptor: int, lock: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Lock an open file or folder inside the block, then close it; where the file system has no locks, only close it.

    It is unlocked before it is closed, as a process that was forked meanwhile has it open as well.
    """
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, lock)
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def remove_unused(folder: Path, seconds: float = 0.0) -> None:
    """Remove a folder unless a process holds it or it was used within some seconds; what cannot be removed stays.

    So does a folder with another name than those of the cache: it may be a link to a place with other things in it.
    """
    if not _NAME.fullmatch(folder.name):
        return
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not _lock(descriptor):
                seconds = max(seconds, _WITHOUT_LOCKS)
            if time.time() - os.fstat(descriptor).st_mtime >= seconds and _is_at(descriptor, folder):
                gone = folder.with_name(f"{folder.name}.{os.getpid()}.gone")
                os.rename(folder, gone)  # so that what is left by a kill is not taken for the whole
                shutil.rmtree(gone, ignore_errors=True)
        finally:
            os.close(descriptor)


def remove_old(parent: Path) -> None:
    """Remove the folders in `parent` that nobody uses or has used for `UNUSED_DAYS`."""
    with suppress(OSError):
        for entry in os.scandir(parent):
            if entry.is_dir(follow_symlinks=False):
                remove_unused(Path(entry.path), UNUSED_DAYS * 86400.0)


def _lock(descriptor: int) -> bool:
    """Lock a folder alone; False if the file system has no locks. Raises BlockingIOError if it is held."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    with suppress(OSError):
        here, there = os.fstat(descriptor), os.lstat(path)
        return stat.S_ISDIR(there.st_mode) and (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
    return False
