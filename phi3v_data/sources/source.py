"""The source of a converter's data, in any form.

folder          used directly
archive         tar, tar.gz, tar.bz2, tar.xz, zip: unpacked once into the working folder, with limits
file            one table (CSV, TSV, JSON lines), used directly
bucket          s3://BUCKET/PREFIX, gs://: parquet is read by byte ranges, anything else is copied to the user's cache
Hub id          OWNER/NAME: parquet is read by byte ranges, anything else is downloaded and then one of the others
parquet         a folder (a snapshot of a Hub dataset) or a file: rows
save_to_disk    a folder written by `datasets`: rows
"""

import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.files import name_digest
from phi3v_data.remote.address import is_remote
from phi3v_data.sources.archive import INNER, extract, member_name, rejected_members
from phi3v_data.sources.bucket import open_bucket
from phi3v_data.sources.hub import RemoteFiles, fetch
from phi3v_data.sources.members import Limits, RejectedMember, is_junk
from phi3v_data.sources.reads import Roots, not_noting, note_folder
from phi3v_data.suffixes import ARCHIVE_SUFFIXES, SOURCE_IMAGE_SUFFIXES, is_table

if TYPE_CHECKING:
    from phi3v_data.sources.tables import RowLocation, Tables

Kind: TypeAlias = Literal["folder", "archive", "file", "parquet", "save_to_disk"]

_DOCUMENT = re.compile(
    r"(readme|licen[cs]e|copying|citation|notice|changelog|sha(1|256)sums?|md5sums?)\b.*|.*\.(md|rst|pdf|bib)"
    r"|dataset_infos\.json|phi3v\.json|thumbs\.db|desktop\.ini",
    re.IGNORECASE,
)
"""Files that accompany a dataset without being part of its data."""

SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods")
SAVE_AS_CSV = "save the sheet as CSV (UTF-8) and give that file"

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the source.

    Attributes:
        path: POSIX path relative to the source, as if each archive had been unpacked in place.
        file: where it is now.
        size: bytes.
        archive: path or name of the archive that it is a member of, or empty.
    """

    path: str
    file: Path
    size: int
    archive: str = ""

    @property
    def where(self) -> str:
        """Where a user finds it, for messages: the path in the source, or `ARCHIVE: MEMBER`."""
        return member_name(self.archive, self._member) if self.archive else self.path

    @property
    def _member(self) -> str:
        folder = self.archive.rpartition("/")[0]
        return self.path.removeprefix(f"{folder}/") if folder else self.path


class Source:
    """A source that has been found and can be listed.

    Attributes:
        kind: the detected type.
        root: absolute folder of its files (for an archive, where it was unpacked), or the file of a table.
        spec: the source as given by the user.
        hub_id: the Hub dataset that it was downloaded from, or empty.
        rejected: members of its archives that could not be unpacked, with the name of the archive.
    """

    def __init__(
        self,
        kind: Kind,
        root: Path,
        spec: str,
        *,
        hub_id: str = "",
        remote: RemoteFiles | None = None,
        work_dir: Path | None = None,
        shared: bool = False,
    ) -> None:
        self.kind: Kind = kind
        self.root = root
        self.spec = spec
        self.hub_id = hub_id
        self._remote = remote
        self._work_dir = work_dir
        self._shared = shared
        self._files: tuple[SourceFile, ...] | None = None
        self._all_files: tuple[SourceFile, ...] | None = None
        self._archive = ""  # name of the archive that the whole source is
        self._opened: Tables | None = None
        self.rejected: list[tuple[str, RejectedMember]] = []
        self._listed: set[str] | None = set()  # endings that were asked for; None: all files were
        self._unpacked: set[str] = set()  # archives within the source
        self._special: list[SourceFile] = []  # named pipes, devices, sockets: never opened
        self._used: set[str] | None = None  # paths of the files that `use` was told of
        if remote is None:
            note_folder(str(root if root.is_dir() else root.parent))

    def roots(self, unpacked: Path) -> Roots:
        """The folders to which names of files are relative; `unpacked` is the working folder of its archives."""
        if self._remote is not None:
            return Roots.of(self._remote.root, unpacked)
        return Roots.of(str(self.root if self.root.is_dir() else self.root.parent), unpacked)

    @classmethod
    def open(
        cls,
        spec: str | Path,
        *,
        work_dir: str | Path | None = None,
        limits: Limits | None = None,
        shared: bool = False,
    ) -> "Source":
        """Detect the type of `spec` and open it.

        Args:
            spec: a path, an address in a store, or the id of a Hub dataset (`OWNER/NAME`); an existing path has
                precedence over an id.
            work_dir: where archives are unpacked, kept for the next run; None: a temporary folder that is deleted
                with the returned object.
            shared: other processes read what is in `work_dir`: nothing in it is replaced.

        Raises:
            NotFoundError: neither an existing path nor an id.
            UserError: an archive is damaged or unsafe, or a download failed.
        """
        text = str(spec)
        path = Path(text).expanduser()
        hub_id = ""
        work = None if work_dir is None else Path(work_dir)
        if is_remote(text):
            taken = open_bucket(text)
            if isinstance(taken, RemoteFiles):
                return cls("parquet", Path(taken.root), text, remote=taken, work_dir=work, shared=shared)
            path = taken
        try:
            there = path.exists()
        except OSError as error:
            raise UserError(f"cannot read the source '{text}': {error.strerror}") from error
        if not there:
            if not HUB_ID.fullmatch(text):
                raise NotFoundError(
                    f"'{text}' does not exist; give a folder, an archive, or the id of a Hub dataset (OWNER/NAME)"
                )
            found = fetch(text)
            if isinstance(found, RemoteFiles):
                return cls("parquet", Path(found.root), text, hub_id=text, remote=found, work_dir=work, shared=shared)
            hub_id, path = text, found
        path = _absolute(path)
        if path.is_dir():
            return cls(_folder_kind(path), path, text, hub_id=hub_id, work_dir=work, shared=shared)
        if not path.is_file():
            raise UserError(f"the source '{text}' is a named pipe, a device or a socket; give a folder or a file")
        if path.suffix.lower() == ".parquet":
            return cls("parquet", path, text, hub_id=hub_id, work_dir=work, shared=shared)
        if path.suffix.lower() in SPREADSHEETS:
            raise UserError(f"the source '{text}' is a spreadsheet; {SAVE_AS_CSV}")
        if is_table(path.name):
            return cls("file", path, text, hub_id=hub_id, work_dir=work, shared=shared)
        source = cls("archive", path, text, hub_id=hub_id, work_dir=work, shared=shared)
        source.root = extract(path, source._work_folder(), limits, shared=shared)
        source._archive = path.name
        source._reject(path.name, source._work_folder())
        if (kind := _folder_kind(source.root)) != "folder":
            source.kind = kind
        return source

    def describe(self) -> str:
        """A description such as `archive UCF101_subset.tar.gz`."""
        if self.hub_id:
            return f"Hub dataset {self.hub_id} ({self.kind}{', streamed' if self._remote else ''})"
        return f"{self.kind} {Path(self.spec).name or self.spec}"

    def files(self, suffixes: Sequence[str] = ()) -> tuple[SourceFile, ...]:
        """All files, or those with one of these suffixes (`.avi`, in any case), by the bytes of their path.

        Hidden files and the junk of macOS are left out; links to folders are followed, but not in circles.

        Raises:
            UserError: a folder cannot be read, or a name is not UTF-8.
        """
        if self._files is None:
            found = list(_walk(self.root, self._special)) if self.root.is_dir() else [_single(self.root)]
            if self._archive:
                found = [replace(entry, archive=self._archive) for entry in found]
            self._files = tuple(sorted(found, key=lambda entry: entry.path.encode()))
        return self._select(self._files, suffixes)

    def all_files(self, suffixes: Sequence[str] = ()) -> tuple[SourceFile, ...]:
        """Like `files`, with the contents of the source's archives as if each had been unpacked in place.

        An archive next to a folder of its name (`img.tar.gz` next to `img/`) has already been unpacked and is ignored.

        Raises:
            UserError: as `files`, or an archive is damaged or unsafe.
        """
        if self._all_files is None:
            files = {entry.path: entry for entry in self._inner_files()}
            files |= {entry.path: entry for entry in self.files()}
            self._all_files = tuple(sorted(files.values(), key=lambda entry: entry.path.encode()))
        return self._select(self._all_files, suffixes)

    def _select(self, files: tuple[SourceFile, ...], suffixes: Sequence[str]) -> tuple[SourceFile, ...]:
        endings = tuple(suffix.lower() for suffix in suffixes)
        if not endings:
            self._listed = None
            return files
        if self._listed is not None:
            self._listed.update(endings)
        return tuple(entry for entry in files if entry.path.lower().endswith(endings))

    def use(self, files: Iterable[SourceFile]) -> None:
        """Declare the files that provide samples, labels or splits; all others then count as left out.

        If it is never called, a file counts as left out if no call of `files` or `all_files` requested it.
        """
        if self._used is None:
            self._used = set()
        self._used.update(entry.path for entry in files)

    def left_out(self, is_used: Callable[[Path], bool] = lambda file: False) -> tuple[SourceFile, ...]:
        """The files that no sample uses, as far as known (`is_used`, by the path here); documents do not count."""
        files = self._found()
        of_tables = self.kind == "parquet" and self._opened is not None and not self._remote
        if self._used is None and self._listed is None:
            return tuple(self._special)
        read = set(self._opened.files_read()) if self._opened is not None else set()
        endings = tuple((self._listed or set()) - {".parquet"}) if self._used is None else ()
        return tuple(
            entry
            for entry in sorted((*files, *self._special), key=lambda entry: entry.path.encode())
            if not _DOCUMENT.fullmatch(entry.path.rpartition("/")[2])
            and not (endings and entry.path.lower().endswith(endings) and entry not in self._special)
            and entry.path not in (self._used or ())
            and entry.path not in self._unpacked
            and str(entry.file) not in read
            and not (of_tables and entry.path.lower().endswith(SOURCE_IMAGE_SUFFIXES))  # rows may name them
            and not is_used(entry.file)
        )

    def names(self) -> Sequence[str]:
        """The paths of the files, as far as they were looked for."""
        return self._remote.files if self._remote else [entry.path for entry in self._found()]

    def _found(self) -> tuple[SourceFile, ...]:
        files = self._all_files or self._files or ()
        if not files and self.kind == "parquet" and self._opened is not None and self.root.is_dir():
            files = tuple(sorted(_walk(self.root), key=lambda entry: entry.path.encode()))
        return files

    def _inner_files(self) -> Iterator[SourceFile]:
        folders = {str(parent) for entry in self.files() for parent in PurePosixPath(entry.path).parents}
        for archive in self.files(ARCHIVE_SUFFIXES) if self.root.is_dir() else ():
            path = PurePosixPath(archive.path)
            suffix = max((end for end in ARCHIVE_SUFFIXES if path.name.lower().endswith(end)), key=len)
            self._unpacked.add(archive.path)
            if str(path.with_name(path.name[: -len(suffix)])) in folders:
                continue
            work = self._work_folder() / f"{INNER}{name_digest(archive.path, 16)}"
            with not_noting():
                root = extract(archive.file, work, name=archive.path, shared=self._shared)
            self._reject(archive.path, work)
            for entry in _walk(root):
                yield SourceFile(str(path.parent / entry.path), entry.file, entry.size, archive.path)

    def _reject(self, archive: str, work: Path) -> None:
        self.rejected += [(archive, member) for member in rejected_members(work)]

    def _work_folder(self) -> Path:
        if self._work_dir is None:
            self._work_dir = Path(tempfile.mkdtemp(prefix="phi3v-"))
            weakref.finalize(self, shutil.rmtree, self._work_dir, ignore_errors=True)
        return self._work_dir

    @property
    def has_rows(self) -> bool:
        """Whether `splits`, `rows` and `places` work: parquet or `save_to_disk`, here or on the Hub."""
        return self.kind in ("parquet", "save_to_disk")

    def split_names(self) -> Sequence[str]:
        """Of a source with rows: its splits in order; opens no file, where `splits` opens each to count.

        Raises:
            UserError: a source without rows, or without the extra `hub`.
        """
        return self._tables().names()

    def splits(self) -> Mapping[str, int]:
        """Of a source with rows: each split and its number of rows, in order.

        Raises:
            UserError: a source without rows, or without the extra `hub`.
        """
        return self._tables().counts()

    def columns(self, split: str) -> Sequence[str]:
        """Names of a split's columns.

        Raises:
            NotFoundError: no such split.
            UserError: a source without rows, or without the extra `hub`.
        """
        return self._tables().columns(split)

    def rows(
        self, split: str, start: int = 0, stop: int | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Rows of one split, one at a time; images as `{"bytes": ..., "path": ...}`, not decoded.

        Args:
            columns: read only these, so that a plan does not read images; columns that do not exist are left out.

        Raises:
            NotFoundError: no such split.
            UserError: a source without rows, or without the extra `hub`.
        """
        return self._tables().rows(split, start, stop, columns)

    def places(self, split: str) -> "Iterator[RowLocation]":
        """The location of each row of a split, in order, stored in an item for `convert` to `read()`.

        Raises:
            NotFoundError: no such split.
            UserError: a source without rows, or without the extra `hub`.
        """
        return self._tables().places(split)

    def _tables(self) -> "Tables":
        if self._opened is None:
            from phi3v_data.sources.tables import open_tables

            self._opened = open_tables(self.kind, self.root, self._remote)
        return self._opened


