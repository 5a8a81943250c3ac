"""Safe file access: untrusted names stay inside a folder, files are written atomically, and names are hashed.

Every name read from a file (a manifest, a journal, a row) becomes a path through `inside`. Every file of phi3v is
written through `write_whole`: to a temporary name, synced, renamed, and the folder synced.
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, BinaryIO

import xxhash

from phi3v_data.errors import UserError
from phi3v_data.messages import shown
from phi3v_data.mounts import UNSUPPORTED
from phi3v_data.suffixes import SOURCE_IMAGE_SUFFIXES

SHARDS = "shards"
"""Folder of DIR that has the images in tar files, if they are not files of their own."""

HIDDEN = ".phi3v"
"""Folder in DIR for its journal, the validator's receipt and the index."""

MAX_COMPONENT_BYTES = 200

MAX_JSON = 1 << 28
"""Bytes of a JSON file that is read at once, such as a manifest."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_AWKWARD = re.compile(r'[\x00-\x1f\x7f-\x9f\ud800-\udfff\\/:*?"<>|]')
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


class UnsafeNameError(UserError):
    """A name read from a file leads out of the folder that it belongs to."""


def inside(folder: Path, name: str, *, link_ok: bool = False) -> Path:
    """Return `folder/name` for an untrusted relative POSIX name that was read from a file.

    The path need not exist. Links are resolved for the check. With `link_ok` the last component may be a link to
    anywhere: for callers that remove or replace the link itself, and for files that a user may have linked.

    Raises:
        UnsafeNameError: the name is empty, absolute, contains `..`, a backslash, a drive letter or a control character,
            or a link in it leads outside `folder`.
    """
    reason = unsafe_reason(name)
    if reason:
        raise UnsafeNameError(f"{folder}: the name {shown(name)} {reason}")
    checked = name.rpartition("/")[0] if link_ok else name
    if checked and leads_outside(folder, checked):
        raise UnsafeNameError(f"{folder}: {shown(checked)} is a link that leads out of the folder")
    return folder / name


def hidden_path(directory: Path, *names: str) -> Path | None:
    """Return `DIR/.phi3v/NAMES`; None if it or a folder on the way is a link, as it is then not ours."""
    path = directory / HIDDEN
    for name in ("", *names):
        path /= name
        if path.is_symlink():
            return None
    return path


def unsafe_reason(path: str) -> str:
    """Why a path is not a plain relative POSIX path (of an image under `images/`, of a file in DIR); empty if it is.

    The path is never URL-decoded or case-folded.
    """
    if not path:
        return "is empty"
    if "\\" in path:
        return "has a backslash; paths use '/'"
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        return "is absolute; a relative path is expected"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        return "is a URL; a relative path is expected"
    if _CONTROL.search(path) or _SURROGATE.search(path):
        return "has a control character or a lone surrogate"
    parts = path.split("/")
    if ".." in parts:
        return "has '..'"
    if "" in parts or "." in parts:
        return "has an empty or '.' component"
    if any(_DEVICE.fullmatch(part) for part in parts):
        return "has a name that Windows reserves for a device"
    return ""


def leads_outside(root: Path, path: str) -> bool:
    """Whether `root/path` is outside `root` once links are resolved."""
    real_root = root.resolve()
    try:
        return not (real_root / path).resolve().is_relative_to(real_root)
    except (OSError, RuntimeError):  # a loop of links does not lead outside
        return False


def safe_component(name: str) -> str:
    """A file or folder name that is safe on every common file system; most names are returned unchanged.

    Characters that some systems forbid become `_`, as do leading dots and trailing dots and spaces; device names of
    Windows and names with the extension of an image get a trailing `_`; long names are cut. Different names can give
    the same result; the caller handles that.
    """
    safe = _AWKWARD.sub("_", name)
    while len(safe.encode()) > MAX_COMPONENT_BYTES - 20:
        safe = safe[:-1]
    safe = re.sub(r"^[. ]+|[. ]+$", lambda match: "_" * len(match[0]), safe)
    if not safe or _DEVICE.fullmatch(safe) or safe.lower().endswith(SOURCE_IMAGE_SUFFIXES):
        safe += "_"
    return safe


def name_hash(name: str) -> int:
    """64-bit hash of a name, key or path, to compare many in little memory; the same in every process."""
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"))


def name_digest(name: str, length: int = 64) -> str:
    """First `length` hexadecimal digits of the sha256 of a name or path, to name a file or module after it."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def process_name() -> str:
    """A name of this process for its temporary files, in a folder that other machines and containers write to as well.

    Process numbers alone are the same in many containers.
    """
    return _process_name(os.getpid())


@lru_cache(maxsize=1)
def _process_name(pid: int) -> str:
    return f"{pid}-{os.urandom(8).hex()}"


