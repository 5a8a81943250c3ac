"""Writes the members of an archive to a folder: safe paths and limits on the unpacked size."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn, Protocol

from phi3v_data.errors import UserError
from phi3v_data.messages import short, shown
from phi3v_data.mounts import NO_HARD_LINKS

BLOCK = 1 << 20
MAX_NAME_BYTES = 255
"""Longest component of a path, in bytes, on common file systems."""

_NO_PLACE = {
    errno.ENAMETOOLONG: "its path is too long",
    errno.EEXIST: "another member is a file where this one needs a folder",
    errno.ENOTDIR: "another member is a file where this one needs a folder",
    errno.EISDIR: "another member is a folder of this name",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on archives. The ratio is only checked above `ratio_from` unpacked bytes."""

    max_files: int = 2_000_000
    max_bytes: int = 1 << 40
    max_ratio: int = 200
    ratio_from: int = 1 << 24
    max_header: int = 1 << 20  # bytes of one extended header of a tar (PAX, GNU long name), which is read at once


@dataclass(frozen=True, slots=True)
class RejectedMember:
    """A member of an archive that was left out: its printable name, and the reason."""

    name: str
    why: str


class Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


def is_junk(path: PurePosixPath) -> bool:
    """Whether a path is a hidden file, or metadata of macOS."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


class MemberWriter:
    """Writes members under `root`, and counts them and their bytes."""

    def __init__(self, archive: Path, root: Path, limits: Limits, packed: int) -> None:
        self.archive = archive
        self.root = root
        self.limits = limits
        self.packed = max(packed, 1)
        self.files = 0
        self.bytes = 0  # written
        self.read = 0  # that came out of the decompression
        self.links: list[tuple[PurePosixPath, PurePosixPath]] = []
        self.rejected: list[RejectedMember] = []

    def place(self, name: str) -> PurePosixPath | None:
        """Path of a member under the root; None for junk, the root itself and names that cannot be used."""
        if "\0" in name:
            self.refuse(f"has a NUL in the name {shown(name)}")
        path = PurePosixPath(name)
        pieces = name.replace("\\", "/").split("/")
        if path.is_absolute() or name[:1] == "\\" or ".." in pieces or name[1:3] in (":\\", ":/"):
            self.refuse(f"has the path {shown(name)}, which leads outside")
        if not path.parts or is_junk(path):
            return None
        try:
            longest = max(len(piece.encode()) for piece in path.parts)
        except UnicodeEncodeError:
            self.reject(name, "its name is not UTF-8")
            return None
        if longest > MAX_NAME_BYTES:
            self.reject(name, f"its name has {longest} bytes, and a file name has at most {MAX_NAME_BYTES}")
            return None
        return path

    def reject(self, name: "str | PurePosixPath", why: str) -> None:
        """Leave a member out and record it."""
        plain = str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        self.rejected.append(RejectedMember(short(plain), why))

    @contextmanager
    def fits(self, path: PurePosixPath) -> Iterator[None]:
        """Reject a member whose path conflicts with another member."""
        try:
            yield
        except OSError as error:
            if error.errno not in _NO_PLACE:
                raise
            self.reject(path, _NO_PLACE[error.errno])

    def count(self) -> None:
        """Count a member."""
        self.files += 1
        if self.files > self.limits.max_files:
            self.refuse(f"has more than {self.limits.max_files} entries")

    def folder(self, path: PurePosixPath) -> None:
        with self.fits(path):
            (self.root / path).mkdir(parents=True, exist_ok=True)

    def file(self, path: PurePosixPath, stream: Readable) -> None:
        target = self.root / path
        with self.fits(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_file():  # the last one is used, as tar does
                self.reject(path, "a later member has the same name and is used in its place")
            with target.open("wb") as out:
                while block := stream.read(BLOCK):
                    self.bytes += len(block)
                    self.allow(self.bytes)
                    out.write(block)

    def came_out(self, length: int) -> None:
        """Count decompressed bytes of any kind."""
        self.read += length
        self.allow(self.read)

    def announced(self, length: int) -> None:
        """Reject a member whose declared size exceeds the limits, before it is read."""
        self.allow(self.read + length)

    def allow(self, total: int) -> None:
        """Raise an error if the limits are exceeded."""
        if total > self.limits.max_bytes:
            self.refuse(f"unpacks to more than {self.limits.max_bytes} bytes")
        if total > self.limits.ratio_from and total > self.limits.max_ratio * self.packed:
            self.refuse(f"unpacks to more than {self.limits.max_ratio} times its size, like a decompression bomb")

    def link(self, path: PurePosixPath, target: str, *, base: PurePosixPath) -> None:
        """Record a link; it is created at the end, when all regular files exist."""
        parts: list[str] = list(base.parts)
        for part in target.split("/"):
            if part == "..":
                if not parts:
                    self.refuse(f"has the link '{path}' to '{target}', which leads outside")
                parts.pop()
            elif part not in ("", "."):
                parts.append(part)
        if target.startswith("/"):
            self.refuse(f"has the link '{path}' to '{target}', which leads outside")
        self.links.append((path, PurePosixPath(*parts)))

    def link_all(self) -> None:
        """Create links to files of the archive (also links to links) as additional names of these files.

        Symbolic links are never created, so none can lead outside. A link to a folder, or to a missing member, is an
        error.
        """
        targets = dict(self.links)
        for path, target in self.links:
            seen = {path}
            while target in targets and target not in seen:
                seen.add(target)
                target = targets[target]
            source = self.root / target
            if any(member.name == str(target) for member in self.rejected):
                self.reject(path, "it is a link to a member that was left out")
                continue
            if not source.is_file():
                self.refuse(f"has the link '{path}' to '{target}', which is not a file of the archive")
            with self.fits(path):
                self._link(source, self.root / path)

    def _link(self, source: Path, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_file() and not place.is_symlink():
            place.unlink()
        try:
            os.link(source, place)
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            shutil.copyfile(source, place)

    def refuse(self, what: str) -> NoReturn:
        """Reject the whole archive."""
        raise UserError(f"the archive '{self.archive}' {what}; it is not unpacked")
