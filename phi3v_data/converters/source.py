"""Where a converter's data come from, whatever form they were given in.

folder          used as it lies
archive         tar, tar.gz, tar.bz2, tar.xz, zip: unpacked once into the working folder, with limits
Hub id          OWNER/NAME: downloaded through huggingface_hub, then one of the others
parquet         a folder (a snapshot of a Hub dataset) or a file: rows
save_to_disk    what `datasets` wrote: rows
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias

from phi3v_data.converters.archive import Limits, archive_kind, extract, is_junk
from phi3v_data.errors import NotFoundError, UserError

Kind: TypeAlias = Literal["folder", "archive", "parquet", "save_to_disk"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# Data sets of the Hub that are one archive among other files.
_HUB_ARCHIVES = {"sayakpaul/ucf101-subset": "UCF101_subset.tar.gz"}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the source: its POSIX path relative to the source, where it lies now, its size in bytes."""

    path: str
    file: Path
    size: int


class Source:
    """A source that has been found and can be listed.

    Attributes:
        kind: what it turned out to be.
        root: folder under which its files lie now (for an archive, where it was unpacked).
        spec: what the user wrote.
        hub_id: the Hub data set it was downloaded from, or empty.
    """

    def __init__(self, kind: Kind, root: Path, spec: str, *, hub_id: str = "") -> None:
        self.kind: Kind = kind
        self.root = root
        self.spec = spec
        self.hub_id = hub_id
        self._files: tuple[SourceFile, ...] | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def open(cls, spec: str | Path, *, work_dir: str | Path | None = None, limits: Limits | None = None) -> "Source":
        """Find out what `spec` is.

        Args:
            spec: a path, or the id of a Hub data set (`OWNER/NAME`); a path that exists wins.
            work_dir: where an archive is unpacked, kept for the next run; None: a temporary folder that goes with
                the returned object.

        Raises:
            NotFoundError: no such path, and no id.
            UserError: an archive that is damaged or unsafe, a download that failed.
        """
        text = str(spec)
        path = Path(text).expanduser()
        hub_id = ""
        try:
            there = path.exists()
        except OSError as error:
            raise UserError(f"cannot read the source '{text}': {error.strerror}") from error
        if not there:
            if not _HUB_ID.fullmatch(text):
                raise NotFoundError(
                    f"there is no '{text}'; give a folder, an archive, or the id of a Hub data set (OWNER/NAME)"
                )
            hub_id, path = text, download(text)
        if path.is_dir():
            return cls(_folder_kind(path), path, text, hub_id=hub_id)
        if path.suffix == ".parquet":
            return cls("parquet", path, text, hub_id=hub_id)
        if work_dir is not None:
            return cls("archive", extract(path, Path(work_dir), limits), text, hub_id=hub_id)
        temporary = tempfile.TemporaryDirectory(prefix="phi3v-", ignore_cleanup_errors=True)
        source = cls("archive", extract(path, Path(temporary.name), limits), text, hub_id=hub_id)
        source._temporary = temporary
        return source

    def describe(self) -> str:
        """What it is, for people: `archive UCF101_subset.tar.gz`."""
        if self.hub_id:
            return f"Hub data set {self.hub_id} ({self.kind})"
        return f"{self.kind} {Path(self.spec).name or self.spec}"

    def files(self, suffixes: Sequence[str] = ()) -> tuple[SourceFile, ...]:
        """All files, or those with one of these suffixes (`.avi`, in any case), by the bytes of their path.

        Hidden files and the junk of macOS are left out; links to folders are followed, but not in circles.

        Raises:
            UserError: a folder that cannot be read, or a name that is not UTF-8.
        """
        if self._files is None:
            found = list(_walk(self.root)) if self.root.is_dir() else [_single(self.root)]
            self._files = tuple(sorted(found, key=lambda entry: entry.path.encode()))
        if not suffixes:
            return self._files
        endings = tuple(suffix.lower() for suffix in suffixes)
        return tuple(entry for entry in self._files if entry.path.lower().endswith(endings))

    def splits(self) -> Mapping[str, int]:
        """Of a parquet or `save_to_disk` source: each split and its number of rows, in order.

        Raises:
            UserError: a source without rows, or without the extra `hub`.
        """
        from phi3v_data.converters.tables import open_tables

        return open_tables(self.kind, self.root).counts()

    def rows(self, split: str, start: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
        """Rows of one split, one at a time; images as `{"bytes": ..., "path": ...}`, not decoded.

        Raises:
            NotFoundError: no such split.
            UserError: a source without rows, or without the extra `hub`.
        """
        from phi3v_data.converters.tables import open_tables

        return open_tables(self.kind, self.root).rows(split, start, stop)


def download(hub_id: str) -> Path:
    """Fetch a Hub data set into the Hub's own cache: one archive where that is all we need, else a snapshot.

    Raises:
        UserError: huggingface_hub is missing, no network, no such data set, no access.
    """
    try:
        from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
        )
    except ImportError as error:
        raise UserError(
            f"downloading '{hub_id}' needs huggingface_hub (pip install 'phi3v[hub]'); or download it and give its "
            "path as --source"
        ) from error
    where = f"https://huggingface.co/datasets/{hub_id}"
    unreachable: tuple[type[Exception], ...] = (LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, *_network_errors())
    archive = _HUB_ARCHIVES.get(hub_id)
    if archive and isinstance(cached := try_to_load_from_cache(hub_id, archive, repo_type="dataset"), str):
        return Path(cached)
    try:
        HfApi().dataset_info(hub_id, timeout=10)  # one question, so that no network is known at once, not after retries
        if archive:
            return Path(hf_hub_download(hub_id, archive, repo_type="dataset"))
        return Path(snapshot_download(hub_id, repo_type="dataset"))
    except GatedRepoError as error:
        raise UserError(f"'{hub_id}' asks for consent: accept its terms at {where} and run `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise NotFoundError(
            f"there is no folder, archive or public Hub data set '{hub_id}'; check the spelling, or log in with "
            "`hf auth login`"
        ) from error
    except HfHubHTTPError as error:
        raise UserError(
            f"the Hub refuses to hand out '{hub_id}' ({type(error).__name__}); try again, or download it from {where} "
            "and give its path as --source"
        ) from error
    except unreachable as error:
        raise UserError(
            f"cannot reach the Hub to download '{hub_id}'; check the network, or download it from {where} elsewhere "
            "and give its path as --source"
        ) from error


def _network_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub lets through of the library it talks through: requests (OSErrors), httpx, now httpx2."""
    return tuple(sys.modules[name].HTTPError for name in ("httpx", "httpx2") if name in sys.modules)


def _folder_kind(path: Path) -> Kind:
    if (path / "dataset_dict.json").is_file() or ((path / "state.json").is_file() and any(path.glob("*.arrow"))):
        return "save_to_disk"
    if any(not is_junk(PurePosixPath(found.relative_to(path).as_posix())) for found in path.rglob("*.parquet")):
        return "parquet"
    return "folder"


def _single(file: Path) -> SourceFile:
    return SourceFile(file.name, file, file.stat().st_size)


def _walk(root: Path) -> Iterator[SourceFile]:
    """Every file below `root`, in no particular order."""
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
            elif entry.is_symlink():
                yield SourceFile(path, Path(entry.path), 0)  # it leads nowhere: listed, so that it can be rejected


def is_archive(path: Path) -> bool:
    """Whether a file is an archive that `Source.open` unpacks."""
    return archive_kind(path) in ("tar", "tar.gz", "tar.bz2", "tar.xz", "zip")
