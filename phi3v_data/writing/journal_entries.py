"""Which entries of the journal's folders are files, and which are folders: others are refused, not worked around."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from phi3v_data.errors import UserError
from phi3v_data.suffixes import IMAGE_SUFFIXES

_OWNER = r"[0-9a-f]{32}(/run(/.*)?)?"

ENTRIES: Mapping[str, re.Pattern[str]] = {
    "parts": re.compile(r"(?!)"),
    "collisions": re.compile(r"(?!)"),
    "packed": re.compile(r"(?!)"),
    "stage": re.compile(r"shards|images(/.*)?", re.DOTALL),
    "slices": re.compile(rf"claims|images|kept|owners(/{_OWNER})?|joining-{_OWNER}", re.DOTALL),
}
"""Folders of the journal, and which entries below each may be folders."""

_ALWAYS_FOLDERS = {"slices": frozenset({"claims", "images", "kept", "owners"})}


def check_entries(root: Path, name: str) -> None:
    """Refuse a folder of the journal with anything but the files and folders that phi3v makes; links are not followed.

    Args:
        name: its name in `ENTRIES`.

    Raises:
        UserError: names the first entry that phi3v cannot have made.
    """
    if root.exists() and not root.is_dir():
        raise not_ours(root, "folder")
    for entry, below in _entries(root):
        if entry.is_dir(follow_symlinks=False):
            if not ENTRIES[name].fullmatch(below) or below.lower().endswith(IMAGE_SUFFIXES):
                raise not_ours(entry.path, "file")
        elif below in _ALWAYS_FOLDERS.get(name, ()):
            raise not_ours(entry.path, "folder")
        elif not entry.is_file(follow_symlinks=False) and os.path.lexists(entry.path):
            raise not_ours(entry.path, "file")


def not_ours(path: str | Path, kind: str) -> UserError:
    """The error for what is in the place of a file or folder; `kind` is the one of these that it should be."""
    return UserError(f"{path}: is not a {kind} that phi3v made; nothing was changed: remove it")


def _entries(root: Path) -> Iterator[tuple["os.DirEntry[str]", str]]:
    """The entries of a folder and of its subfolders, with their paths below it."""
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as listing:
                for entry in listing:
                    below = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(below)
                    yield entry, below
        except FileNotFoundError:
            continue
