"""The output directory of a run: locking, checks of its content, and cleanup after a failure."""

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from phi3v_data.dataset import read_manifest
from phi3v_data.errors import UserError
from phi3v_data.files import SHARDS, inside, open_regular, read_json
from phi3v_data.lock import lock_file, wait_for_workers
from phi3v_data.messages import join_words
from phi3v_data.mounts import UNSUPPORTED, file_system
from phi3v_data.schema import Manifest
from phi3v_data.unfinished import MANIFEST, refuse_marker
from phi3v_data.writing.claims import refuse_joined
from phi3v_data.writing.journal import Journal, remove_tree
from phi3v_data.writing.publish import IMAGES, REJECTS, REMOVED, finish_publishing

_OBSTACLES = {
    errno.ENOSPC: "the disk is full: make room and run the same command again",
    errno.EDQUOT: "the disk quota is used up: make room and run the same command again",
    errno.EFBIG: "the file would be larger than allowed",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk failed to read or write",
    errno.EMFILE: "too many open files",
    errno.ENFILE: "too many open files on this machine",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "the links lead in a circle",
    errno.ENOTDIR: "part of the path is a file, not a folder",
}


@dataclass(frozen=True, slots=True)
class Output:
    """An opened directory.

    Attributes:
        manifest: manifest of the finished set in it, if there is one.
        owned: top-level names that belong to that set; only set if it is to be overwritten.
    """

    journal: Journal
    manifest: Manifest | None
    owned: tuple[str, ...] = ()


@contextmanager
def open_output(out_dir: Path, *, overwrite: bool) -> Iterator[Output]:
    """Lock the directory for writing in the block; it is created if needed, and restored if nothing was completed.

    Raises:
        UserError: it is not writable, contains other files, or another process is writing to it.
    """
    with told_obstacles(out_dir), _hold(out_dir, overwrite) as output:
        yield output


@contextmanager
def told_obstacles(out_dir: Path) -> Iterator[None]:
    """Turn errors of the disk or the file system inside the block into sentences.

    Raises:
        UserError: in place of an OSError that is not a bug.
    """
    try:
        yield
    except OSError as error:
        where = os.fsdecode(error.filename) if error.filename is not None else str(out_dir)
        reason = _OBSTACLES.get(error.errno or 0)
        if reason is None and error.errno in UNSUPPORTED:
            reason = f"{file_system(out_dir)} cannot do this ({error.strerror}); write to another disk"
        if reason is None:
            raise
        raise UserError(f"{where}: {reason}") from error


@contextmanager
def _hold(out_dir: Path, overwrite: bool) -> Iterator[Output]:
    journal = Journal(out_dir)
    inspect(journal, overwrite)
    if journal.is_finished() and not overwrite:
        with finished_output(journal) as output:
            yield output
        return
    created = make_folders(journal.hidden)
    try:
        with lock_file(journal.lock, busy(out_dir)):
            refuse_joined(journal)
            try:
                wait_for_workers(journal.workers_lock)
                inspect(journal, overwrite)
                remove_tree(journal.slices)
                finish_publishing(journal)
                manifest = read_manifest(out_dir)
                owned = _owned_names(out_dir, manifest) if overwrite and manifest else ()
                remove_tree(journal.run)
                journal.run.mkdir(parents=True)
                yield Output(journal, manifest, owned)
            finally:
                leave(journal)
    finally:
        for folder in reversed(created):
            remove_if_empty(folder)


@contextmanager
def finished_output(journal: Journal) -> Iterator[Output]:
    """The output of a finished directory, which is not changed: temporary files are elsewhere."""
    with tempfile.TemporaryDirectory(prefix="phi3v-") as scratch:
        yield Output(Journal(journal.out_dir, Path(scratch)), read_manifest(journal.out_dir))


def busy(out_dir: Path) -> str:
    """The sentence about a directory to which another run writes."""
    return f"another run is writing {out_dir}; wait for it, or choose another folder"


