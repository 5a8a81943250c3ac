"""Records what was read from the source while samples are planned and converted, and compares it on resume.

Files are compared by their state (size, mtime, ctime) first, and by content only if the state differs: a source that
was moved or unpacked again is still the same.

An audit hook records the files that Python opens below the source, so that a converter need not declare them. Files
opened by other libraries (the clip of an item, rows of parquet files) are recorded by the code that opens them.
"""

import errno
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from phi3v_data.errors import UserError
from phi3v_data.remote.address import is_remote
from phi3v_data.sources.archive import as_member
from phi3v_data.sources.bucket import state_of_remote

MISSING = "missing"
"""State of a file that does not exist."""

RACY_NS = 2_000_000_000
"""Seconds before reading within which a changed file may change again with the same times (FAT: 2 s)."""

_BLOCK = 1 << 20
_MAX_KNOWN = 4096
_HUB = "hf://"


class ReadRecord(msgspec.Struct, frozen=True, array_like=True):
    """State of a file, or of a row of one, when it was read.

    `root` is the name of one of `Roots` (empty: `path` is absolute), `path` is relative to it; `state` is empty if the
    times are not reliable; `digest` is the xxh3-128 of the content (empty: there is no file); `place` is the row, as
    `row group:row` or `split:row`, empty for the whole file.
    """

    root: str
    path: str
    state: str
    digest: str
    place: str = ""


@dataclass(frozen=True, slots=True)
class Roots:
    """Named folders with the files of a source; a file is named relative to the first folder that contains it."""

    folders: tuple[tuple[str, str], ...] = ()
    as_json: tuple[tuple[bytes, bytes], ...] = field(init=False, repr=False, compare=False, default=())
    """(what stands for a root, how a string below it starts) in JSON."""
    starts: tuple[str, ...] = field(init=False, repr=False, compare=False, default=())
    """Start of every path below a root, and of others: for `str.startswith`, before `name` is asked."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", tuple(folder for _, folder in self.folders))
        pairs = tuple((f'"{label}:'.encode(), _json_start(folder)) for label, folder in self.folders)
        object.__setattr__(self, "as_json", pairs)

    @classmethod
    def of(cls, source: str, unpacked: Path) -> "Roots":
        """The roots of a source: its folder (or Hub address), and the folder where its archives are unpacked."""
        pairs = [("source", source), ("unpacked", str(unpacked.absolute()))]
        if not is_remote(source):
            pairs = [("source", os.path.abspath(source)), ("source", os.path.realpath(source)), *pairs[1:]]
            pairs.append(("unpacked", os.path.realpath(unpacked)))
        return cls(tuple((label, folder) for label, folder in dict.fromkeys(pairs) if folder != "/"))

    def where(self, record: ReadRecord) -> str:
        """The file of a record as messages name it: its path in the source, or `ARCHIVE: MEMBER`."""
        return as_member(self.locate(record)) or record.path

    def plus(self, label: str, folder: str) -> "Roots":
        """The roots with one more folder."""
        return replace(self, folders=(*self.folders, (label, os.path.abspath(folder))))

    def name(self, path: str) -> tuple[str, str] | None:
        """The root and the relative path of a path; None if it is not below any root."""
        for label, folder in self.folders:
            if path.startswith(folder) and path[len(folder) : len(folder) + 1] in ("", "/"):
                return label, path[len(folder) + 1 :]
        return None

    def locate(self, record: ReadRecord) -> str:
        """Current path of a record's file; empty if its root is unknown, or it leads out of it."""
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
    """Collects the files that are read; `records` returns their states and digests.

    `tables` are those whose rows are compared too, as the samples are made from them.
    """

    roots: Roots
    tables: set[str] = field(default_factory=set)
    _notes: dict[tuple[str, str], _Note] = field(default_factory=dict)

    def file(self, path: str) -> None:
        """Record a file before it is read; folders, pipes and devices are ignored."""
        if (path, "") not in self._notes and (state := state_of(path)) is not None:
            self._notes[path, ""] = _Note(path, state)

    def row(self, path: str, place: str, digest: str) -> None:
        """Record a row of a table that was just read."""
        self._notes[path, place] = _Note(path, state_of(path) or folder_state(path), digest, place)

    def opened(self, path: str) -> None:
        """Record a file that Python opens, if it belongs to the source."""
        if self.roots.name(path) is not None:
            self.file(path)

    def watch(self, folder: str) -> None:
        """Add another folder to the source, such as lists next to it."""
        if self.roots.name(os.path.abspath(folder)) is None:
            self.roots = self.roots.plus(f"other{len(self.roots.folders)}", folder)

    def paths(self) -> set[str]:
        """The files that were recorded, as they were opened."""
        return {path for path, _ in self._notes}

    def records(self) -> tuple[ReadRecord, ...]:
        """The records of everything that was read, with digests.

        Raises:
            UserError: a file changed in the meantime.
        """
        if not self._notes:
            return ()
        now = time.time_ns()
        found = []
        for note in self._notes.values():
            digest = note.digest or known_digest(note.path, note.state)
            root, path = self.roots.name(note.path) or ("", note.path)
            if (state_of(note.path) or folder_state(note.path)) != note.state:
                name = as_member(note.path) or path
                raise UserError(f"'{name}' of the source changed while it was read; run the same command again")
            path = path.encode(
                "utf-8", "backslashreplace"
            ).decode()  # JSON cannot represent other bytes; not found on resume
            found.append(ReadRecord(root, path, "" if _is_racy(note.state, now) else note.state, digest, note.place))
        return tuple(found)


