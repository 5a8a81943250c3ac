"""Reads rows of tables with their location: CSV, TSV, JSON lines, a JSON list, parquet, `save_to_disk`."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import PurePosixPath
from posixpath import normpath
from typing import Any, TextIO

from phi3v_data.converters.helpers.annotations import NOT_UTF8, read_json, read_json_lines
from phi3v_data.encodings import open_utf8
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.messages import join_words
from phi3v_data.sources.source import SAVE_AS_CSV, SPREADSHEETS, Source, SourceFile
from phi3v_data.sources.tables import RowLocation
from phi3v_data.suffixes import TABLE_SUFFIXES, is_table, table_suffix

MAX_CELL = 1 << 26
LOOKED_AT = 1000
"""Number of rows of a JSON table whose fields define its columns."""


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row: its location (`rows.csv:12`), and its cells or a problem; embedded images are read later from `place`."""

    where: str
    cells: Mapping[str, Any]
    size: int = 0
    split: str = ""  # the source's own, of a source with rows
    place: RowLocation | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a source; `root` is the folder to which its paths are relative."""

    name: str
    columns: tuple[str, ...]
    rows: Iterator[TableRow] = field(repr=False)
    root: str = ""
    file: SourceFile | None = None  # of a plain table


class NamedFiles:
    """The files of a source by the paths in its table; files that are looked up count as used."""

    def __init__(self, source: Source, table: SourceFile | None) -> None:
        self._source = source
        self._folder = str(PurePosixPath(table.path).parent) if table else ""
        self._files: dict[str, SourceFile] = {}
        if table is not None:
            source.use([table])
            self._files = {file.path: file for file in source.all_files()}

    def elsewhere(self, paths: Iterable[str]) -> dict[str, str]:
        """Locations of files that are not below the table's folder, but in an unpacked archive next to it."""
        found = {}
        for path in paths:
            file = self._files.get(normpath(f"{self._folder}/{path}"))
            if file is not None:
                self._source.use([file])
                if not file.file.is_relative_to(self._source.root):
                    found[path] = str(file.file)
        return found


def open_table(source: Source, file: str, delimiter: str, images: frozenset[str]) -> Table:
    """Find the table in a source.

    Args:
        file: the table file, if the source contains several.
        images: columns that are not read by the plan, as they may contain embedded images.

    Raises:
        UserError: there is no table, or there are several and none was given.
    """
    if source.has_rows:
        return _embedded(source, images)
    found = _find(source, file)
    path = PurePosixPath(found.path)
    root = str(found.file.parent.absolute())
    suffix = table_suffix(path.name)
    name = path.name[: path.name.lower().rindex(suffix)]
    if suffix in (".csv", ".tsv"):
        columns, rows = _csv(found, delimiter or _delimiter(found, "\t" if suffix == ".tsv" else ","))
    else:
        columns, rows = _peek(_json(found) if suffix == ".json" else _json_lines(found))
    return Table(name, columns, rows, root, found)


def _find(source: Source, file: str) -> SourceFile:
    tables = tuple(found for found in source.all_files() if is_table(found.path))
    if file:
        for table in tables:
            if table.path == file:
                return table
        raise NotFoundError(f"--table: '{source.spec}' has no '{file}'")
    if len(tables) == 1:
        return tables[0]
    if not tables:
        if sheet := next((found.where for found in source.all_files(SPREADSHEETS)), ""):
            raise UserError(f"'{source.spec}' contains no table but the spreadsheet '{sheet}'; {SAVE_AS_CSV}")
        raise NotFoundError(f"'{source.spec}' contains no table ({', '.join(TABLE_SUFFIXES)}, .parquet)")
    names = join_words(tables, 8, each=lambda table: table.path)
    raise UserError(f"'{source.spec}' contains several tables; choose one with --table: {names}")


def _csv(file: SourceFile, delimiter: str) -> tuple[tuple[str, ...], Iterator[TableRow]]:
    csv.field_size_limit(MAX_CELL)
    name = PurePosixPath(file.path).name
    with _opened(file) as lines:
        header = _header(csv.reader(lines, delimiter=delimiter, strict=True), name)

    def rows() -> Iterator[TableRow]:
        with _opened(file) as lines:
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            next(reader)
            before = reader.line_num
            try:
                for cells in reader:
                    where, before = f"{name}:{before + 1}", reader.line_num
                    if cells:
                        yield _csv_row(where, cells, header)
            except csv.Error as error:
                raise UserError(_not_csv(name, before + 1, reader.line_num, error)) from error

    return header, rows()


