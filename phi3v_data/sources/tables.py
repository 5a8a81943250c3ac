"""Rows of parquet files (local or on the Hub) and of folders written by `save_to_disk` of `datasets`.

Rows are read one at a time as plain Python values; an image is `{"bytes": ..., "path": ...}`, not decoded. Splits are
parsed from the file names (`data/train-00000-of-00002.parquet`, `docvqa/train.parquet`); if the files are in several
folders, like the configurations of the_cauldron, a split is called `FOLDER/SPLIT`.

A plan reads the columns that it needs (`rows(..., columns=[...])`) and gives each item its `RowLocation`; the worker
that converts the item calls `read()`. Files on the Hub are read by byte ranges, one row group at a time, never stored.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from phi3v_data.errors import NotFoundError, UserError, how_to_install
from phi3v_data.remote.address import is_remote
from phi3v_data.sources import bucket
from phi3v_data.sources.fingerprint import fingerprint
from phi3v_data.sources.hub import REMOTE, RemoteFiles, open_remote, remote_errors
from phi3v_data.sources.members import is_junk
from phi3v_data.sources.reads import folder_state, not_noting, note_row, note_table, state_of
from phi3v_data.splits import canonical_split, lone_split, split_sort_key

_SHARD = re.compile(r"-[0-9]{5,}-of-[0-9]{5,}(-[0-9a-f]+)?$")
_BATCH = 16  # rows read together if they are large, as images make them
_TEXT_BATCH = 1024
_SMALL_BATCH, _SMALL_BYTES = 256, 4 << 20
"""Rows read together if they are small, and at most how large they are."""


@dataclass(frozen=True, slots=True)
class RowLocation:
    """Location of a row; picklable and small, so that a plan can contain millions and any worker can read one.

    `file` is a parquet file (`hf://` for one on the Hub) or a `save_to_disk` folder, `chunk` a row group of the file or
    a split of the folder, `row` counts from 0 within the chunk.
    """

    file: str
    chunk: "int | str"
    row: int

    @property
    def bundle(self) -> str:
        """A key that is equal for rows to be read together: `Item.bundle`."""
        return f"{self.file}\0{self.chunk}" if isinstance(self.chunk, int) else ""

    @property
    def folder(self) -> Path | None:
        """The folder of the row's file, to which paths in cells are relative; None on the Hub or in a bucket."""
        if is_remote(self.file):
            return None
        return Path(self.file) if isinstance(self.chunk, str) else Path(self.file).parent

    def read(self) -> dict[str, Any]:
        """Read the whole row. Reading locations in order is fast; other orders work too.

        Raises:
            UserError: the file is gone or damaged, or the Hub cannot be reached.
        """
        row = self._row()
        kind = "group" if isinstance(self.chunk, int) else "split"
        note_row(self.file, f"{kind} {self.chunk}:{self.row}", lambda: fingerprint(row))
        return row

    @classmethod
    def of(cls, file: str, place: str) -> "RowLocation":
        """The location recorded by `note_row` as `place`."""
        where, _, row = place.rpartition(":")
        kind, _, chunk = where.partition(" ")
        return cls(file, int(chunk) if kind == "group" else chunk, int(row))

    def _row(self) -> dict[str, Any]:
        if isinstance(self.chunk, str):
            table = _saved(self.file)[self.chunk].with_format("arrow")
            row: dict[str, Any] = table[self.row : self.row + 1].to_pylist()[0]
            return row
        return _cursor(self.file).read(self.chunk, self.row)


