"""Names of images in an index that may come from someone else: the rules of paths in rows, for all names at once."""

import re

import numpy as np
import numpy.typing as npt
import xxhash

from phi3v_data.columns import DamagedFileError
from phi3v_data.files import unsafe_reason
from phi3v_data.messages import shown

Ints = npt.NDArray[np.int64]

MAX_COMPONENT, MAX_NAME = 255, 4095
"""Bytes of a component and of a whole name that a file system can have."""

_AT_ONCE = 1 << 15
_LINE, _SLASH = ord("\n"), ord("/")
_ORDINARY = bytes({_LINE, *range(32, 256)} - {127, *b"\\:"})
_SUSPECT = re.compile(rb"[\n/](?:[./\n]|(?:con|prn|aux|nul|com[0-9]|lpt[0-9])[./\n])")
"""Found in each bad name that has only `_ORDINARY` bytes, and in a few good ones."""


def name_reason(name: str) -> str:
    """Why no image in a shard can have a name; empty if one can."""
    if reason := unsafe_reason(name):
        return reason
    if len(name.encode()) > MAX_NAME:
        return f"has more than {MAX_NAME:,} bytes"
    if any(len(part.encode()) > MAX_COMPONENT for part in name.split("/")):
        return f"has a component of more than {MAX_COMPONENT} bytes"
    return ""


def check_names(blob: memoryview, ends: Ints) -> tuple[Ints, set[str]]:
    """Refuse names that no image may have; return the hash of each, as of `pack.hash_of_name`, and all folders.

    Raises:
        DamagedFileError: naming the first bad name.
        ValueError: names are not UTF-8, or do not end where the next begins.
    """
    if len(ends) and not (int(ends[0]) > 0 and bool((ends[1:] > ends[:-1]).all())):
        raise ValueError("a name ends before it begins")
    if (int(ends[-1]) if len(ends) else 0) != len(blob):
        raise ValueError("the names do not end with the text")
    hashes = np.empty(len(ends), np.uint64)
    folders: set[str] = set()
    start = 0
    for first in range(0, len(ends), _AT_ONCE):
        cuts = ends[first : first + _AT_ONCE]
        lines = np.insert(np.frombuffer(blob, np.uint8)[start : cuts[-1]], cuts[:-1] - start, _LINE)
        start = int(cuts[-1])
        text = lines.tobytes()
        names = text.decode().split("\n")
        _check(names, text, lines, len(cuts))
        digests = map(xxhash.xxh3_64_intdigest, text.split(b"\n"))
        hashes[first : first + len(cuts)] = np.fromiter(digests, np.uint64, len(cuts))
        folders.update(name.rpartition("/")[0] for name in names)
    return (hashes ^ np.uint64(1 << 63)).view(np.int64), _with_parents(folders)


def _check(names: list[str], text: bytes, lines: npt.NDArray[np.uint8], count: int) -> None:
    """Look at each name only if one of them may be a bad one. Raises DamagedFileError."""
    breaks = np.flatnonzero((lines == _LINE) | (lines == _SLASH))
    longest = int(np.diff(breaks, prepend=-1, append=len(lines)).max()) - 1
    plain = not text.translate(None, _ORDINARY) and _SUSPECT.search(b"\n%b\n" % text.lower()) is None
    if len(names) != count:
        raise DamagedFileError("a name has a line break")
    if plain and longest <= MAX_COMPONENT and max(map(len, names)) * 4 <= MAX_NAME:
        return
    for name in names:
        if reason := name_reason(name):
            raise DamagedFileError(f"the name {shown(name, 60)} {reason}")


def _with_parents(folders: set[str]) -> set[str]:
    """Folders and all that are above them."""
    result = set[str]()
    for folder in folders:
        while folder and folder not in result:
            result.add(folder)
            folder = folder.rpartition("/")[0]
    return result
