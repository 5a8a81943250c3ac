"""The files under `images/`, or the images packed in others, listed once in a compact table.

Each image takes about 120 bytes (path, size, times, inode, hash); no Python object is kept per file. Links are followed
as long as they stay inside; folders reached in two ways are listed under both names.
"""

import os
import re
import stat
from array import array
from collections.abc import Iterator
from itertools import accumulate, islice
from operator import attrgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from phi3v_data.files import is_closed, unsafe_reason
from phi3v_data.media.pack import ShardState, mixed
from phi3v_data.media.packed import open_pack
from phi3v_data.near_names import fold
from phi3v_data.validate.hashes import PADDING, SEED, hash_spans, hash_texts

Ints = npt.NDArray[np.int64]

FILE, OUTSIDE, BROKEN, LOOP, OTHER, UNSAFE = range(6)
"""Kinds of entries: file, link to outside, broken link, loop of links, neither file nor folder, invalid name."""

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]*")
_DEVICES = frozenset({"con", "prn", "aux", "nul", "com", "lpt"})
_PLAIN_NAMES = re.compile(r"(?:(?!(?i:con|prn|aux|nul|com|lpt))[A-Za-z0-9_][A-Za-z0-9_. -]*+(?:/|\Z))*+")
_STATS_AT_ONCE = 4096  # their objects are large
_PACKED_AT_ONCE = 1 << 14
_HASHED_AT_ONCE = 1 << 16
_MAX_TIME = (1 << 63) - 1

_get_name = attrgetter("name")
_get_device = attrgetter("st_dev")
_COLUMNS = {
    "sizes": ("q", attrgetter("st_size")),
    "mtimes": ("q", attrgetter("st_mtime_ns")),
    "ctimes": ("q", attrgetter("st_ctime_ns")),
    "inodes": ("Q", attrgetter("st_ino")),
}


