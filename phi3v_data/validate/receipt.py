"""Record of a run under `DIR/.phi3v/validate/`, so that the next one checks only what has changed.

`receipt.json` holds the options, the state of every file and the report. While all of it matches, the report is
returned as it is. `images.bin` holds the facts of each image, which are used again while its state is unchanged. It is
also written now and then during a run, so that one that was killed is resumed.

The state of a file is its size, modification time, change time and inode; of JSONL files and the manifest the content
digest as well. Who changes a file cannot choose its change time, so one whose size and time were put back is noticed,
and so is a copy of the directory, whose receipt counts for nothing. The device number is left out: the same files
seen through another mount, or from another machine, stay what they were. A change within the same tick of the file
system's clock as an earlier one leaves no trace, so a file that was changed after the clock was read (`read_clock`,
before anything else) is checked again next time: git's racy entries.
"""

import errno
import json
import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import xxhash
from pydantic import ValidationError

from phi3v_data.columns import DamagedFileError, read_columns, read_small, write_columns
from phi3v_data.files import HIDDEN, hidden_path, open_regular, write_bytes
from phi3v_data.media.formats import LIMITS, PIXEL_LIMITS
from phi3v_data.media.integrity import FACTS
from phi3v_data.messages import escaped
from phi3v_data.schema import Report
from phi3v_data.unfinished import MANIFEST
from phi3v_data.validate.images import ImageTable
from phi3v_data.validate.tree import ImageTree

RECEIPT_VERSION = 2

Ints = npt.NDArray[np.int64]

_FOLDER = "validate"
_RECEIPT = "receipt.json"
_IMAGES = "images.bin"
_MAGIC = b"phi3vim2"
_READ_BYTES = 1 << 20
_MAX_REPORT = 64 << 20
_MIN_LIMIT, _BYTES_PER_ENTRY = 64 << 20, 1 << 10  # of `images.bin`: more would be of another directory
_OTHER_DISKS = 2_000_000_000
"""Nanoseconds: the coarsest clock of a file system that is in use (FAT). The clock that was read is that of the
directory's own file system; for files on others this is taken off."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The time of a file system's own clock in ns, and the device number of that file system. A file on it that is
    changed later gets a change time of at least this.
    """

    now: int
    device: int

    def settled(self, devices: Collection[int]) -> int:
        """Change times below this are of changes that no later one can share its time with."""
        return self.now if set(devices) <= {self.device} else self.now - _OTHER_DISKS


@dataclass(frozen=True, slots=True)
class State:
    """Identity of everything that a report speaks of, apart from the options."""

    files: Mapping[str, str]  # JSONL files and manifest: digest of the content
    stats: Mapping[str, Sequence[int]]  # the same files: size, modification time, change time, inode
    names: Sequence[str]  # all JSONL files of the directory
    tree: str
    checker: str  # versions that the findings depend on
    newest: int  # the latest change time of any file
    devices: frozenset[int]

    def to_json(self) -> dict[str, Any]:
        """As `receipt.json` holds it."""
        return {
            "files": dict(self.files),
            "stats": {name: list(values) for name, values in self.stats.items()},
            "names": list(self.names),
            "tree": self.tree,
            "checker": self.checker,
        }


def read_clock(directory: Path) -> Clock:
    """The clock of a directory's file system, from a file without a name.

    Raises:
        OSError: the directory takes no files, so no receipt can be left either.
    """
    with tempfile.TemporaryFile(dir=_make_folder(directory)) as file:
        status = os.fstat(file.fileno())
    return Clock(status.st_ctime_ns, status.st_dev)


def remove_empty_folders(directory: Path) -> None:
    """Remove what `read_clock` made, where a directory is refused before a receipt can be left."""
    if folder := hidden_path(directory, _FOLDER):
        with suppress(OSError):  # not empty, or not there
            folder.rmdir()
            folder.parent.rmdir()