def _not_csv(name: str, first: int, last: int, error: csv.Error) -> str:
    """The sentence on a row of lines `first` to `last`; a quote that is not closed takes in the lines after it."""
    if "end of data" in str(error):
        return f"{name}:{first} is not CSV: a quote that opens in this row is never closed"
    row = f"; its row begins in line {first}, maybe with a quote that is not closed there" if first < last else ""
    return f"{name}:{last} is not CSV: {error}{row}"


def _opened(file: SourceFile) -> TextIO:
    return io.TextIOWrapper(open_utf8(file.file), encoding="utf-8-sig", errors="surrogateescape", newline="")


def _delimiter(file: SourceFile, usual: str) -> str:
    """The separator of the column names in the first line: the default of such a file, or another common one."""
    with _opened(file) as lines:
        line = lines.readline(MAX_CELL)
    counts: dict[str, int] = {}
    for delimiter in (usual, ",", ";", "\t", "|"):
        try:
            counts.setdefault(delimiter, len(next(csv.reader([line], delimiter=delimiter), [])))
        except csv.Error:
            continue
    if counts.get(usual, 0) > 1:
        return usual
    return max(counts, key=lambda delimiter: counts[delimiter], default=usual)


def _header(reader: Iterator[list[str]], name: str) -> tuple[str, ...]:
    try:
        header = tuple(column.strip() for column in next(reader, ()))
    except csv.Error as error:
        raise UserError(_not_csv(name, 1, 1, error)) from error
    if any("\ud800" <= char <= "\udfff" for column in header for char in column):
        raise UserError(f"{name}:1 is not UTF-8; save the file again as UTF-8")
    if not header:
        raise UserError(f"{name} is empty; the first line must contain the column names")
    if twice := sorted({column for column in header if header.count(column) > 1}):
        raise UserError(f"{name} has two columns '{twice[0]}'; rename one")
    return header


def _csv_row(where: str, cells: list[str], header: tuple[str, ...]) -> TableRow:
    size = sum(map(len, cells))
    if len(cells) != len(header):
        return TableRow(where, {}, size, problem=f"has {len(cells)} cells, the header {len(header)}")
    if any("\udc80" <= character <= "\udcff" for cell in cells for character in cell):
        return TableRow(where, {}, size, problem=NOT_UTF8)
    return TableRow(where, dict(zip(header, cells, strict=True)), size)


def _json_lines(file: SourceFile) -> Iterator[TableRow]:
    name = PurePosixPath(file.path).name
    for line in read_json_lines(file):
        yield TableRow(f"{name}:{line.number}", line.value, line.size, problem=line.problem)


def _json(file: SourceFile) -> Iterator[TableRow]:
    name = PurePosixPath(file.path).name
    content = read_json(file)
    if not isinstance(content, list):
        raise UserError(
            f"'{file.where}' is not a table: it must be a list of objects, or JSON lines with the extension .jsonl"
        )
    for index, row in enumerate(content):
        good = isinstance(row, dict)
        problem = "" if good else "is not a JSON object"
        yield TableRow(f"{name}[{index}]", row if good else {}, len(json.dumps(row)), problem=problem)


def _peek(rows: Iterator[TableRow]) -> tuple[tuple[str, ...], Iterator[TableRow]]:
    first = list(islice(rows, LOOKED_AT))
    return tuple(dict.fromkeys(name for row in first for name in row.cells)), chain(first, rows)


def _embedded(source: Source, images: frozenset[str]) -> Table:
    splits = list(source.split_names())
    columns = tuple(dict.fromkeys(name for split in splits for name in source.columns(split)))
    text = [name for name in columns if name not in images]

    def rows() -> Iterator[TableRow]:
        for split in splits:
            for index, (place, row) in enumerate(
                zip(source.places(split), source.rows(split, columns=text), strict=True)
            ):
                size = sum(len(value) for value in row.values() if isinstance(value, str))
                yield TableRow(f"{split}[{index}]", row, size, split.rpartition("/")[2], place)

    folder = source.root if source.root.is_dir() else source.root.parent
    return Table("", columns, rows(), str(folder.absolute()))
