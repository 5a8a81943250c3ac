"""Whether a machine of a cluster sees the files that tasks read and write, and has the packages that decide bytes."""

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import xxhash

from phi3v_data.engine.base import Shared
from phi3v_data.errors import UserError
from phi3v_data.files import open_regular
from phi3v_data.messages import shown, shown_path

PACKAGES = ("phi3v", "pillow", "simplejpeg", "opencv-python-headless", "av")
"""Packages that decide the bytes of an image, or what is found in it."""

_HEAD_BYTES = 1 << 16
_MAX_LISTED = 1000
_TOKEN = ".phi3v-node-"


@dataclass(frozen=True, slots=True)
class Witness:
    """A file as this machine sees it, and what it stands for; `state` is as `look` gives it."""

    place: str
    path: str
    state: str


def look(path: str) -> str:
    """State of a file: size, time of its last change, digest of its start; or why it cannot be read."""
    try:
        with open_regular(path, buffering=0) as file:
            found = os.fstat(file.fileno())
            return f"{found.st_size} {int(found.st_mtime)} {xxhash.xxh3_128_hexdigest(file.read(_HEAD_BYTES))}"
    except OSError as error:
        return f"{os.strerror(error.errno or 0).lower()}"


@contextmanager
def witnesses(shared: Shared) -> Iterator[tuple[Witness, ...]]:
    """A witness for each file and folder; in folders that are written it is a file that is there during the block."""
    found = [_witness(path, file) for path in shared.read if (file := _first_file(path))]
    tokens = []
    try:
        for folder in shared.written:
            token = folder / f"{_TOKEN}{uuid.uuid4().hex}"
            tokens.append(token)
            token.write_text(token.name, encoding="ascii")
            found.append(_witness(folder, token))
        yield tuple(found)
    finally:
        for token in tokens:
            with suppress(OSError):
                token.unlink()


def difference(wanted: Sequence[Witness], packages: Sequence[str], folder: str) -> str:
    """Why this machine cannot take tasks, as the end of a sentence about it; empty if it can.

    It works in `folder` from then on, unless that is empty, so that relative paths mean the same.
    """
    try:
        os.chdir(folder or ".")
    except OSError as error:
        reason = (error.strerror or "").lower()
        return f"cannot enter {shown_path(folder)} ({reason}), in which relative paths begin; give absolute paths"
    for witness in wanted:
        state = look(witness.path)
        if state != witness.state:
            why = "it has another file there" if state[:1].isdigit() else state
            return (
                f"does not see {shown(witness.place, 100)} as this machine does ({why}); mount the same file system at "
                "the same path on all nodes, or keep tasks off this one with --ray_resources"
            )
    for name, theirs, ours in zip(PACKAGES, packages, package_versions(), strict=True):
        if theirs != ours:
            return f"has {name} {ours or 'not'} installed, this machine {theirs or 'not'}; install the same packages"
    return ""


def needed_folder(shared: Shared) -> str:
    """The working folder, if a path is relative to it; else empty."""
    return "" if all(path.is_absolute() for path in (*shared.read, *shared.written)) else os.getcwd()


def package_versions() -> tuple[str, ...]:
    """The version of each of `PACKAGES`, empty if it is not installed."""
    found = []
    for name in PACKAGES:
        try:
            found.append(version(name))
        except PackageNotFoundError:
            found.append("")
    return tuple(found)


def refuse_node(node: str, why: str, more: int = 0) -> UserError:
    """The sentence about a node that cannot take tasks, and the number of others like it."""
    others = f" (and {more} more)" if more else ""
    return UserError(f"the Ray node {shown(node, 40)}{others} {why}")


def _witness(place: Path, file: Path) -> Witness:
    return Witness(str(place), os.path.abspath(file), look(str(file)))


def _first_file(path: Path) -> Path | None:
    """The path itself, or a regular file in the folder, looked for among its first entries.

    A path that is not there (an image in a shard, say) stands for the folder above it that is.
    """
    path = next((each for each in (path, *path.parents) if each.exists()), path)
    if not path.is_dir():
        return path
    folders, listed = [path], 0
    while folders and listed < _MAX_LISTED:
        folder = folders.pop()
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                listed += 1
                if entry.is_file(follow_symlinks=False):
                    return Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                if listed >= _MAX_LISTED:
                    break
    return None
