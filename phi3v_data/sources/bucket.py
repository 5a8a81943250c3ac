"""Sources in a store: parquet files are read by ranges; anything else is copied to the user's cache first.

The root of parquet files is `s3://BUCKET/PREFIX@DIGEST`, where DIGEST is of the names, sizes and etags of all of them,
so that a plan names one state of the source. A copy is resumed object by object; one that changed is fetched again, and
what an interrupted conversion made from the old one is then compared with it, as with any source. A copy that nobody
has used for `UNUSED_DAYS` is removed by the next one.
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import IO

import msgspec

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.files import inside, name_digest
from phi3v_data.messages import shown
from phi3v_data.remote.address import parse_address
from phi3v_data.remote.cache_folders import SOURCES, cache_home, hold, make_private, remove_old
from phi3v_data.remote.retry import ChangedError
from phi3v_data.remote.store import Store, StoredObject, open_store
from phi3v_data.sources.hub import RemoteFiles
from phi3v_data.sources.members import is_junk

BLOCK = 8 << 20
AT_ONCE = 8
"""Objects that are copied at the same time; each takes a block of memory."""

FILES, ASIDE, _STATES = "files", "aside", "states.jsonl"
"""In the folder of a copy: what was copied, what is being copied, and the state of each copied object."""

_ROOT = re.compile(r"(.*?)@([0-9a-f]{16})(?:/(.*))?", re.DOTALL)


def open_bucket(spec: str) -> RemoteFiles | Path:
    """The parquet files below an address, or the path of a copy of what is there.

    Raises:
        NotFoundError: nothing is there.
        UserError: the store cannot be asked, or an object has a name that no file can have.
    """
    store = open_store(parse_address(spec))
    found = _listing(store)
    files = [name for name in found if name.endswith(".parquet") and not is_junk(PurePosixPath(name))]
    if files and not _ROOT.fullmatch(str(store)):  # such an address would be taken for one with a digest
        return RemoteFiles(f"{store}@{_digest(found, files)}", tuple(files))
    return copy_here(spec)


def copy_here(spec: str) -> Path:
    """Copy all objects below an address, or the one that it names, to the user's cache; returns the folder or file.

    Raises as `open_bucket`.
    """
    store = open_store(parse_address(spec))
    found = _listing(store)
    folder = cache_home() / SOURCES / name_digest(str(store), 16)
    try:
        return _copy(store, found, folder)
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else str(error)
        raise UserError(f"{store} cannot be copied to {folder} ({where}); XDG_CACHE_HOME is the place for it") from None


def _copy(store: Store, found: dict[str, StoredObject], folder: Path) -> Path:
    """Bring the copy in a folder of the cache to the state of the source; returns it. Raises OSError, UserError."""
    make_private(folder.parent)
    remove_old(folder.parent)
    while not hold(folder):
        make_private(folder)
    target, aside = folder / FILES / store.address.name, folder / ASIDE
    for path in (folder / FILES, target, aside, folder / _STATES, folder / "lock"):
        if path.is_symlink():  # what is behind it is not ours to write to, let alone to remove
            path.unlink()
    with _alone(folder / "lock"):
        states = _read_states(folder / _STATES)
        shutil.rmtree(aside, ignore_errors=True)  # of a killed copy
        aside.mkdir()
        _remove_others(target, found)
        wanted = [each for each in found.values() if not _is_here(_path(target, each), each, states.get(each.name))]
        with open(folder / _STATES, "a", encoding="utf-8") as log, ThreadPoolExecutor(AT_ONCE) as pool:
            for each in pool.map(lambda each: _fetch(store, each, _path(target, each), aside), wanted):
                log.write(json.dumps([each.name, each.size, each.etag]) + "\n")
                log.flush()
    return target


def is_lone_copy(folder: str) -> bool:
    """Whether a folder has the copy of one object, without what is beside it in the store."""
    path = Path(folder)
    return path.name == FILES and path.parent.parent == cache_home() / SOURCES


def copied_etag(path: Path) -> str:
    """The etag of the object that a file of the cache is a copy of, the same on all machines; empty for other files."""
    with suppress(UserError, ValueError):
        place = path.resolve().relative_to((cache_home() / SOURCES).resolve()).parts
        if len(place) > 2 and place[1] == FILES:
            states = _read_states(cache_home() / SOURCES / place[0] / _STATES)
            return states.get("/".join(place[3:]), (0, ""))[1]
    return ""


def open_remote(path: str) -> IO[bytes]:
    """A file of `RemoteFiles`, read by ranges.

    Raises:
        ChangedError: the source is not in the state that the path names.
    """
    root, digest, name = _split(path)
    store, found = _known(root, digest, os.getpid())
    return store.ranges(found[name])


def state_of_remote(path: str) -> str:
    """The state that the path of a file of `RemoteFiles` names."""
    return _split(path)[1]


def _split(path: str) -> tuple[str, str, str]:
    found = _ROOT.fullmatch(path)
    if found is None:
        raise UserError(f"{shown(path)}: not a file of a source in a store")
    return found[1], found[2], found[3] or ""


@lru_cache(maxsize=8)
def _known(root: str, digest: str, process: int) -> tuple[Store, dict[str, StoredObject]]:
    """The objects of a source that is in the state with this digest; looked at once per process."""
    store = open_store(parse_address(root))
    found = _listing(store)
    files = [name for name in found if name.endswith(".parquet") and not is_junk(PurePosixPath(name))]
    if _digest(found, files) != digest:
        raise ChangedError(f"{store}: an object was changed, added or removed since the plan was made; run again")
    return store, found


def _listing(store: Store) -> dict[str, StoredObject]:
    """The objects below an address, else the one that it names; some tools make an empty one for a folder."""
    found = {each.name: each for each in store.objects()}
    if not found and (single := store.find()) is not None:
        return {"": single}
    if not found:
        raise NotFoundError(f"{store}: nothing is there")
    return dict(sorted(found.items(), key=lambda item: item[0].encode()))


def _digest(found: dict[str, StoredObject], names: Sequence[str]) -> str:
    text = json.dumps([(name, found[name].size, found[name].etag) for name in names])
    return sha256(text.encode()).hexdigest()[:16]


def _path(target: Path, found: StoredObject) -> Path:
    return inside(target, found.name) if found.name else target


def _is_here(path: Path, found: StoredObject, state: "tuple[int, str] | None") -> bool:
    return state == (found.size, found.etag) and path.is_file() and path.stat().st_size == found.size


def _fetch(store: Store, found: StoredObject, path: Path, folder: Path) -> StoredObject:
    """Copy one object block by block, into `folder`, then rename."""
    aside = folder / name_digest(found.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            for start in range(0, found.size, BLOCK):
                file.write(store.read(found, start, BLOCK))
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UserError(f"{store.where(found.name)} cannot be copied to {path}: {error.strerror}") from None
    return found


def _remove_others(target: Path, found: dict[str, StoredObject]) -> None:
    """Remove copies of objects that are no longer there, and folders that this leaves empty."""
    if "" in found or not target.is_dir():
        with suppress(OSError):
            shutil.rmtree(target) if "" in found else target.unlink()
        return
    for path in sorted(target.rglob("*"), reverse=True):  # what is in a folder before the folder
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                path.rmdir()
        elif path.relative_to(target).as_posix() not in found:
            path.unlink()


def _read_states(path: Path) -> dict[str, tuple[int, str]]:
    states: dict[str, tuple[int, str]] = {}
    if path.exists():
        for line in path.read_bytes().splitlines():
            with suppress(msgspec.MsgspecError, UnicodeDecodeError):  # cut off by a kill
                name, size, etag = msgspec.json.decode(line, type=tuple[str, int, str])
                states[name] = (size, etag)
    return states


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # a process that was forked meanwhile has it open as well