def inspect(journal: Journal, overwrite: bool) -> None:
    """Refuse a directory that contains other files."""
    out_dir = journal.out_dir
    journal.check()
    try:
        with os.scandir(out_dir) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise UserError(f"{out_dir} is a file, not a folder; choose another one") from None
    names = [name for name in names if name != "lost+found"]
    if not names or journal.publishing.exists():
        return
    if MANIFEST not in names:
        raise UserError(
            f"{out_dir} contains files that are not a phi3v dataset ({join_words(names, 3)}); choose an empty folder"
        )
    refuse_marker(out_dir, read_json(out_dir / MANIFEST))
    if not overwrite and not journal.complete.exists():
        raise UserError(
            f"{out_dir} contains a finished dataset that was made elsewhere; --overwrite replaces it, or choose "
            "another folder"
        )


def _owned_names(out_dir: Path, manifest: Manifest) -> tuple[str, ...]:
    """The top-level names of a finished set; raises UserError if unused images would be lost."""
    files = [name for split in manifest.splits.values() for name in split.files]
    used: set[str] = set()
    for name in files:
        try:
            with open_regular(inside(out_dir, name, link_ok=True)) as lines:
                for line in lines:
                    for turn in json.loads(line)["conversations"]:
                        used.update(turn["images"])
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f"{out_dir / name} cannot be read, so it is not known which images belong to it; "
                "nothing was overwritten: remove the directory yourself, or choose another folder"
            ) from None
    root = out_dir / IMAGES
    for folder, _, names in os.walk(root):
        for name in names:
            path = (Path(folder) / name).relative_to(root).as_posix()
            if path not in used:
                raise UserError(
                    f"{root / path} is not used by a row of {out_dir}; nothing was overwritten: move it away first"
                )
    shards = _owned_shards(out_dir)
    return tuple(name for name in (*files, REJECTS, REMOVED, IMAGES, *shards) if (out_dir / name).exists())


def _owned_shards(out_dir: Path) -> tuple[str, ...]:
    """The folder of shards, if it belongs to the set; raises UserError if something else in it would be lost."""
    from phi3v_data.media.stored import owned_shards

    try:
        names = owned_shards(out_dir / IMAGES)
        others = sorted(set(os.listdir(out_dir / SHARDS)) - set(names)) if names else []
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise UserError(
            f"{out_dir / IMAGES} {error.strerror}, so it is not known which shards belong to it; nothing was "
            "overwritten: remove the directory yourself, or choose another folder"
        ) from None
    if others:
        raise UserError(
            f"{out_dir / SHARDS / others[0]} is not a shard of {out_dir}; nothing was overwritten: move it away first"
        )
    return (SHARDS,) if names else ()


def check_free(output: Output, name: str) -> None:
    """Refuse to replace a file next to the set being overwritten that is not part of it."""
    path = inside(output.journal.out_dir, name, link_ok=True)
    if path.exists() and name not in output.owned:
        raise UserError(f"{path} is not part of a finished set; nothing was overwritten: move it away first")


def make_folders(path: Path) -> list[Path]:
    """Create a folder and its parents; return those that did not exist, outermost first."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    created: list[Path] = []
    try:
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            created.append(folder)
    except OSError as error:
        for folder in reversed(created):
            remove_if_empty(folder)
        reason = _OBSTACLES.get(error.errno or 0) or error.strerror
        raise UserError(f"cannot create the folder {error.filename}: {reason}") from error
    return created


def remove_if_empty(folder: Path) -> None:
    """Remove a folder, unless there is something in it."""
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


def leave(journal: Journal) -> None:
    """Remove temporary files and, if no part was finished, everything else, too."""
    remove_tree(journal.run)
    if journal.publishing.exists() or (journal.identity.exists() and journal.has_parts()):
        return
    journal.discard()
    remove_tree(journal.source)
    if journal.begun(journal.complete) is None:
        remove_tree(journal.root)
        journal.workers_lock.unlink(missing_ok=True)
        journal.lock.unlink(missing_ok=True)
