"""Rows of parquet files (a snapshot of a Hub data set) and of what `datasets` saved with `save_to_disk`.

Rows come one at a time as plain Python values; an image stays `{"bytes": ..., "path": ...}`, not decoded. Splits are
read off the files' names (`data/train-00000-of-00002.parquet`, `docvqa/train.parquet`); where files lie in several
folders, as the configurations of the_cauldron do, a split is called `FOLDER/SPLIT`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from phi3v_data.converters.archive import is_junk
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.splits import canonical_split, split_sort_key

_SHARD = re.compile(r"-[0-9]{5,}-of-[0-9]{5,}(-[0-9a-f]+)?$")
_BATCH = 16  # rows read together: pictures make rows large


class Tables(Protocol):
    """Splits and their rows."""

    def counts(self) -> Mapping[str, int]:
        """Each split and its number of rows, in order."""

    def rows(self, split: str, start: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
        """Rows `start` up to `stop` of a split."""


def open_tables(kind: str, root: Path) -> Tables:
    """The rows of a source of kind `parquet` or `save_to_disk`.

    Raises:
        UserError: another kind, or pyarrow or datasets is not installed.
    """
    if kind == "parquet":
        return _Parquet(root)
    if kind == "save_to_disk":
        return _Saved(root)
    raise UserError(f"'{root}' is a {kind}, which has no rows; give parquet files or a save_to_disk folder")


class _Parquet:
    def __init__(self, root: Path) -> None:
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise UserError("reading parquet files needs pyarrow: pip install 'phi3v[hub]'") from error
        self._reader = pyarrow.parquet.ParquetFile
        self._broken = pyarrow.ArrowInvalid
        self._root = root
        self._files = _by_split(root)

    def counts(self) -> Mapping[str, int]:
        return {
            split: sum(self._open(file).metadata.num_rows for file in files) for split, files in self._files.items()
        }

    def rows(self, split: str, start: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
        if split not in self._files:
            raise NotFoundError(f"'{self._root}' has no split '{split}'; it has {', '.join(self._files)}")
        at = 0
        for path in self._files[split]:
            file = self._open(path)
            for group in range(file.num_row_groups):
                length = file.metadata.row_group(group).num_rows
                if at + length > start:
                    place = at
                    for batch in file.iter_batches(batch_size=_BATCH, row_groups=[group]):
                        low = max(0, start - place)
                        high = len(batch) if stop is None else min(len(batch), stop - place)
                        if high > low:
                            yield from batch.slice(low, high - low).to_pylist()
                        place += len(batch)
                at += length
                if stop is not None and at >= stop:
                    return

    def _open(self, path: Path) -> Any:
        try:
            return self._reader(path)
        except (OSError, self._broken) as error:
            raise UserError(f"'{path}' is damaged or no parquet file; download it again") from error


class _Saved:
    def __init__(self, root: Path) -> None:
        try:
            import datasets
        except ImportError as error:
            raise UserError("reading a save_to_disk folder needs datasets: pip install 'phi3v[hub]'") from error
        try:
            found = datasets.load_from_disk(str(root))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"'{root}' cannot be loaded as a save_to_disk folder: {error}") from error
        self._root = root
        self._splits = dict(found) if isinstance(found, datasets.DatasetDict) else {str(found.split or "train"): found}

    def counts(self) -> Mapping[str, int]:
        return {split: self._splits[split].num_rows for split in sorted(self._splits, key=_order)}

    def rows(self, split: str, start: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
        if split not in self._splits:
            raise NotFoundError(f"'{self._root}' has no split '{split}'; it has {', '.join(self.counts())}")
        table = self._splits[split].with_format("arrow")
        end = table.num_rows if stop is None else min(stop, table.num_rows)
        for first in range(start, end, _BATCH):
            yield from table[first : min(first + _BATCH, end)].to_pylist()


def _order(split: str) -> tuple[str, tuple[int, str]]:
    folder, _, name = split.rpartition("/")
    return folder, split_sort_key(canonical_split(name))


def _by_split(root: Path) -> dict[str, Sequence[Path]]:
    """The parquet files of each split, by the bytes of their paths."""
    base = root if root.is_dir() else root.parent
    found = [root] if root.is_file() else list(root.rglob("*.parquet"))
    paths = sorted(PurePosixPath(path.relative_to(base).as_posix()) for path in found)
    paths = sorted((path for path in paths if not is_junk(path)), key=lambda path: str(path).encode())
    folders = {path.parent for path in paths}
    files: dict[str, list[Path]] = {}
    for path in paths:
        stem = _SHARD.sub("", path.stem)
        name = stem if len(folders) == 1 else f"{path.parent.as_posix()}/{stem}"
        files.setdefault(name, []).append(base / path)
    return {split: files[split] for split in sorted(files, key=_order)}
