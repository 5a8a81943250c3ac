"""A folder that appears complete or not at all: written aside, then renamed; one writer at a time."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from phi3v_data.errors import UserError
from phi3v_data.files import HIDDEN, read_json, sync_disk, sync_folder, write_json
from phi3v_data.lock import lock_file
from phi3v_data.messages import shown
from phi3v_data.suffixes import IMAGE_SUFFIXES

RECORD = "export.json"
"""File in PATH/.phi3v that says what was exported, and names the files of the export."""


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
    aside = f".{path.name}.export-"
    lock = path.parent / f".{path.name}.export.lock"
    replaced = path.parent / f".{path.name}.export.old"
    with lock_file(lock, f"{path}: another export writes to it; wait for it, or choose another --out"):
        try:
            _clear(path, aside, replaced)
            check_free(path, overwrite=overwrite)
            stage = path.parent / f"{aside}{os.getpid()}"
            stage.mkdir()
            try:
                yield stage
                sync_disk(stage)
                _install(stage, path, replaced)
            except BaseException:
                shutil.rmtree(stage, ignore_errors=True)
                raise
        finally:
            lock.unlink(missing_ok=True)


def write_record(stage: Path, record: dict[str, object]) -> None:
    """Record what was exported; called last, as it names the files of the export."""
    sizes = _file_sizes(stage)
    names = sorted(os.listdir(stage))
    (stage / HIDDEN).mkdir()
    write_json(stage / HIDDEN / RECORD, {**record, "files": [*names, HIDDEN], "sizes": sizes})


def find_earlier(path: Path) -> tuple[dict[str, Any], dict[str, int]] | None:
    """The record of the export at `path` and the sizes of the files in that folder; None if there is none."""
    if path.is_symlink() or (path / HIDDEN).is_symlink():
        return None
    record = read_json(path / HIDDEN / RECORD)
    return (record, _file_sizes(path)) if record is not None else None


def _file_sizes(folder: Path) -> dict[str, int]:
    """Size in bytes of each file below a folder by its path there; without images, of which there may be millions."""
    found = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - {HIDDEN})
        for name in sorted(names):
            path = os.path.join(parent, name)
            if not name.lower().endswith(IMAGE_SUFFIXES):
                found[os.path.relpath(path, folder)] = os.lstat(path).st_size
    return found


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
    record = read_json(path / HIDDEN / RECORD) if not (path / HIDDEN).is_symlink() else None
    if record is None or not isinstance(record.get("files"), list):
        raise UserError(f"{path}: is a folder that no export wrote; choose another --out, or an empty folder")
    if not overwrite:
        raise UserError(f"{path}: has an export already; --overwrite replaces it, or choose another --out")
    if others := sorted(names - set(map(str, record["files"]))):
        raise UserError(f"{path}: has {shown(others[0])}, which the export did not write; move it away, then run again")


def _clear(path: Path, aside: str, replaced: Path) -> None:
    """Remove what a killed export left beside `path`; if it was killed between the two renames, the old one returns."""
    for name in os.listdir(path.parent):
        if name.startswith(aside):
            shutil.rmtree(path.parent / name, ignore_errors=True)
    if replaced.exists():
        if path.exists():
            shutil.rmtree(replaced)
        else:
            os.rename(replaced, path)


def _install(stage: Path, path: Path, replaced: Path) -> None:
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
