"""What was read from the source: noted while samples are planned and converted, compared when a run is resumed.

Files are compared by their state (size, mtime, ctime) first, and by content only where the state differs: a source
that was moved or unpacked again is still the same.

Whatever Python opens below the source is noted by an audit hook, so that a converter need not say what it reads. What
other libraries open (the clip of an item, rows of parquet files) is noted by those who know of it.
"""

import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from phi3v_data.errors import UserError

MISSING = "missing"
"""State of a file that was looked for and is not there."""

RACY_NS = 2_000_000_000
"""A file changed within so short a time before it is read may change again and keep its times (FAT: 2 s)."""

_BLOCK = 1 << 20
_MAX_KNOWN = 4096
_REMOTE = "hf://"


class ReadRecord(msgspec.Struct, frozen=True, array_like=True):
    """A file, or a row of one, as it was when it was read.

    `root` names one of `Roots` (empty: `path` is absolute), `path` is relative to it; `state` is empty where times
    prove nothing; `digest` is the xxh3-128 of the content (empty: there is no file); `place` is the row, as
    `row group:row` or `split:row`, empty for the whole file.
    """

    root: str
    path: str
    state: str
    digest: str
    place: str = ""


@dataclass(frozen=True, slots=True)
class Roots:
    """Named folders of this machine below which a source's files lie; the first that fits gives a file its name."""

    folders: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, source: str, unpacked: Path) -> "Roots":
        """The folder (or Hub address) of a source and the one where its inner archives are unpacked."""
        pairs = [("source", source), ("unpacked", str(unpacked.absolute()))]
        if not source.startswith(_REMOTE):
            pairs = [("source", os.path.abspath(source)), ("source", os.path.realpath(source)), *pairs[1:]]
            pairs.append(("unpacked", os.path.realpath(unpacked)))
        return cls(tuple((label, folder) for label, folder in dict.fromkeys(pairs) if folder != "/"))

    @property
    def as_json(self) -> Iterator[tuple[bytes, bytes]]:
        """(what stands for a root, how a string below it starts) in JSON."""
        for label, folder in self.folders:
            yield f'"{label}:'.encode(), msgspec.json.encode(folder)[:-1]

    def plus(self, label: str, folder: str) -> "Roots":
        """With one more folder."""
        return replace(self, folders=(*self.folders, (label, os.path.abspath(folder))))

    def name(self, path: str) -> tuple[str, str] | None:
        """(root, path below it) of a path; None where it lies below none of them."""
        for label, folder in self.folders:
            if path.startswith(folder) and path[len(folder) : len(folder) + 1] in ("", "/"):
                return label, path[len(folder) + 1 :]
        return None

    def locate(self, record: ReadRecord) -> str:
        """Where a record's file lies now; empty where its root is not known any more, or it leads out of it."""
        if not record.root:
            return record.path
        if ".." in record.path.split("/"):
            return ""
        folder = next((folder for label, folder in self.folders if label == record.root), "")
        return f"{folder}/{record.path}".rstrip("/") if folder else ""


@dataclass(slots=True)
class _Note:
    path: str
    state: str
    digest: str = ""
    place: str = ""


@dataclass(slots=True)
class Reads:
    """Collects what is read; `records` turns it into something to keep."""

    roots: Roots
    _notes: dict[tuple[str, str], _Note] = field(default_factory=dict)

    def file(self, path: str) -> None:
        """Note a file, before it is read; folders, pipes and devices are passed over."""
        if (path, "") not in self._notes and (state := state_of(path)) is not None:
            self._notes[path, ""] = _Note(path, state)

    def row(self, path: str, place: str, digest: str) -> None:
        """Note a row of a table that was just read."""
        self._notes[path, place] = _Note(path, state_of(path) or folder_state(path), digest, place)

    def opened(self, path: str) -> None:
        """Note a file that Python opens, if it belongs to the source."""
        if self.roots.name(path) is not None:
            self.file(path)

    def watch(self, folder: str) -> None:
        """Count another folder as part of the source: lists that lie beside it."""
        if self.roots.name(os.path.abspath(folder)) is None:
            self.roots = self.roots.plus(f"other{len(self.roots.folders)}", folder)

    def records(self) -> tuple[ReadRecord, ...]:
        """All that was read, with digests.

        Raises:
            UserError: a file changed in the meantime.
        """
        now = time.time_ns()
        found = []
        for note in self._notes.values():
            digest = note.digest or known_digest(note.path, note.state)
            root, path = self.roots.name(note.path) or ("", note.path)
            if (state_of(note.path) or folder_state(note.path)) != note.state:
                raise UserError(f"'{path}' of the source changed while it was read; run the same command again")
            path = path.encode("utf-8", "backslashreplace").decode()  # JSON holds no other bytes; not found on resume
            found.append(ReadRecord(root, path, "" if _is_racy(note.state, now) else note.state, digest, note.place))
        return tuple(found)