@lru_cache(maxsize=256)
def _json_start(folder: str) -> bytes:
    """A folder as the start of a JSON string; of a folder that JSON cannot hold, no string of an item begins so."""
    try:
        return msgspec.json.encode(folder)[:-1]
    except UnicodeEncodeError:
        return b"\0"


def by_file(records: Iterable[ReadRecord]) -> tuple[ReadRecord, ...]:
    """One record per file of the source, without state and place: independent of where and when it was read."""
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
"""Path -> state and digest of recently read files: many samples share a page or a table."""


class noting:  # noqa: N801 - used as a function is; as a class it costs a third, once per item
    """Record the files that are read in the block."""

    def __init__(self, roots: Roots) -> None:
        self._reads = Reads(roots)

    def __enter__(self) -> Reads:
        global _active, _is_hooked
        if not _is_hooked:
            sys.addaudithook(_on_event)
            _is_hooked = True
        self._before, _active = _active, self._reads
        return self._reads

    def __exit__(self, *error: object) -> None:
        global _active
        _active = self._before


class not_noting:  # noqa: N801
    """Record nothing in the block: an archive is only opened to unpack it."""

    def __enter__(self) -> None:
        global _active
        self._before, _active = _active, None

    def __exit__(self, *error: object) -> None:
        global _active
        _active = self._before


def note_file(path: str | Path) -> None:
    """Record a file that is about to be read, at any location."""
    if _active is not None:
        _active.file(os.path.abspath(path))


def note_table(path: str | Path) -> None:
    """Record a file of rows that is planned from: the plan may read no column in which it changes."""
    if _active is not None:
        file = os.path.abspath(path)
        _active.file(file)
        _active.tables.add(file)


def note_row(path: str, place: str, digest: Callable[[], str]) -> None:
    """Record a row of a table."""
    if _active is not None:
        _active.row(path, place, digest())


def note_folder(folder: str) -> None:
    """Add a folder to the source."""
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
    """Size and times of a regular file, the state of a remote one, `MISSING`; None for a folder, pipe or device."""
    if path.startswith(_HUB):
        return path.partition("@")[2].partition("/")[0]
    if is_remote(path):
        return state_of_remote(path)
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
    """xxh3-128 of a file's content, cached while its state is unchanged; empty if there is no regular file."""
    if state == MISSING or not os.path.isfile(path):
        return ""
    if (known := _known.get(path)) and known[0] == state:
        return known[1]
    hasher = xxhash.xxh3_128()
    try:
        with not_noting(), open(path, "rb", buffering=0) as stream:
            while block := stream.read(_BLOCK):
                hasher.update(block)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EIO):
            raise
        return "unreadable"
    if not _is_racy(state, time.time_ns()):
        if len(_known) >= _MAX_KNOWN:
            _known.clear()
        _known[path] = (state, hasher.hexdigest())
    return hasher.hexdigest()


def _is_racy(state: str, now: int) -> bool:
    pieces = state.split(":")
    return len(pieces) == 3 and now - max(int(pieces[1]), int(pieces[2])) < RACY_NS
