"""Reads the directory from which a new set is made; if a row cannot be read, an error names the first one."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
from msgspec import UNSET

from phi3v_data.engine.base import Engine
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.files import read_regular, reading_hint, safe_component
from phi3v_data.jsonl import BOM, read_lines
from phi3v_data.media.integrity import UNREADABLE as UNREADABLE_IMAGE
from phi3v_data.schema import Manifest
from phi3v_data.splits import is_split_name, parse_file_name
from phi3v_data.validate.badrow import keep_valid_fields, load_row
from phi3v_data.validate.findings import Findings
from phi3v_data.validate.images import closed_images
from phi3v_data.validate.pixels import PixelIdentity
from phi3v_data.validate.receipt import load_images, tree_digest
from phi3v_data.validate.rowtypes import DECODER, Row
from phi3v_data.validate.survey import Survey
from phi3v_data.validate.table import RowTable
from phi3v_data.writing.publish import REJECTS

Progress: TypeAlias = Callable[[str, int, int | None], None]

UNREADABLE = (
    "manifest-invalid",
    "shard-missing",
    "file-encoding",
    "split-name",
    "json-syntax",
    "json-not-object",
    "invalid-utf8",
    "duplicate-key",
    "non-finite-number",
    "missing-field",
    "wrong-type",
    "unknown-field",
    "no-turns",
    "line-too-long",
)
"""Problems because of which rows cannot be read; rows with other problems are copied."""


@dataclass
class SourceSet:
    """A directory whose rows have been read; close it after use."""

    survey: Survey
    name: str

    @property
    def directory(self) -> Path:
        return self.survey.directory

    @property
    def manifest(self) -> Manifest | None:
        """`dataset.json`; None for a bare directory."""
        return self.survey.layout.manifest

    @property
    def table(self) -> RowTable:
        return self.survey.table

    def is_labelled(self, split: str) -> bool:
        """Whether a split has answers."""
        return self.survey.layout.is_labelled(split)

    def rows(self) -> Iterator[tuple[int, bytes]]:
        """Number in the table and line (without line end and byte order mark) of every row, in reading order."""
        yield from table_lines(self.table)

    def rejects(self) -> bytes:
        """Content of the set's `rejects.jsonl`; see `beside`."""
        return self.beside(REJECTS)

    def beside(self, name: str) -> bytes:
        """Content of a file beside the rows, empty if there is none.

        Raises:
            UserError: it cannot be read, is not a regular file, or is larger than `MAX_JSON`.
        """
        path = self.directory / name
        try:
            return read_regular(path)
        except (FileNotFoundError, NotADirectoryError):
            return b""
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable, or remove it") from None

    def identity(self) -> dict[str, Any]:
        """The state of the files on which the result depends."""
        state, tree = self.survey.state(), self.survey.tree
        # Linking an image into the result changes its change time, so that is not compared.
        return {"files": dict(state.files), "pictures": tree_digest(tree, tree.sizes, tree.mtimes, tree.inodes)}

    def pixel_identity(self, *, pixels: bool, engine: Engine) -> PixelIdentity:
        """Identities of the images: by path, or with `pixels` by their pixels."""
        self.survey.look(load_images(self.directory, self.survey.tree), pixels=pixels, engine=engine)
        refuse_closed_images(self.survey)
        return PixelIdentity(self.survey.tree, self.survey.images, pixels=pixels, engine=engine)

    def image_path(self, entry: int) -> str:
        """Path of an image."""
        return self.survey.tree.full_path(entry)

    def close(self) -> None:
        """Close the files opened to read single rows."""
        self.table.close()


def read_set(directory: Path, progress: Progress, *, mixed_names: bool = False) -> SourceSet:
    """Read all rows of a directory.

    `mixed_names`: allow files with several NAMEs in one split.

    Raises:
        UserError: a row or file cannot be read.
    """
    findings = Findings(1)
    survey = Survey(directory, findings, progress)
    refuse_no_files(survey)
    refuse_closed(survey)
    refused = [code for code in UNREADABLE if not (mixed_names and code == "split-name")]
    _refuse(survey, refused)
    survey.read_rows()
    try:
        refuse_closed(survey)
        _refuse(survey, refused)
        if not len(survey.table):
            raise UserError(f"{directory}: contains no rows")
    except UserError:
        survey.table.close()
        raise
    return SourceSet(survey, set_name(survey))


def refuse_no_files(survey: Survey) -> None:
    """Refuse a directory without splits.

    Raises:
        NotFoundError: it has none.
    """
    if not survey.files:
        raise NotFoundError(
            f"{survey.directory}: no split found; it contains no NAME_SPLIT.jsonl file, such as train.jsonl"
        )


def refuse_closed(survey: Survey) -> None:
    """Refuse a directory with files or folders that cannot be read, since the rest would look complete.

    Raises:
        UserError: naming the first such file or folder.
    """
    for name, reason in survey.closed:
        raise _closed(survey.directory / name, reason)


def refuse_closed_images(survey: Survey) -> None:
    """Refuse a directory with a used image that cannot be read, once images have been checked.

    Raises:
        UserError: naming the first such image.
    """
    for entry in np.flatnonzero(closed_images(survey.images) & survey.used).tolist():
        words = survey.images.details.get((entry, UNREADABLE_IMAGE), "")
        raise _closed(survey.tree.root / survey.tree.path(entry), words.rpartition(": ")[2])


def _closed(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: cannot be read ({reason}); {reading_hint(reason)}")


def _refuse(survey: Survey, codes: list[str]) -> None:
    for code in codes:
        if not survey.findings.counts[code]:
            continue
        found = next(each for each in survey.findings.listed if each.code == code)
        where = f"{survey.directory / found.file}:{found.line}" if found.line else str(survey.directory / found.file)
        raise UserError(
            f"{where}: {code}: {found.message}; `phi3v-data clean {survey.directory} OUT` writes a valid copy without "
            "rows that cannot be read"
        )


def set_name(survey: Survey) -> str:
    """Name of a set: from its manifest, else from its file names, else that of its folder."""
    if survey.layout.manifest is not None:
        return survey.layout.manifest.name
    names = {entry.name for _, file in survey.files if (entry := parse_file_name(file))}
    if len(names) == 1 and (name := names.pop()):
        return name
    name = safe_component(os.path.basename(os.path.abspath(survey.directory)))
    return name if is_split_name(name) else "dataset"


def decode_row(line: bytes) -> Row:
    """Decode a row; of a row with findings only the valid fields are kept."""
    try:
        return DECODER.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return keep_valid_fields(load_row(line))


def row_images(row: Row) -> list[str]:
    """The images of all turns, in order."""
    return [path for turn in row.conversations if turn.images is not UNSET for path in turn.images]


def table_lines(table: RowTable) -> Iterator[tuple[int, bytes]]:
    """Yield number and line of each row of a table."""
    bounds = [(first, end) for _, first, end in table.split_rows()]
    for file, (row, end) in zip(table.files, bounds, strict=True):
        if row == end:
            continue
        wanted = int(table.lines[row])
        for line in read_lines(table.directory / file):
            if line.number != wanted:
                continue
            yield row, line.data.removeprefix(BOM)
            row += 1
            if row == end:
                break
            wanted = int(table.lines[row])
        if row != end:
            raise UserError(f"{table.directory / file}: changed while it was read; run the same command again")
