"""Unpacks untrusted archives: tar (plain, gz, bz2, xz) and zip, detected by content, not by name.

Rejected: paths and links that lead outside, devices, more files or bytes than the limits, and a too high ratio of
unpacked to packed bytes. Decompressed bytes are counted, including those of skipped members and headers; a declared
size over the limits is rejected before anything is read.

A member that cannot be unpacked (a name that is not UTF-8 or too long, a file where another member needs a folder) is
left out and listed by `rejected_members`; the rest is unpacked.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, NoReturn, cast

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.files import read_json, sync_disk, sync_folder, write_json
from phi3v_data.sources.bucket import copied_etag
from phi3v_data.sources.members import BLOCK, Limits, MemberWriter, Readable, RejectedMember

MARKER = "extracted.json"
FOLDER = "files"
INNER = "inner-"
"""Start of the name of a working folder of an archive within the source."""
_TAR_BLOCK = 512
_DAMAGE = (
    EOFError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    UnicodeDecodeError,  # zipfile: a name that is marked as UTF-8 and is not
    lzma.LZMAError,
    gzip.BadGzipFile,
    NotImplementedError,  # zipfile: a compression it does not know
)


_EXTENDED = frozenset(
    {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
)


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


def member_name(archive: str, member: str) -> str:
    """How a member is named to the user."""
    return f"{archive}: {member}"


def extract(
    archive: Path, work_dir: Path, limits: Limits | None = None, *, name: str = "", shared: bool = False
) -> Path:
    """Unpack `archive` under `work_dir` and return the folder; a finished one is used again.

    Args:
        name: path of the archive in the source, by which messages name it; by default its file name.
        shared: other processes read what is in `work_dir`, so that another archive is refused.

    Raises:
        UserError: the archive is unsafe, damaged, cut short, too large or of an unsupported type, or the disk is full.
    """
    try:
        stat = archive.stat()
    except OSError as error:
        raise NotFoundError(f"cannot read the archive '{archive}': {error.strerror}") from error
    etag = copied_etag(archive)
    state = {"etag": etag} if etag else {"mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}
    identity = {"name": archive.name, "size": stat.st_size, **state}
    done = work_dir / FOLDER
    if done.is_dir() and not done.is_symlink() and _marker(work_dir).get("archive") == identity:
        return done
    if shared and done.is_dir():
        raise UserError(
            f"the archive '{archive}' has another size or other times than the one that was unpacked for the other "
            "slices, so it has changed or is a copy; give all slices the same file"
        )
    kind = archive_kind(archive)
    if kind in ("rar", "7z", "tar.zst"):
        tool = {"rar": "unrar x", "7z": "7z x", "tar.zst": "tar --zstd -xf"}[kind]
        raise UserError(
            f"'{archive}' is a {kind} archive, which is not supported; unpack it ({tool} {archive.name}) and give "
            "the folder as --source"
        )
    if not kind:
        raise UserError(f"'{archive}' is neither a tar nor a zip archive; give an archive or a folder as --source")
    partial = work_dir / f".{FOLDER}.partial"
    try:
        for leftover in (work_dir / MARKER, partial, done):
            _remove(leftover)
        partial.mkdir(parents=True)
        writer = MemberWriter(archive, partial, limits or Limits(), stat.st_size)
        if kind == "zip":
            _unzip(archive, writer)
        else:
            _untar(archive, kind, writer)
        writer.link_all()
        sync_disk(partial)
        os.replace(partial, done)
        sync_folder(work_dir)
        rejected = [[member.name, member.why] for member in writer.rejected]
        write_json(work_dir / MARKER, {"archive": identity, "name": name or archive.name, "rejected": rejected})
    except _DAMAGE as error:
        raise UserError(
            f"the archive '{archive}' is damaged or cut short ({_reason(error)}); download it again"
        ) from error
    except OSError as error:
        raise UserError(f"cannot unpack '{archive}' into '{work_dir}': {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return done


def rejected_members(work_dir: Path) -> tuple[RejectedMember, ...]:
    """The members that `extract` left out, in the order of the archive."""
    found = _marker(work_dir).get("rejected")
    pairs = [pair for pair in found if isinstance(pair, list) and len(pair) == 2] if isinstance(found, list) else []
    return tuple(RejectedMember(str(name), str(why)) for name, why in pairs)


def archive_name(work_dir: str) -> str:
    """The archive that `extract` unpacked under `work_dir`, by its path in the source; empty if there is none."""
    try:
        marker = os.stat(f"{work_dir}/{MARKER}")
    except (OSError, ValueError):
        return ""
    return _archive_name(work_dir, marker.st_mtime_ns, marker.st_ino)


@lru_cache(maxsize=256)
def _archive_name(work_dir: str, mtime_ns: int, inode: int) -> str:
    marker = _marker(Path(work_dir))
    identity = marker.get("archive")
    name = marker.get("name") or (identity.get("name") if isinstance(identity, dict) else "")
    return name if isinstance(name, str) else ""


def as_member(path: str) -> str:
    """`ARCHIVE: MEMBER` of a file that `extract` unpacked; empty for any other."""
    cut = path.find(f"/{FOLDER}/")
    while cut >= 0:
        if archive := archive_name(path[:cut]):
            return member_name(archive, path[cut + len(FOLDER) + 2 :])
        cut = path.find(f"/{FOLDER}/", cut + 1)
    return ""


def _marker(work_dir: Path) -> dict[str, Any]:
    found = read_json(work_dir / MARKER)
    return found if isinstance(found, dict) else {}


def _reason(error: BaseException) -> str:
    return str(error).rstrip(".") or type(error).__name__


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _unzip(archive: Path, writer: MemberWriter) -> None:
    with zipfile.ZipFile(archive) as packed:
        for entry in packed.infolist():
            writer.count()
            name = entry.filename.replace("\\", "/")  # some Windows programs write them, against the standard
            path = writer.place(name)
            if path is None:
                continue
            writer.announced(entry.file_size)
            if entry.flag_bits & 1:
                raise UserError(f"the archive '{archive}' is encrypted; unpack it yourself and give the folder")
            kind = (entry.external_attr >> 28) if entry.create_system == 3 else 0
            if name.endswith("/"):
                writer.folder(path)
            elif kind == 0o12:
                target = packed.read(entry).decode("utf-8", "surrogateescape") if entry.file_size < 4096 else "/"
                writer.link(path, target, base=path.parent)
            elif kind in (0, 0o10):
                with packed.open(entry) as stream:
                    writer.file(path, stream)
            else:
                writer.refuse(f"has '{path}', which is a device or a pipe")


def _untar(archive: Path, kind: str, writer: MemberWriter) -> None:
    with _decompressed(archive, kind) as raw:
        stream = _Counted(raw, writer)
        with tarfile.open(
            fileobj=cast("IO[bytes]", stream), mode="r|", tarinfo=member_class(writer.limits, writer.refuse)
        ) as packed:
            for member in tar_members(packed):
                writer.count()
                writer.announced(member.size)
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
        while stream.read(BLOCK):  # to the end, so that the checksum of gzip is verified
            pass
        if not stream.ends_in_zeros:
            raise EOFError("no end mark")


def tar_members(packed: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the headers one after another, without keeping earlier ones.

    Raises:
        tarfile.ReadError: something follows the end mark, which tarfile leaves unread without a word.
    """
    while (member := packed.next()) is not None:
        packed.members = []  # type: ignore[attr-defined]  # typeshed leaves it out; it would hold every header
        yield member
    assert packed.fileobj is not None
    while block := packed.fileobj.read(BLOCK):
        if block.strip(b"\0"):
            raise tarfile.ReadError("more data after its end mark; archives are joined with tar -A, not with cat")