def by_file(records: Iterable[ReadRecord]) -> tuple[ReadRecord, ...]:
    """One record a file of the source, with neither state nor place: the same wherever and whenever it was read."""
    digests: dict[tuple[str, str], list[str]] = {}
    for record in records:
        if record.root:
            digests.setdefault((record.root, record.path), []).append(f"{record.place}:{record.digest}")
    return tuple(
        ReadRecord(root, path, "", xxhash.xxh3_128_hexdigest("\n".join(rows).encode()))
        for (root, path), rows in digests.items()
    )


_active: Reads | None = None
_is_hooked = False
_known: dict[str, tuple[str, str]] = {}
"""Path -> state and digest of files read of late: many samples share a page or a table."""


@contextmanager
def noting(roots: Roots) -> Iterator[Reads]:
    """Note what is read until the block ends."""
    global _active, _is_hooked
    if not _is_hooked:
        sys.addaudithook(_on_event)
        _is_hooked = True
    before, _active = _active, Reads(roots)
    try:
        yield _active
    finally:
        _active = before


@contextmanager
def not_noting() -> Iterator[None]:
    """Note nothing until the block ends: an archive is opened only to unpack it."""
    global _active
    before, _active = _active, None
    try:
        yield
    finally:
        _active = before


def note_file(path: str | Path) -> None:
    """Note a file that is about to be read, wherever it lies."""
    if _active is not None:
        _active.file(os.path.abspath(path))


def note_row(path: str, place: str, digest: Callable[[], str]) -> None:
    """Note a row of a table."""
    if _active is not None:
        _active.row(path, place, digest())


def note_folder(folder: str) -> None:
    """Count a folder as part of the source."""
    if _active is not None:
        _active.watch(folder)


def _on_event(event: str, args: tuple[Any, ...]) -> None:
    if _active is None or event != "open":
        return
    path, _, flags = args
    if isinstance(path, int) or not isinstance(flags, int) or flags & (os.O_WRONLY | os.O_RDWR):
        return
    try:
        text = os.path.abspath(os.fsdecode(path))
    except (TypeError, OSError):
        return
    _active.opened(text)


def state_of(path: str) -> str | None:
    """Size and times of a regular file, the commit of one on the Hub, `MISSING`; None for a folder, pipe or device."""
    if path.startswith(_REMOTE):
        return path.partition("@")[2].partition("/")[0]
    try:
        there = os.stat(path)
    except (OSError, ValueError):
        return MISSING
    return f"{there.st_size}:{there.st_mtime_ns}:{there.st_ctime_ns}" if stat.S_ISREG(there.st_mode) else None


def folder_state(folder: str) -> str:
    """Sizes and newest times of all files below a folder."""
    size = mtime = ctime = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            there = os.stat(os.path.join(parent, name))
            size += there.st_size
            mtime, ctime = max(mtime, there.st_mtime_ns), max(ctime, there.st_ctime_ns)
    return f"{size}:{mtime}:{ctime}"


def known_digest(path: str, state: str) -> str:
    """xxh3-128 of a file's content, remembered as long as its state stays; empty where there is no regular file."""
    if state == MISSING or not os.path.isfile(path):
        return ""
    if (known := _known.get(path)) and known[0] == state:
        return known[1]
    hasher = xxhash.xxh3_128()
    try:
        with not_noting(), open(path, "rb", buffering=0) as stream:
            while block := stream.read(_BLOCK):
                hasher.update(block)
    except PermissionError:
        return "unreadable"
    except (FileNotFoundError, NotADirectoryError):
        return ""
    if not _is_racy(state, time.time_ns()):
        if len(_known) >= _MAX_KNOWN:
            _known.clear()
        _known[path] = (state, hasher.hexdigest())
    return hasher.hexdigest()


def _is_racy(state: str, now: int) -> bool:
    pieces = state.split(":")
    return len(pieces) == 3 and now - max(int(pieces[1]), int(pieces[2])) < RACY_NS