def _folder_kind(path: Path) -> Kind:
    if (path / "dataset_dict.json").is_file() or ((path / "state.json").is_file() and any(path.glob("*.arrow"))):
        return "save_to_disk"
    if any(not is_junk(PurePosixPath(found.relative_to(path).as_posix())) for found in path.rglob("*.parquet")):
        return "parquet"
    return "folder"


def _absolute(path: Path) -> Path:
    """The absolute path without `..`, so that nothing depends on how the source was written."""
    plain, real = os.path.abspath(path), os.path.realpath(path)
    return Path(plain if os.path.realpath(plain) == real else real)  # `link/..` is not the folder of `link`


def _single(file: Path) -> SourceFile:
    return SourceFile(file.name, file, file.stat().st_size)


def _walk(root: Path, special: list[SourceFile] | None = None) -> Iterator[SourceFile]:
    """Yield every file below `root`, in no particular order; pipes, devices and sockets go to `special`."""
    pending: list[tuple[str, str, tuple[str, ...]]] = [(str(root), "", (os.path.realpath(root),))]
    while pending:
        folder, prefix, above = pending.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise UserError(f"cannot list the folder '{folder}': {error.strerror}") from error
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            path = f"{prefix}{entry.name}"
            try:
                path.encode()
            except UnicodeEncodeError:
                raise UserError(f"the name {os.fsencode(entry.path)!r} is not UTF-8; rename it") from None
            if entry.is_dir():
                real = os.path.realpath(entry.path)
                if real not in above:
                    pending.append((entry.path, f"{path}/", (*above, real)))
            elif entry.is_file():
                yield SourceFile(path, Path(entry.path), entry.stat().st_size)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                yield SourceFile(path, Path(entry.path), 0)  # a broken link: listed, so that it can be rejected
            elif special is not None:
                special.append(SourceFile(path, Path(entry.path), 0))