@contextmanager
def write_whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for atomic writing: it appears at `path` complete and synced, or not at all.

    It is written as `.NAME.tmp`, synced and renamed; a link at `path` is replaced, never followed. Writers of the same
    file wait for each other, and reuse the temporary file of a killed one. Paths under /dev (`/dev/stdout`) are written
    directly, since a rename would replace the device for the whole machine.

    Raises:
        OSError: it cannot be written; the file at `path` is unchanged.
    """
    where = Path(os.path.abspath(path))
    if where.is_relative_to("/dev") and not where.is_relative_to("/dev/shm") and path.exists():
        with open(path, "wb") as device:
            yield device
        return
    descriptor, aside = _open_aside(path)
    with open(descriptor, "wb") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


def write_bytes(path: Path, content: "bytes | memoryview") -> None:
    """Write a file atomically; see `write_whole`."""
    with write_whole(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) atomically; see `write_whole`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document atomically; see `write_whole`.

    Raises:
        OSError: it cannot be written.
        ValueError: NaN or infinity.
    """
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def open_regular(path: str | Path, buffering: int = -1) -> BinaryIO:
    """Open a regular file to read bytes; never blocks on a FIFO or reads a device.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
    return open(descriptor, "rb", buffering=buffering)


def is_closed(error: OSError) -> bool:
    """Whether the error means that a file exists but could not be read: no permission, a failing disk."""
    return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.EFBIG)


def reading_hint(reason: str) -> str:
    """The fix for a file or folder that cannot be read; `reason` is the error's `strerror`."""
    if reason == os.strerror(errno.EACCES):
        return "fix its permissions (chmod -R u+rX)"
    return "make it readable, or copy it again from its source"


def unreadable(path: Path, error: OSError) -> UserError:
    """The error for a file or folder that cannot be read."""
    reason = error.strerror or type(error).__name__
    return UserError(f"{path}: cannot be read ({reason}); {reading_hint(reason)}")


def read_regular(path: str | Path, limit: int = MAX_JSON) -> bytes:
    """Read a file of at most `limit` bytes; see `open_regular`. Raises OSError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, over the limit of {limit:,}", os.fspath(path))
        return file.read()


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if the file does not exist or is not a complete JSON object.

    Raises:
        OSError: it cannot be read, or is not a regular file.
    """
    try:
        value = load_json(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_stored(path: Path) -> dict[str, Any] | None:
    """Read a JSON object that phi3v left in a folder of its own; see `read_json`.

    Raises:
        UserError: it cannot be read, or is not a regular file.
    """
    try:
        return read_json(path)
    except OSError as error:
        if is_closed(error):
            raise unreadable(path, error) from None
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{path}: is not a file that phi3v wrote ({reason}); move it away") from None


def refuse_folders(folder: Path, names: Iterable[str]) -> None:
    """Refuse a folder in the place of one of these files, which will be written into `folder`.

    Raises:
        UserError: names the first one.
    """
    for name in names:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            raise UserError(f"{path}: is a folder, where phi3v writes a file; move it away, or choose another folder")


def load_json(path: Path) -> Any:
    """The JSON value in a file.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        ValueError: it is not JSON.
    """
    try:
        return json.loads(read_regular(path))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def sync_file(path: Path) -> None:
    """Sync a file or folder that was written in another way."""
    _sync(path, os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Make renames in a folder durable; file systems that cannot sync folders (SMB, some FUSE) are passed over."""
    try:
        _sync(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def sync_disk(path: Path) -> None:
    """Sync the file system of the folder `path`: one call for all images instead of one for each.

    Raises:
        OSError: something that was written since the last call did not reach the disk (EIO, ENOSPC, EDQUOT).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
        if syncfs is None:
            os.sync()
        elif syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            if code not in UNSUPPORTED:
                raise OSError(code, os.strerror(code), str(path))
            os.sync()
    finally:
        os.close(descriptor)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_aside(path: Path) -> tuple[int, Path]:
    """Open an empty temporary file next to `path`, locked by this writer; without locks it gets a unique name."""
    aside = path.with_name(f".{path.name}.tmp")
    while True:
        try:
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link or a FIFO: not ours
                raise
            aside.unlink(missing_ok=True)
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in UNSUPPORTED:
                raise
            aside.unlink(missing_ok=True)
            aside = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")  # of all processes on all machines
            return os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), aside
        here = os.fstat(descriptor)
        if _is_at(here, aside):
            if stat.S_ISREG(here.st_mode) and here.st_nlink == 1:
                os.ftruncate(descriptor, 0)
                return descriptor, aside
            aside.unlink(missing_ok=True)
        os.close(descriptor)


def _is_at(here: os.stat_result, path: Path) -> bool:
    """Whether an open file is still the one at `path`; another writer may have renamed it in the meantime."""
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
