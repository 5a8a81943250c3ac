"""Unpack archives that nobody vouches for: tar (plain, gz, bz2, xz) and zip, told by content, not by name.

Refused: paths outside, links outside, devices, more files or bytes than the limits, and more than a sane ratio of
unpacked to packed bytes. Nothing is believed that the archive says of sizes: bytes are counted as they come out.
A finished folder has a marker and is used again; a killed or failed extraction leaves only a `.partial` folder, which
the next one clears.
"""

import bz2
import gzip
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, cast

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.files import read_json, sync_disk, sync_folder, write_json
from phi3v_data.mounts import NO_HARD_LINKS

MARKER = "extracted.json"
FOLDER = "files"
_BLOCK = 1 << 20
_TAR_BLOCK = 512
_DAMAGE = (
    EOFError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    NotImplementedError,  # zipfile: a compression it does not know
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Beyond these an archive is taken for a bomb. The ratio counts only above `ratio_from` unpacked bytes."""

    max_files: int = 2_000_000
    max_bytes: int = 1 << 40
    max_ratio: int = 200
    ratio_from: int = 1 << 24


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


def archive_kind(path: Path) -> str:
    """`tar`, `tar.gz`, `tar.bz2`, `tar.xz`, `zip`, `rar`, `7z`, `tar.zst`, or empty for anything else."""
    with path.open("rb") as stream:
        head = stream.read(265)
    for magic, kind in (
        (b"\x1f\x8b", "tar.gz"),
        (b"BZh", "tar.bz2"),
        (b"\xfd7zXZ\x00", "tar.xz"),
        (b"PK\x03\x04", "zip"),
        (b"PK\x05\x06", "zip"),
        (b"Rar!", "rar"),
        (b"7z\xbc\xaf", "7z"),
        (b"\x28\xb5\x2f\xfd", "tar.zst"),
    ):
        if head.startswith(magic):
            return kind
    return "tar" if head[257:262] == b"ustar" else ""


def extract(archive: Path, work_dir: Path, limits: Limits | None = None) -> Path:
    """Unpack `archive` under `work_dir` and return the folder; a finished one is used again.

    Raises:
        UserError: unsafe, damaged, cut short, too large, of a kind that is not read, or no space left.
    """
    try:
        stat = archive.stat()
    except OSError as error:
        raise NotFoundError(f"cannot read the archive '{archive}': {error.strerror}") from error
    times = {"mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}
    identity = {"name": archive.name, "size": stat.st_size, **times}
    done = work_dir / FOLDER
    if read_json(work_dir / MARKER) == identity and done.is_dir() and not done.is_symlink():
        return done
    kind = archive_kind(archive)
    if kind in ("rar", "7z", "tar.zst"):
        tool = {"rar": "unrar x", "7z": "7z x", "tar.zst": "tar --zstd -xf"}[kind]
        raise UserError(
            f"'{archive}' is a {kind} archive, which is not read here; unpack it ({tool} {archive.name}) and give "
            "the folder as --source"
        )
    if not kind:
        raise UserError(f"'{archive}' is neither a tar nor a zip archive; give an archive or a folder as --source")
    partial = work_dir / f".{FOLDER}.partial"
    try:
        for leftover in (work_dir / MARKER, partial, done):
            _remove(leftover)
        partial.mkdir(parents=True)
        writer = _Writer(archive, partial, limits or Limits(), stat.st_size)
        if kind == "zip":
            _unzip(archive, writer)
        else:
            _untar(archive, kind, writer)
        writer.link_all()
        sync_disk(partial)
        os.replace(partial, done)
        sync_folder(work_dir)
        write_json(work_dir / MARKER, identity)
    except _DAMAGE as error:
        raise UserError(
            f"the archive '{archive}' is damaged or cut short ({_reason(error)}); download it again"
        ) from error
    except OSError as error:
        raise UserError(f"cannot unpack '{archive}' into '{work_dir}': {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return done


def is_junk(path: PurePosixPath) -> bool:
    """Hidden files, and what macOS leaves in archives and on foreign disks."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _reason(error: BaseException) -> str:
    return str(error).rstrip(".") or type(error).__name__


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class _Writer:
    """Puts members under `root`, counting them and their bytes."""

    def __init__(self, archive: Path, root: Path, limits: Limits, packed: int) -> None:
        self.archive = archive
        self.root = root
        self.limits = limits
        self.packed = max(packed, 1)
        self.files = 0
        self.bytes = 0
        self.links: list[tuple[PurePosixPath, PurePosixPath]] = []

    def place(self, name: str) -> PurePosixPath | None:
        """A member's path under the root; None for junk and for the root itself."""
        if "\0" in name:
            self.refuse(f"has a NUL in the name {name!r}")
        path = PurePosixPath(name)
        pieces = name.replace("\\", "/").split("/")
        if path.is_absolute() or name[:1] == "\\" or ".." in pieces or name[1:3] in (":\\", ":/"):
            self.refuse(f"has the path {name!r}, which leads outside")
        if not path.parts or is_junk(path):
            return None
        return path

    def count(self) -> None:
        """One more member."""
        self.files += 1
        if self.files > self.limits.max_files:
            self.refuse(f"has more than {self.limits.max_files} entries")

    def folder(self, path: PurePosixPath) -> None:
        (self.root / path).mkdir(parents=True, exist_ok=True)

    def file(self, path: PurePosixPath, stream: _Readable) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            while block := stream.read(_BLOCK):
                self.weigh(len(block))
                out.write(block)

    def weigh(self, length: int) -> None:
        """Count unpacked bytes."""
        self.bytes += length
        if self.bytes > self.limits.max_bytes:
            self.refuse(f"unpacks to more than {self.limits.max_bytes} bytes")
        if self.bytes > self.limits.ratio_from and self.bytes > self.limits.max_ratio * self.packed:
            self.refuse(f"unpacks to more than {self.limits.max_ratio} times its size, as a decompression bomb does")

    def link(self, path: PurePosixPath, target: str, *, base: PurePosixPath) -> None:
        """Remember a link; it is made at the end, when all regular files are there."""
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
        """Links to files of the archive become further names of these files, links to links included.

        No symbolic link is ever made, so none can be used to step outside. A link to a folder, or to what is not
        there, cannot become a name of a file and is an error.
        """
        targets = dict(self.links)
        for path, target in self.links:
            seen = {path}
            while target in targets and target not in seen:
                seen.add(target)
                target = targets[target]
            source = self.root / target
            if not source.is_file():
                self.refuse(f"has the link '{path}' to '{target}', which is no file of the archive")
            place = self.root / path
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.is_file() and not place.is_symlink():
                place.unlink()
            try:
                os.link(source, place)
            except OSError as error:
                if error.errno not in NO_HARD_LINKS:
                    raise
                shutil.copyfile(source, place)

    def refuse(self, what: str) -> None:
        raise UserError(f"the archive '{self.archive}' {what}; it is not unpacked")


def _unzip(archive: Path, writer: _Writer) -> None:
    with zipfile.ZipFile(archive) as packed:
        for entry in packed.infolist():
            writer.count()
            path = writer.place(entry.filename)
            if path is None:
                continue
            if entry.flag_bits & 1:
                raise UserError(f"the archive '{archive}' is encrypted; unpack it yourself and give the folder")
            kind = (entry.external_attr >> 28) if entry.create_system == 3 else 0
            if entry.is_dir():
                writer.folder(path)
            elif kind == 0o12:
                target = packed.read(entry).decode("utf-8", "surrogateescape") if entry.file_size < 4096 else "/"
                writer.link(path, target, base=path.parent)
            elif kind in (0, 0o10):
                with packed.open(entry) as stream:
                    writer.file(path, stream)
            else:
                writer.refuse(f"has '{path}', which is a device or a pipe")


def _untar(archive: Path, kind: str, writer: _Writer) -> None:
    with _decompressed(archive, kind) as raw:
        stream = _Tail(raw)
        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|") as packed:
            for member in _members(packed, writer):
                path = writer.place(member.name)
                if path is None:
                    continue
                if member.isdir():
                    writer.folder(path)
                elif member.isreg():
                    content = packed.extractfile(member)
                    if content is not None:
                        writer.file(path, content)
                elif member.issym():
                    writer.link(path, member.linkname, base=path.parent)
                elif member.islnk():
                    writer.link(path, member.linkname, base=PurePosixPath())
                else:
                    writer.refuse(f"has '{path}', which is a device or a pipe")
        while block := stream.read(_BLOCK):  # to the end, so that the checksum of gzip is looked at
            writer.weigh(len(block))
        if not stream.ends_in_zeros:
            raise EOFError("no end mark")


def _members(packed: tarfile.TarFile, writer: _Writer) -> Iterable[tarfile.TarInfo]:
    """The headers one after another, forgetting those that are done."""
    while (member := packed.next()) is not None:
        packed.members = []  # type: ignore[attr-defined]  # typeshed leaves it out; it would hold every header
        writer.count()
        yield member


@contextmanager
def _decompressed(archive: Path, kind: str) -> Iterator[_Readable]:
    if kind == "tar.gz":
        with gzip.open(archive, "rb") as stream:
            yield stream
    elif kind == "tar.bz2":
        with bz2.open(archive, "rb") as stream:
            yield stream
    elif kind == "tar.xz":
        with lzma.open(archive, "rb") as stream:
            yield stream
    else:
        with archive.open("rb") as stream:
            yield stream


class _Tail:
    """A stream that remembers its last block: a whole tar ends in zeros, one cut between two members does not."""

    def __init__(self, stream: _Readable) -> None:
        self._stream = stream
        self._last = b""

    def read(self, size: int = -1, /) -> bytes:
        block = self._stream.read(size)
        self._last = (self._last + block)[-_TAR_BLOCK:]
        return block

    @property
    def ends_in_zeros(self) -> bool:
        return len(self._last) == _TAR_BLOCK and not any(self._last)
