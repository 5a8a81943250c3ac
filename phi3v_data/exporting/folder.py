"""A folder that appears complete or not at all: written aside, then renamed; one writer at a time."""

import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import xxhash

from phi3v_data.errors import UserError
from phi3v_data.files import HIDDEN, read_json, sync_disk, sync_folder, write_json
from phi3v_data.lock import lock_beside
from phi3v_data.messages import shown

RECORD = "export.json"
"""File in PATH/.phi3v that says what was exported, and names the files of the export."""

STATE = "export_state.json"
"""File beside it with what the export was made of and the state of its files, both as they are on this machine."""

SHARDS = (".tar", ".parquet")
"""Suffixes of files of which whoever reads an export reads all that there are."""


@contextmanager
def new_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` at the end of the block, or is removed if the block fails.

    A folder at `path` is kept until then. The names that the block left in the folder are recorded, so that a later
    `overwrite` replaces an export only, and nothing that others put beside it.

    Raises:
        BusyError: another process writes to it.
        UserError: `path` exists and is not to be replaced.
    """
    path = Path(os.path.abspath(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {path.parent}: {error.strerror}") from None
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{path}: cannot be written (no permission in {path.parent}); choose another --out")
    with _locked(path):
        _clear(path)
        check_free(path, overwrite=overwrite)
        stage = path.parent / f"{_aside(path)}{os.getpid()}"
        stage.mkdir()
        try:
            yield stage
            sync_disk(stage)
            _install(stage, path)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise


def _locked(path: Path) -> AbstractContextManager[None]:
    """Hold the place of an export. Raises BusyError."""
    busy = f"{path}: another export writes to it; wait for it, or choose another --out"
    return lock_beside(path.parent / f".{path.name}.export.lock", busy)


def write_record(stage: Path, record: Mapping[str, object], identity: Mapping[str, object]) -> None:
    """Record what was exported, and of what; called last, as it names the files of the export and their state."""
    names = sorted(os.listdir(stage))
    state = {"identity": identity, "output": _digest(stage, names)}
    (stage / HIDDEN).mkdir()
    write_json(stage / HIDDEN / STATE, state)
    write_json(stage / HIDDEN / RECORD, {**record, "files": [*names, HIDDEN]})


def find_earlier(path: Path) -> tuple[dict[str, Any], str] | None:
    """The record of the export at `path`, and the digest of the files of it that are there; None if there is none.

    What a killed export left beside it is removed.
    """
    path = Path(os.path.abspath(path))
    if _left(path):
        with _locked(path):
            _clear(path)
    record = None if path.is_symlink() else _read_record(path)
    if record is None:
        return None
    wanted = set(map(str, record["files"])) - {HIDDEN}
    names = [name for name in os.listdir(path) if name in wanted or name.endswith(SHARDS)]  # none that leads elsewhere
    return record | (_read(path, STATE) or {}), _digest(path, names)


def _digest(folder: Path, names: Iterable[str]) -> str:
    """Digest of names, sizes, times and inodes of all files that these names in a folder lead to."""
    hasher = xxhash.xxh3_128()
    waiting = sorted(names, reverse=True)
    while waiting:
        name = waiting.pop()
        path = os.path.join(folder, name)
        try:
            found = os.lstat(path)
            if stat.S_ISDIR(found.st_mode):
                waiting += sorted((f"{name}/{each}" for each in os.listdir(path)), reverse=True)
                continue
            state = f"{found.st_size} {found.st_mtime_ns} {found.st_ino}"
        except OSError as error:
            state = type(error).__name__
        hasher.update(f"{name}\0{state}\0".encode(errors="surrogateescape"))
    return hasher.hexdigest()


def check_free(path: Path, *, overwrite: bool) -> None:
    """Refuse a path that has something else than an export, or one that is not to be replaced.

    Raises:
        UserError: naming what is in the way.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UserError(f"{path}: is a {'link' if path.is_symlink() else 'file'}; choose another --out")
    names = set(os.listdir(path)) if path.exists() else set()
    if not names:
        return
    record = _read_record(path)
    if record is None:
        raise UserError(f"{path}: is a folder that no export wrote; choose another --out, or an empty folder")
    if not overwrite:
        raise UserError(f"{path}: has an export already; --overwrite replaces it, or choose another --out")
    if others := sorted(names - set(map(str, record["files"]))):
        raise UserError(f"{path}: has {shown(others[0])}, which the export did not write; move it away, then run again")


def _read_record(path: Path) -> dict[str, Any] | None:
    """The record of the export in a folder; None if there is none that can be read."""
    record = _read(path, RECORD)
    return record if record is not None and isinstance(record.get("files"), list) else None


def _read(path: Path, name: str) -> dict[str, Any] | None:
    """The object in a file that an export leaves in its folder; None if there is none that can be read."""
    if (path / HIDDEN).is_symlink():
        return None
    try:
        return read_json(path / HIDDEN / name)
    except OSError:  # not a regular file, too large, closed
        return None


def _aside(path: Path) -> str:
    """How the names of unfinished exports to `path` begin."""
    return f".{path.name}.export-"


def _replaced(path: Path) -> Path:
    """Where an export is kept while another one takes its place."""
    return path.parent / f".{path.name}.export.old"


def _left(path: Path) -> list[str]:
    """Names of what killed exports left beside `path`."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return []
    return [name for name in names if name.startswith(_aside(path)) or name == _replaced(path).name]


def _clear(path: Path) -> None:
    """Remove what a killed export left beside `path`; if it was killed between the two renames, the old one returns."""
    for name in _left(path):
        if name.startswith(_aside(path)):
            shutil.rmtree(path.parent / name, ignore_errors=True)
        elif path.exists():
            shutil.rmtree(path.parent / name)
        else:
            os.rename(path.parent / name, path)


def _install(stage: Path, path: Path) -> None:
    replaced = _replaced(path)
    if path.exists() and os.listdir(path):
        os.rename(path, replaced)
    try:
        os.rename(stage, path)
    except OSError:
        if replaced.exists():
            os.rename(replaced, path)
        raise
    sync_folder(path.parent)
    if replaced.exists():
        shutil.rmtree(replaced)