def _make_folder(directory: Path) -> Path:
    folder = hidden_path(directory, _FOLDER)
    if folder is None:
        raise NotADirectoryError(
            errno.ENOTDIR, "is a link, and phi3v needs a folder of its own there", f"{directory}/{HIDDEN}"
        )
    for path in (folder.parent, folder):  # but not the directory itself
        path.mkdir(exist_ok=True)
    return folder


def read_state(directory: Path, files: Sequence[str], unnamed: Sequence[str], tree: ImageTree) -> State:
    """The state of a directory: of its JSONL files (`unnamed` are those of no split), its manifest and its images."""
    digests: dict[str, str] = {}
    stats: dict[str, tuple[int, ...]] = {}
    newest, devices = int(tree.ctimes.max(initial=0)), set(tree.devices)
    for name in [*files, MANIFEST]:
        try:
            found = os.stat(directory / name)
        except OSError:
            if name == MANIFEST:
                continue
            stats[escaped(name)] = ()
        else:
            stats[escaped(name)] = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
            newest = max(newest, found.st_ctime_ns)
            devices.add(found.st_dev)
        digests[escaped(name)] = content_digest(directory / name)
    names = sorted(map(escaped, [*files, *unnamed]))
    digest = tree_digest(tree, tree.sizes, tree.mtimes, tree.ctimes, tree.inodes)
    return State(digests, stats, names, digest, checker_version(), newest, frozenset(devices))


def tree_digest(tree: ImageTree, *states: npt.NDArray[Any]) -> str:
    """Digest of every path and kind under `images/`, and of these columns of the tree."""
    hasher = xxhash.xxh3_128()
    blob, kinds, unreadable = memoryview(tree.blob), memoryview(tree.kinds), memoryview(repr(tree.unreadable).encode())
    for part in (blob, tree.ends.data, *(column.data for column in states), kinds, unreadable):
        hasher.update(part)
        hasher.update(b"|")
    return hasher.hexdigest()


def content_digest(path: Path) -> str:
    """XXH3 digest of a file's bytes; says so where it cannot be read."""
    hasher = xxhash.xxh3_128()
    try:
        with open_regular(path, buffering=0) as file:
            while block := file.read(_READ_BYTES):
                hasher.update(block)
    except OSError as error:
        return f"unreadable: {error.strerror}"
    return hasher.hexdigest()


@cache
def checker_version() -> str:
    """Versions of the packages that can change the findings about an image."""
    return f"{RECEIPT_VERSION}/{version('phi3v')}/{PIL.__version__}/{version('simplejpeg')}/{LIMITS}/{PIXEL_LIMITS}"


def load_report(directory: Path, state: State, options: Mapping[str, Any]) -> Report | None:
    """The stored report if the directory is as it was and the options given are those of the run; else None."""
    try:
        path = hidden_path(directory, _FOLDER, _RECEIPT)
        data = read_small(path, _MAX_REPORT) if path else None
        if data is None:
            return None
        stored = json.loads(data)
        if stored["digest"] != xxhash.xxh3_128_hexdigest(data.partition(b"\n")[2]):
            return None
        if stored["state"] != state.to_json() or not state.newest < stored["settled"]:
            return None
        made_for = stored["options"]
        if any(made_for.get(key, ...) != value for key, value in options.items()):
            return None
        return Report.model_validate({**stored["report"], "dir": os.fspath(directory)})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError, RecursionError):
        return None