class Tables(Protocol):
    """Splits and their rows."""

    def names(self) -> Sequence[str]:
        """The splits in order; opens no file."""

    def counts(self) -> Mapping[str, int]:
        """Each split and its number of rows, in order."""

    def columns(self, split: str) -> Sequence[str]:
        """Names of a split's columns."""

    def rows(
        self, split: str, start: int = 0, stop: int | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield rows `start` up to `stop` of a split, with these columns (None: all)."""

    def places(self, split: str) -> Iterator[RowLocation]:
        """The location of each row of a split, in order."""

    def files_read(self) -> Sequence[str]:
        """The files of the splits whose rows were requested."""


def open_tables(kind: str, root: Path, remote: RemoteFiles | None = None) -> Tables:
    """Open the rows of a source of kind `parquet` or `save_to_disk`; `remote`: parquet files on the Hub, not `root`.

    Raises:
        UserError: the kind is another one, or pyarrow or datasets is not installed.
    """
    if kind == "parquet":
        if remote is not None:
            return _Parquet(remote.root, _by_split(remote.files, lambda file: f"{remote.root}/{file}"))
        return _Parquet(str(root), _local_files(root))
    if kind == "save_to_disk":
        return _SavedTables(root)
    raise UserError(f"'{root}' is a {kind}, which has no rows; give parquet files or a save_to_disk folder")


class _Parquet:
    def __init__(self, root: str, files: Mapping[str, Sequence[str]]) -> None:
        self._root = root
        self._files = files
        self._read: set[str] = set()

    def names(self) -> Sequence[str]:
        return tuple(self._files)

    def counts(self) -> Mapping[str, int]:
        return {split: sum(_parquet(file).metadata.num_rows for file in files) for split, files in self._files.items()}

    def columns(self, split: str) -> Sequence[str]:
        return tuple(_parquet(self._of(split)[0]).schema_arrow.names)

    def rows(
        self, split: str, start: int = 0, stop: int | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        at = 0
        self._read.update(self._of(split))
        for path in self._of(split):
            with _told(path):
                file = _parquet(path)
                wanted = None if columns is None else [name for name in file.schema_arrow.names if name in columns]
                for group in range(file.num_row_groups):
                    length = file.metadata.row_group(group).num_rows
                    if at + length > start:
                        place = at
                        size = _rows_at_once(file, group) if columns is None else _TEXT_BATCH
                        for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=wanted):
                            low = max(0, start - place)
                            high = len(batch) if stop is None else min(len(batch), stop - place)
                            if high > low:
                                yield from batch.slice(low, high - low).to_pylist()
                            place += len(batch)
                    at += length
                    if stop is not None and at >= stop:
                        return

    def places(self, split: str) -> Iterator[RowLocation]:
        self._read.update(self._of(split))
        for path in self._of(split):
            if not is_remote(path):
                note_table(path)
            metadata = _parquet(path).metadata
            for group in range(metadata.num_row_groups):
                for row in range(metadata.row_group(group).num_rows):
                    yield RowLocation(path, group, row)

    def files_read(self) -> Sequence[str]:
        return tuple(self._read)

    def _of(self, split: str) -> Sequence[str]:
        if split not in self._files:
            raise NotFoundError(f"'{self._root}' has no split '{split}'; it has {', '.join(self._files)}")
        return self._files[split]


class _SavedTables:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._splits = _saved(str(root))

    def names(self) -> Sequence[str]:
        return tuple(sorted(self._splits, key=_order))

    def counts(self) -> Mapping[str, int]:
        return {split: self._splits[split].num_rows for split in self.names()}

    def columns(self, split: str) -> Sequence[str]:
        return tuple(self._of(split).column_names)

    def rows(
        self, split: str, start: int = 0, stop: int | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        table = self._of(split)
        if columns is not None:
            table = table.select_columns([name for name in table.column_names if name in columns])
        table = table.with_format("arrow")
        end = table.num_rows if stop is None else min(stop, table.num_rows)
        size = _BATCH if columns is None else _TEXT_BATCH
        for first in range(start, end, size):
            yield from table[first : min(first + size, end)].to_pylist()

    def places(self, split: str) -> Iterator[RowLocation]:
        for file in self._of(split).cache_files:
            note_table(file["filename"])
        for row in range(self._of(split).num_rows):
            yield RowLocation(str(self._root), split, row)

    def files_read(self) -> Sequence[str]:
        return ()

    def _of(self, split: str) -> Any:
        if split not in self._splits:
            raise NotFoundError(f"'{self._root}' has no split '{split}'; it has {', '.join(self.counts())}")
        return self._splits[split]


class _Cursor:
    """Reads rows of one parquet file; keeps its position, so that rows in order need one pass."""

    def __init__(self, file: str) -> None:
        self._path = file
        self._group = -1
        self._batches: Iterator[Any] = iter(())
        self._first = 0  # place of the batch in its row group
        self._batch: Any = ()

    def read(self, group: int, row: int) -> dict[str, Any]:
        with _told(self._path):
            if group != self._group or row < self._first:
                self._group, self._first, self._batch = group, 0, ()
                file = _parquet(self._path)
                self._batches = file.iter_batches(batch_size=_rows_at_once(file, group), row_groups=[group])
            while row >= self._first + len(self._batch):
                self._first += len(self._batch)
                self._batch = next(self._batches)
            found: dict[str, Any] = self._batch.slice(row - self._first, 1).to_pylist()[0]
            return found


def _rows_at_once(file: Any, group: int) -> int:
    """Rows of a row group to be read together: each batch takes time of its own, and all its rows are in memory."""
    found = file.metadata.row_group(group)
    each: int = found.total_byte_size // max(1, found.num_rows)
    return max(_BATCH, min(_SMALL_BATCH, _SMALL_BYTES // max(1, each)))


class _told:  # noqa: N801 - reads as a phrase: `with _told(path):`
    """Converts errors of reading a parquet file to a UserError."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, UserError | GeneratorExit):
            return
        if self._path.startswith(REMOTE) and isinstance(error, remote_errors()):
            raise UserError(
                f"the connection to the Hub failed while '{self._path}' was read ({type(error).__name__}); run the "
                "same command again to resume"
            ) from error
        if isinstance(error, StopIteration | OSError) or type(error).__module__.startswith("pyarrow"):
            raise UserError(f"'{self._path}' is damaged or not a parquet file; download it again") from error


def _cursor(file: str) -> _Cursor:
    return _cursor_in(file, state_of(file))


@lru_cache(maxsize=2)
def _cursor_in(file: str, state: str | None) -> _Cursor:
    return _Cursor(file)


def _parquet(path: str) -> Any:
    """Open a file; a local one is memory-mapped, so that a large row group is not copied."""
    return _opened(path, state_of(path))


@lru_cache(maxsize=4)
def _opened(path: str, state: str | None) -> Any:
    """Cached reader; `state` distinguishes the contents of a file before and after it was replaced."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"reading parquet files needs pyarrow: {how_to_install('hub')}") from error
    with _told(path):
        if path.startswith(REMOTE):
            return pyarrow.parquet.ParquetFile(open_remote(path), pre_buffer=True)
        if is_remote(path):
            return pyarrow.parquet.ParquetFile(bucket.open_remote(path), pre_buffer=True)
        return pyarrow.parquet.ParquetFile(path, memory_map=True)


def _saved(root: str) -> dict[str, Any]:
    """The splits of a `save_to_disk` folder, memory-mapped."""
    return _loaded(root, folder_state(root))


@lru_cache(maxsize=2)
def _loaded(root: str, state: str) -> dict[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"reading a save_to_disk folder needs datasets: {how_to_install('hub')}") from error
    try:
        with not_noting():  # it contains a fingerprint that changes with every save; the rows are compared
            found = datasets.load_from_disk(root)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"'{root}' cannot be loaded as a save_to_disk folder: {error}") from error
    return dict(found) if isinstance(found, datasets.DatasetDict) else {str(found.split or "train"): found}


def _order(split: str) -> tuple[str, tuple[int, str]]:
    folder, _, name = split.rpartition("/")
    return folder, split_sort_key(canonical_split(name))


def _local_files(root: Path) -> dict[str, Sequence[str]]:
    base = root if root.is_dir() else root.parent
    found = [root] if root.is_file() else list(root.rglob("*.parquet"))
    return _by_split([path.relative_to(base).as_posix() for path in found], lambda path: str(base / path))


def _by_split(names: Iterable[str], locate: Callable[[str], str]) -> dict[str, Sequence[str]]:
    """The parquet files of each split, by the bytes of their paths; `locate` returns the location of a path."""
    paths = sorted((PurePosixPath(name) for name in names), key=lambda path: str(path).encode())
    paths = [path for path in paths if not is_junk(path)]
    folders = {path.parent for path in paths}
    files: dict[str, list[str]] = {}
    for path in paths:
        stem = _SHARD.sub("", path.stem)
        name = stem if len(folders) == 1 else f"{path.parent.as_posix()}/{stem}"
        files.setdefault(name, []).append(locate(str(path)))
    if len(files) == 1:
        files = {lone_split(name): found for name, found in files.items()}
    return {split: tuple(files[split]) for split in sorted(files, key=_order)}