@contextmanager
def _decompressed(archive: Path, kind: str) -> Iterator[Readable]:
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


def member_class(limits: Limits, refuse: Callable[[str], NoReturn]) -> type[tarfile.TarInfo]:
    """A `TarInfo` that checks the size of an extended header before it reads it into memory.

    A header that is damaged is an error; tarfile takes it for the end, unless it is the first one.
    """

    class Member(tarfile.TarInfo):
        @classmethod
        def fromtarfile(cls, packed: tarfile.TarFile) -> Any:
            try:
                return super().fromtarfile(packed)
            except tarfile.HeaderError as error:
                kind = type(error).__name__  # which typeshed leaves out
                if kind == "EOFHeaderError" or not packed.offset:
                    raise
                raise tarfile.ReadError("no end mark" if kind == "EmptyHeaderError" else str(error)) from None

        def _block(self, count: int) -> int:
            if count < 0:  # the next header would be an earlier one, again and again
                raise tarfile.ReadError("a negative size")
            size: int = super()._block(count)  # type: ignore[misc]  # typeshed leaves it out
            return size

        def _proc_member(self, packed: tarfile.TarFile) -> Any:
            if self.type in _EXTENDED and self.size > limits.max_header:
                refuse(f"has a header of {self.size} bytes, over the limit of {limits.max_header}")
            return super()._proc_member(packed)  # type: ignore[misc]  # typeshed leaves it out

    return Member


class _Counted:
    """A stream that counts its bytes and keeps its last block: a complete tar ends in zeros, a cut one does not."""

    def __init__(self, stream: Readable, writer: MemberWriter) -> None:
        self._stream = stream
        self._writer = writer
        self._last = b""

    def read(self, size: int = -1, /) -> bytes:
        block = self._stream.read(size)
        self._writer.came_out(len(block))
        self._last = (self._last + block)[-_TAR_BLOCK:]
        return block

    @property
    def ends_in_zeros(self) -> bool:
        return len(self._last) == _TAR_BLOCK and not any(self._last)
