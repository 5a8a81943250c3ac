"""Reads a conversations directory: `Dataset(DIR)["train"][i]` is a `Sample`.

Everything is loaded lazily. A split opens its index (`phi3v_data.line_index`) and reads single rows by their byte
offset, so it can have more rows than fit in memory, and every row takes the same time. Objects are safe in threads and
in forked workers (each read has its own position), and are pickled to spawned ones as a path and a name.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.files import UnsafeNameError, inside, read_regular, unreadable, unsafe_reason
from phi3v_data.line_index import FileState, LineIndex, open_index
from phi3v_data.line_reader import LineReader, changed
from phi3v_data.messages import counted, escaped, shown
from phi3v_data.remote.address import spelled
from phi3v_data.schema import FORMAT_VERSION, Manifest, Sample
from phi3v_data.splits import Splits, canonical_split, find_splits
from phi3v_data.unfinished import MANIFEST, UnfinishedError, refuse_interrupted, refuse_marker, refuse_unfinished
from phi3v_data.wrong_values import refusal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def read_manifest(directory: str | Path) -> Manifest | None:
    """`dataset.json` of a directory; None if absent (a bare directory).

    Raises:
        UnfinishedError: the set's files are still being moved into place.
        UserError: it is not in a format that this version reads.
    """
    refuse_unfinished(Path(directory))
    path = Path(directory) / MANIFEST
    try:
        text = read_regular(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error) from None
    return parse_manifest(text, path)


def parse_manifest(text: bytes, path: Path) -> Manifest:
    """Parse the text of the `dataset.json` at `path`.

    Raises:
        UnfinishedError: it is the marker of a set whose files are still being moved into place.
        UserError: it is not JSON, has another format, or an invalid field.
    """
    from pydantic import ValidationError
    from pydantic_core import from_json

    where = spelled(path)
    try:
        value = from_json(text)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    refuse_marker(path.parent, value)
    version = value.get("format") if isinstance(value, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            f"{where}: format {version} was written by a newer phi3v than this one, which reads format "
            f"{FORMAT_VERSION}; upgrade phi3v"
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"{where}: {first_error(error)}") from None


def first_error(error: Any) -> str:
    """The first finding of a pydantic ValidationError: `conversations[0].user is missing`."""
    detail = error.errors(include_url=False)[0]
    loc, name = detail["loc"], ""
    if loc[-1:] == ("[key]",):  # pydantic's marker for an invalid key instead of an invalid value
        loc, name = loc[:-2], f"the name {shown(loc[-2])}"
    parts = (f"[{part}]" if isinstance(part, int) else f".{escaped(part)[:60]}" for part in loc)
    field = "".join(parts).removeprefix(".")
    return refusal(": ".join(filter(None, (field, name))), detail)


def list_directory(directory: Path) -> list[str]:
    """The sorted names in a conversations directory.

    Raises:
        NotFoundError: there is no such directory, or it is a file.
        UserError: it cannot be read.
    """
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        raise NotFoundError(f"{directory}: no such directory") from None
    except NotADirectoryError:
        if directory.is_file():
            own = directory.name.endswith(".jsonl") or directory.name == MANIFEST
            import_it = f"`phi3v-data import auto {directory} --out_dir DIR`"
            if own:
                hint = f"give the directory that contains it: {directory.parent}"
                hint += "" if directory.name == MANIFEST else f"; rows of another tool: {import_it}"
            elif directory.name.lower().endswith(
                (".json", ".ndjson", ".json.gz", ".jsonl.gz", ".ndjson.gz", ".parquet")
            ):
                hint = f"not a conversations directory; {import_it} makes one of rows of another tool"
            else:
                hint = "not a conversations directory; `phi3v-data convert` makes one, see `phi3v-data convert --help`"
            raise NotFoundError(f"{directory}: is a file{';' if own else ','} {hint}") from None
        raise NotFoundError(f"{directory}: no such directory") from None
    except OSError as error:
        raise unreadable(directory, error) from None


class Dataset(Mapping[str, "Split"]):
    """A conversations directory, complete or bare: a mapping of split names to `Split`.

    Args:
        directory: DIR, which contains `images/` and `NAME_SPLIT.jsonl`; `open_dataset` also reads exports.
        strict: reject a split whose files are incomplete or inconsistent; False reads what exists, for tools that
            report on broken directories.

    Raises:
        NotFoundError: no such directory, or no JSONL file in it.
        UnfinishedError: the set's files are still being moved into place, or its conversion was interrupted.
        UserError: the directory cannot be read or, when strict, its `dataset.json`.
    """

    def __init__(self, directory: str | Path, *, strict: bool = True) -> None:
        self.directory = Path(directory)
        self.strict = strict
        names = list_directory(self.directory)
        self.manifest = read_manifest(self.directory) if strict else _read_manifest_if_valid(self.directory)
        listed = {split: tuple(info.files) for split, info in self.manifest.splits.items()} if self.manifest else None
        self._found: Splits = find_splits(names, listed)
        if not self._found.splits:
            refuse_interrupted(self.directory)
            reason = (
                f"{', '.join(self._found.unnamed)} do not end in the name of a split"
                if self._found.unnamed
                else "it contains no NAME_SPLIT.jsonl file, such as train.jsonl"
            )
            shards = next((name for name in names if name.endswith((".tar", ".parquet")) or name == "phi3v.json"), "")
            hint = f"; with {shards} it may be an export, which `phi3v_data.open_dataset` reads" if shards else ""
            raise NotFoundError(f"{self.directory}: no split found; {reason}{hint}")
        self._opened: dict[str, Split] = {}
        self._pickled: Mapping[str, tuple[FileState, ...]] = {}  # of the splits that were open before pickling

    def __getitem__(self, split: str) -> "Split":
        if split not in self._found.splits:
            usual = canonical_split(split)  # val for validation
            names = list(self._found.splits)
            near = [usual] if usual in names else get_close_matches(split, names, n=1)
            raise NotFoundError(
                f"{self.directory}: no split {split!r}; it has {', '.join(self._found.splits)}"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
        if split not in self._opened:
            files = self._found.splits[split]
            if self.strict and files.missing:
                raise UserError(f"{self.directory}: split {split!r} lacks {', '.join(files.missing)}")
            if self.strict and files.conflicts:
                raise UserError(f"{self.directory}: {'; '.join(files.conflicts)}")
            opened = Split(self.directory, split, files.files)
            opened.require(self._pickled.get(split))
            self._opened[split] = opened
        return self._opened[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found.splits)

    def __len__(self) -> int:
        return len(self._found.splits)

    def __contains__(self, split: object) -> bool:
        return split in self._found.splits

    def __reduce__(self) -> tuple[Any, ...]:
        states = {name: split.states for name, split in self._opened.items()}
        return _make_dataset, (self.directory, self.strict, {**self._pickled, **states})

    def __repr__(self) -> str:
        return f"Dataset({str(self.directory)!r}: {', '.join(self)})"

    @property
    def files(self) -> dict[str, tuple[str, ...]]:
        """File names of each split, in reading order; opens none of them."""
        return {split: found.files for split, found in self._found.splits.items()}

    def image_path(self, name: str) -> Path:
        """Path of an image of a turn; see `Split.image_path`."""
        return image_path(self.directory, name)

    def image_bytes(self, name: str) -> bytes:
        """Bytes of an image of a turn, in a file or in a shard; see `Split.image_bytes`."""
        return image_bytes(self.directory, name)


def _make_dataset(directory: Path, strict: bool, states: Mapping[str, tuple[FileState, ...]]) -> Dataset:
    dataset = Dataset(directory, strict=strict)
    dataset._pickled = states
    return dataset


def _read_manifest_if_valid(directory: Path) -> Manifest | None:
    try:
        return read_manifest(directory)
    except UnfinishedError:
        raise
    except UserError:
        return None


def image_path(directory: Path, name: str) -> Path:
    """Return `DIR/images/name`; absolute paths, `..`, backslashes and links that lead outside are rejected.

    Raises:
        UserError: the name is not a plain POSIX path below `images/`.
    """
    try:
        return inside(directory / "images", name, link_ok=True)
    except UnsafeNameError:
        reason = unsafe_reason(name) or "leads outside through a link"
        raise UserError(
            f"{directory}: image path {shown(name)} {reason}; `phi3v-data validate {directory}` lists all such rows"
        ) from None


def image_bytes(directory: Path, name: str) -> bytes:
    """The bytes of `DIR/images/name`: those of the file, or of the image in a shard of the set.

    Raises:
        UserError: the name is not a plain POSIX path below `images/`, or the image cannot be read.
    """
    from phi3v_data.media.formats import UnreadableImageError
    from phi3v_data.media.images import read_image_file

    path = image_path(directory, name)
    try:
        return read_image_file(path)
    except UnreadableImageError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise unreadable(path, error) from None


class Split(Sequence[Sample]):
    """The rows of one split in order: an integer (also negative) gives a `Sample`, a slice a `Split` without a copy."""

    def __init__(self, directory: Path, name: str, files: Sequence[str]) -> None:
        self.directory = directory
        self.name = name
        self.files = tuple(files)
        self._index: LineIndex = open_index(directory, name, self.files)
        self._rows = range(len(self._index))
        self._reader = LineReader(directory, self._index)

    @property
    def states(self) -> tuple[FileState, ...]:
        """The state of each of its files."""
        return self._index.files

    def require(self, states: tuple[FileState, ...] | None) -> None:
        """Check that the files are still in these states; None: any state is accepted.

        Raises:
            UserError: a file was changed or replaced.
        """
        if states is None:
            return
        for state, now in zip_longest(states, self.states):
            if state is None or now is None or (state.name, *state.content) != (now.name, *now.content):
                raise changed(self.directory / (state or now).name)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "Split": ...
    def __getitem__(self, index: int | slice) -> "Sample | Split":
        if isinstance(index, slice):
            part = object.__new__(Split)
            part.__dict__.update(self.__dict__, _rows=self._rows[index])
            return part
        return self._sample(index, self.raw(index))

    def _sample(self, index: int, line: bytes) -> Sample:
        from pydantic import ValidationError

        try:
            return Sample.from_json(line)
        except ValidationError as error:
            file, number = self.location(index)
            raise UserError(
                f"{self.directory / file}:{number}: not a sample ({first_error(error)}); "
                f"`phi3v-data validate {self.directory}` lists all such rows"
            ) from None

    def __iter__(self) -> Iterator[Sample]:
        return (self._sample(index, line) for index, line in enumerate(self._reader.lines(self._rows)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_split, (self.directory, self.name, self.files, self._rows, self.states)

    def __repr__(self) -> str:
        return f"Split({self.name!r}, {counted(len(self), 'row')}, {str(self.directory)!r})"

    def raw(self, index: int) -> bytes:
        """The bytes of a row as in the file, without line end and byte order mark.

        Raises:
            IndexError: no such row.
            UserError: the file cannot be read, or was changed since the split was opened.
        """
        return self._reader.line(self._row(index))

    def row_bytes(self) -> "NDArray[np.int64]":
        """Bytes of each row in the file, from its index; no row is read."""
        import numpy as np

        rows = np.arange(self._rows.start, self._rows.stop, self._rows.step)
        return self._index.row_bytes()[rows]

    def location(self, index: int) -> tuple[str, int]:
        """File name under DIR and 1-based line number of a row. Reads the file up to that row."""
        file, start, _ = self._index.locate(self._row(index))
        line, position = 1, 0
        while position < start:
            piece = self._reader.read(file, position, min(1 << 20, start - position))
            if not piece:
                break
            line += piece.count(b"\n")
            position += len(piece)
        return self.files[file], line

    def image_path(self, name: str) -> Path:
        """`DIR/images/name`; of a set with images in shards no file is there: `image_bytes` reads both.

        Raises:
            UserError: the name is not a plain POSIX path below `images/`.
        """
        return image_path(self.directory, name)

    def image_bytes(self, name: str) -> bytes:
        """The bytes of an image, encoded as they were stored, in a file or in a shard.

        Raises:
            UserError: the name is not a plain POSIX path below `images/`, or the image cannot be read.
        """
        return image_bytes(self.directory, name)

    def _row(self, index: int) -> int:
        """The number of a row in the files."""
        try:
            return self._rows[index]
        except IndexError:
            raise IndexError(f"row {index} of split {self.name!r}, which has {counted(len(self), 'row')}") from None


def _make_split(directory: Path, name: str, files: Sequence[str], rows: range, states: tuple[FileState, ...]) -> Split:
    """Open a split again in another process."""
    split = Split(directory, name, files)
    split.require(states)
    split._rows = rows
    return split