def load_images(directory: Path, tree: ImageTree) -> ImageTable:
    """The facts of an earlier run about unchanged images; blank facts for all others."""
    table = blank(tree)
    try:
        path = hidden_path(directory, _FOLDER, _IMAGES)
        stored = read_columns(path, _MAGIC, _MIN_LIMIT + _BYTES_PER_ENTRY * len(tree)) if path else None
        if stored is None or stored[0]["checker"] != checker_version():
            return table
        header, body = stored
        count, settled, details = int(header["count"]), int(header["settled"]), header["details"]
        columns = [body[8 * count * n : 8 * count * (n + 1)].cast("B") for n in range(5)]
        old_ends, old_sizes, old_mtimes, old_ctimes = (np.frombuffer(column, np.int64) for column in columns[:4])
        old_inodes = np.frombuffer(columns[4], np.uint64)
        old_facts = np.frombuffer(body, FACTS, count, 40 * count)
        old_blob = body[(40 + FACTS.itemsize) * count :]
        if len(old_inodes) != count or len(old_blob) != (int(old_ends[-1]) if count else 0):
            return table
        old, new = _pairs(old_blob, old_ends, tree)
        same = old_ctimes[old] < settled
        for before, now in (
            (old_sizes, tree.sizes),
            (old_mtimes, tree.mtimes),
            (old_ctimes, tree.ctimes),
            (old_inodes, tree.inodes),
        ):
            same &= before[old] == now[new]
        old, new = old[same], new[same]
        renumbered = dict(zip(old.tolist(), new.tolist(), strict=True)) if details else {}
        words = {(renumbered[index], int(flag)): str(text) for index, flag, text in details if index in renumbered}
    except (OSError, DamagedFileError, ValueError, KeyError, TypeError, OverflowError):
        return table
    table.facts[new] = old_facts[old]
    table.details.update(words)
    return table


def _pairs(old_blob: memoryview, old_ends: Ints, tree: ImageTree) -> tuple[Ints, Ints]:
    """Indexes of the paths that are in both the old tree and this one."""
    if np.array_equal(old_ends, tree.ends) and old_blob == tree.blob:
        return np.arange(len(tree)), np.arange(len(tree))
    starts = np.concatenate(([0], old_ends[:-1])).tolist()
    text = bytes(old_blob)
    known = {text[start:end]: index for index, (start, end) in enumerate(zip(starts, old_ends.tolist(), strict=True))}
    pairs = [(known[path], index) for index, path in enumerate(map(os.fsencode, tree.paths())) if path in known]
    old, new = np.array(pairs, np.int64).reshape(-1, 2).T
    return old, new


def blank(tree: ImageTree) -> ImageTable:
    """Nothing known of any image."""
    return ImageTable(np.zeros(len(tree), FACTS))


def save_images(directory: Path, clock: Clock, state: State, tree: ImageTree, images: ImageTable) -> None:
    """Leave the facts of images alone, also in the middle of a run: the next one checks only the other images.

    Raises:
        OSError: they cannot be left.
    """
    folder = _make_folder(directory)
    details = [[index, flag, words] for (index, flag), words in images.details.items()]
    settled = clock.settled(state.devices)
    header = {"checker": checker_version(), "count": len(tree), "settled": settled, "details": details}
    states = (tree.ends, tree.sizes, tree.mtimes, tree.ctimes, tree.inodes)
    write_columns(folder / _IMAGES, _MAGIC, header, [*states, images.facts.view(np.uint8), tree.blob])
    (folder / "images.npz").unlink(missing_ok=True)  # of receipts before version 2


def save(
    directory: Path,
    clock: Clock,
    state: State,
    options: Mapping[str, Any],
    report: Report,
    tree: ImageTree,
    images: ImageTable,
) -> None:
    """Leave the receipt; both files are written aside and renamed, the report last.

    `clock` was read before the state was, so that nothing that changed since the state was read goes unnoticed.

    Raises:
        OSError: it cannot be left.
    """
    save_images(directory, clock, state, tree, images)
    receipt = {
        "state": state.to_json(),
        "settled": clock.settled(state.devices),
        "options": dict(options),
        "report": report.model_dump(mode="json"),
    }
    text = json.dumps(receipt, allow_nan=False).encode()[1:]
    head = f'{{"digest": "{xxhash.xxh3_128_hexdigest(text)}",\n'  # of all that follows this line
    write_bytes(_make_folder(directory) / _RECEIPT, head.encode() + text)