class ImageTree:
    """The entries under one folder, without folders, by the bytes of their path within each folder.

    `sizes`, `mtimes` and `ctimes` (ns) and `inodes` are the state of each file. For a file reached through a link, the
    change time is the later of the two, and instead of the inode a hash of both inodes, the link's change time and its
    target is used. `devices` are the devices of the files.
    """

    sizes: Ints
    mtimes: Ints
    ctimes: Ints
    inodes: npt.NDArray[np.uint64]

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blob = bytearray()  # all paths, one after another
        self._ends = array("q")
        self._columns = {name: array(code) for name, (code, _) in _COLUMNS.items()}
        self.kinds = bytearray()
        self.unreadable: list[tuple[str, str]] = []  # (folder, reason), of a link itself
        self.devices: set[int] = set()
        self._scan()
        self.ends: Ints = np.frombuffer(self._ends, np.int64)
        for name, column in self._columns.items():
            setattr(self, name, np.frombuffer(column, column.typecode))
        self._order: Ints | None = None
        self._sorted: Ints | None = None
        self._folded: dict[int, int] | None = None

    def __len__(self) -> int:
        return len(self._ends)

    def path(self, index: int) -> str:
        """The path of an entry relative to the root, as in rows."""
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(bytes(self.blob[start : self._ends[index]]))

    def full_path(self, index: int) -> str:
        """The path of an entry, always below the root: unlike with `os.path.join`, whatever its name is."""
        return f"{self.root}/{self.path(index)}"

    def paths(self) -> Iterator[str]:
        """All paths, in order of index."""
        return map(self.path, range(len(self)))

    def index(self, path: str) -> int:
        """Index of a path as in rows; -1 if there is none."""
        return int(self.find(hash_texts([path]))[0])

    def find(self, hashes: Ints) -> Ints:
        """Index of each path, given by its hash (`hashes.hash_texts`); -1 if there is none."""
        if self._sorted is None or self._order is None:
            known = self.hashes()
            self._order = np.argsort(known, kind="stable")
            self._sorted = known[self._order]
        if not len(self):
            return np.full(len(hashes), -1, np.int64)
        place = np.searchsorted(self._sorted, hashes)
        place[place == len(self)] = 0
        return np.where(self._sorted[place] == hashes, self._order[place], -1)

    def hashes(self, *, seed: int = SEED) -> Ints:
        """Hash of each path, see `hash_spans`.

        Not of all at once, which takes some ten times the memory of the result.
        """
        known = np.empty(len(self), np.int64)
        begin = 0
        for first in range(0, len(self), _HASHED_AT_ONCE):
            ends = self.ends[first : first + _HASHED_AT_ONCE] - begin
            text = bytes(self.blob[begin : begin + int(ends[-1])]) + PADDING
            starts = np.concatenate(([0], ends[:-1]))
            known[first : first + len(ends)] = hash_spans(text, starts, ends - starts, seed=seed)
            begin += int(ends[-1])
        return known

    def find_folded(self, path: str) -> int:
        """Index of a path that differs only in letter case or Unicode form; -1 if there is none."""
        if self._folded is None:
            self._folded = {hash(fold(known)): index for index, known in enumerate(self.paths())}
        return self._folded.get(hash(fold(path)), -1)

    def _enter(self, path: str, kind: int, *state: int) -> None:
        """Add one path with its state in the order of the columns; without a state, all are 0."""
        self.blob += os.fsencode(path)
        self._ends.append(len(self.blob))
        for column, value in zip(self._columns.values(), state or (0,) * len(_COLUMNS), strict=True):
            column.append(value if column.typecode == "Q" else max(-_MAX_TIME, min(value, _MAX_TIME)))
        self.kinds.append(kind)

    def _state(self, found: os.stat_result) -> tuple[int, ...]:
        self.devices.add(found.st_dev)
        return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino

    def _note_unreadable(self, path: str, error: OSError) -> None:
        found = (path, error.strerror or type(error).__name__)
        if found not in self.unreadable[-1:]:
            self.unreadable.append(found)

    def _enter_pack(self) -> None:
        """Add the packed images; in place of the inode, a hash of the shard's and of the place in it."""
        try:
            pack = open_pack(self.root)
        except OSError as error:
            self._note_unreadable("", error)
            return
        listing, sizes = pack.listing(), pack.sizes
        states = np.array([state or ShardState(0, 0, 0, 0) for state in pack.states()], np.uint64).reshape(-1, 4)
        starts = np.concatenate(([0], pack.ends))[:-1]
        blob, places = np.frombuffer(pack.blob, np.uint8), pack.places()
        for first in range(0, len(listing), _PACKED_AT_ONCE):
            entries = listing[first : first + _PACKED_AT_ONCE]
            lengths = pack.ends[entries] - starts[entries]
            ends = np.cumsum(lengths)
            names = blob[np.repeat(starts[entries] - ends + lengths, lengths) + np.arange(int(ends[-1]))]
            shards = states[pack.shard_of[entries]]
            inodes = mixed(shards[:, 3].view(np.int64), places[entries]).view(np.uint64)
            columns = (sizes[entries], shards[:, 1].view(np.int64), shards[:, 2].view(np.int64), inodes)
            for column, values in zip(self._columns.values(), columns, strict=True):
                column.frombytes(values.astype(column.typecode, copy=False).tobytes())
            self._ends.frombytes((ends + len(self.blob)).tobytes())
            self.blob += names.tobytes()
            self.kinds += _kinds_of_names(names, ends)

    def _scan(self) -> None:
        if self.root.is_file():
            self._enter_pack()
            return
        real_root = os.path.realpath(self.root)
        stack: list[tuple[str, tuple[str, ...], bool]] = [("", (real_root,), False)]
        while stack:
            folder, above, unsafe = stack.pop()
            folders: list[tuple[str, tuple[str, ...], bool]] = []
            prefix = f"{folder}/" if folder else ""
            try:
                with os.scandir(os.path.join(self.root, folder) if folder else self.root) as listing:
                    entries = list(listing)
            except OSError as error:
                if folder or not isinstance(error, FileNotFoundError):
                    self._note_unreadable(folder, error)
                continue
            names = list(map(_get_name, entries))
            plain = _PLAIN_NAMES.fullmatch("/".join(names)) is not None
            entries.sort(key=_get_name if plain else _name_bytes)
            if plain and not unsafe and self._enter_files(prefix, entries):
                continue
            for entry in entries:
                path = prefix + entry.name
                bad = unsafe or (
                    (_PLAIN.fullmatch(entry.name) is None or entry.name[:3].lower() in _DEVICES)
                    and unsafe_reason(path) != ""
                )
                if entry.is_symlink():
                    self._follow(path, entry, real_root, above, folders, bad)
                elif entry.is_dir(follow_symlinks=False):
                    folders.append((path, (*above, os.path.join(above[-1], entry.name)), bad))
                else:
                    self._enter_entry(folder, path, entry, bad)
            stack.extend(reversed(folders))

    def _enter_files(self, prefix: str, entries: "list[os.DirEntry[str]]") -> bool:
        """Add all entries of a folder if they are files with plain names; otherwise add none and return False."""
        if not all(map(_is_file, entries)):
            return False
        columns = {name: array(code) for name, (code, _) in _COLUMNS.items()}
        for first in range(0, len(entries), _STATS_AT_ONCE):
            try:
                found = [entry.stat(follow_symlinks=False) for entry in entries[first : first + _STATS_AT_ONCE]]
                for name, (_, get) in _COLUMNS.items():
                    columns[name].extend(map(get, found))
            except (OSError, OverflowError):  # gone since it was listed; a time after the year 2262
                return False
            self.devices.update(map(_get_device, found))
        folder = os.fsencode(prefix)
        names = [folder + entry.name.encode() for entry in entries]
        self._ends.extend(islice(accumulate(map(len, names), initial=len(self.blob)), 1, None))
        self.blob += b"".join(names)
        for name, column in columns.items():
            self._columns[name] += column
        self.kinds += bytes([FILE]) * len(names)
        return True

    def _enter_entry(self, folder: str, path: str, entry: "os.DirEntry[str]", bad: bool) -> None:
        try:
            found = entry.stat(follow_symlinks=False)
        except OSError as error:
            if is_closed(error):  # else gone since it was listed
                self._note_unreadable(folder, error)  # its names can be read, its files cannot
            return
        kind = UNSAFE if bad else FILE if stat.S_ISREG(found.st_mode) else OTHER
        self._enter(path, kind, *self._state(found))

    def _follow(
        self,
        path: str,
        entry: "os.DirEntry[str]",
        real_root: str,
        above: tuple[str, ...],
        folders: list[tuple[str, tuple[str, ...], bool]],
        bad: bool,
    ) -> None:
        try:
            found = entry.stat()
        except FileNotFoundError:
            self._enter(path, BROKEN)
            return
        except OSError as error:
            if is_closed(error):
                self._note_unreadable(path, error)
            else:  # too many levels of symbolic links
                self._enter(path, LOOP)
            return
        target = os.path.realpath(entry.path)
        if target != real_root and not target.startswith(real_root + os.sep):
            self._enter(path, OUTSIDE, *self._state(found))
        elif not stat.S_ISDIR(found.st_mode):
            kind = UNSAFE if bad else FILE if stat.S_ISREG(found.st_mode) else OTHER
            size, mtime, ctime, inode = self._state(found)
            link = entry.stat(follow_symlinks=False)
            way = f"{link.st_ino} {link.st_ctime_ns} {inode} ".encode() + os.fsencode(target)
            self._enter(path, kind, size, mtime, max(ctime, link.st_ctime_ns), xxhash.xxh3_64_intdigest(way))
        elif target not in above:
            folders.append((path, (*above, target), bad))


def _kinds_of_names(names: npt.NDArray[np.uint8], ends: Ints) -> bytes:
    """FILE or UNSAFE for each of the names, which are one after another."""
    joined = np.insert(names, ends[:-1], ord("/")).tobytes()
    if _PLAIN_NAMES.fullmatch(os.fsdecode(joined)) is not None:
        return bytes([FILE]) * len(ends)
    starts = np.concatenate(([0], ends[:-1])).tolist()
    text = names.tobytes()
    each = (os.fsdecode(text[start:end]) for start, end in zip(starts, ends.tolist(), strict=True))
    return bytes(UNSAFE if unsafe_reason(name) else FILE for name in each)


def _is_file(entry: "os.DirEntry[str]") -> bool:
    return entry.is_file(follow_symlinks=False)


def _name_bytes(entry: "os.DirEntry[str]") -> bytes:
    return os.fsencode(entry.name)
