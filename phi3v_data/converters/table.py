"""A plain table and a mapping file: converts your own data without code.

    phi3v-data convert table --source rows.csv --map map.yaml --out_dir out

`table_map` describes mapping files, `table_rows` the supported tables. Images are paths relative to the table or to
`--image_dir`, embedded as `datasets` stores them, or base64 text. Without a mapping file the map is guessed from the
column names (`table_guess`).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, field_validator

from phi3v_data.converters.helpers.annotations import once_a_source
from phi3v_data.converters.helpers.borrowed_images import BorrowedImages
from phi3v_data.converters.helpers.cell_images import cell_image, cell_path, image_values
from phi3v_data.converters.helpers.table_guess import HELP, guess_map
from phi3v_data.converters.helpers.table_map import TableMap, TurnMap, fill, line_of, parse_map, placeholders, read_map
from phi3v_data.converters.helpers.table_rows import NamedFiles, Table, TableRow, open_table
from phi3v_data.converters.helpers.values import is_absent, scalar_text
from phi3v_data.draft import Converter, DatasetInfo, Draft, DraftImage, DraftTurn, Item, Options
from phi3v_data.errors import NotFoundError, Reject, UserError
from phi3v_data.messages import join_words, shown
from phi3v_data.schema import Scalar
from phi3v_data.sources.source import Source
from phi3v_data.splits import is_split_name


class TableOptions(Options):
    """Options of the converter."""

    map: str = Field(
        "",
        description="Mapping file (YAML) from columns to samples. Default: image, question, answer, or columns with "
        "other common names.",
    )
    table: str = Field("", description="The table file, if the source contains several.")
    image_dir: str = Field(
        "", exclude=True, description="Folder that image paths are relative to. Default: the folder of the table."
    )

    @field_validator("map", mode="before")
    @classmethod
    def _read(cls, value: Any) -> str:
        """Replace the file by its text, so that `dataset.json` records it without a path of this machine."""
        if isinstance(value, Mapping):
            value = json.dumps(value, ensure_ascii=False)
        if not isinstance(value, str | Path):
            raise ValueError("give the path of a mapping file")
        text = str(value)
        if not text:
            return text
        if "\n" in text or text.lstrip().startswith("{"):
            parse_map(text)
            return text
        return read_map(value)


class TableConverter(Converter[TableOptions]):
    """Rows of CSV, JSON lines or parquet → samples, according to a mapping file."""

    name = "table"
    version = "1"

    def plan(self, source: Source, options: TableOptions) -> Iterable[Item]:
        text = _map_text(source, options)
        mapping = _mapping(text)
        table = _open(source, options)
        _check_columns(mapping, table, text)
        root = _image_root(table, options)
        files = NamedFiles(source, table.file)
        columns = [name for turn in mapping.all_turns() for name in turn.images]
        borrowed = BorrowedImages.of(table.columns, columns, lambda: _open(source, options).rows)
        is_empty = True
        for row in map(borrowed.put_in, table.rows):
            is_empty = False
            named = [
                path
                for name in columns
                for value in image_values(row.cells.get(name), mapping.separator)
                if (path := cell_path(value))
            ]
            yield Item(
                split=_split(row, mapping),
                key=row.where,
                path=root,
                group=_quiet_text(row.cells, mapping.group),
                size=row.size,
                bundle=row.place.bundle if row.place else "",
                data={
                    "row": row if row.place is None else replace(row, cells={}),
                    "files": files.elsewhere(named),
                    "map": "" if options.map else text,
                },
            )
        if is_empty:
            name = table.file.where if table.file is not None else source.spec
            raise UserError(f"'{name}' has {'a header and ' if table.columns else ''}no rows")

    def convert(self, item: Item, options: TableOptions) -> Draft:
        row: TableRow = item.data["row"]
        if row.problem:
            raise Reject("row-invalid", f"{row.where} {row.problem}")
        mapping = _mapping(options.map or item.data["map"])
        return _RowReader(row, mapping, _folders(row, item.path, options), item.data["files"]).draft()

    def describe(self, source: Source, options: TableOptions) -> DatasetInfo:
        mapping = _mapping(_map_text(source, options))
        name = mapping.name or _open(source, options).name
        return DatasetInfo(
            name=name if is_split_name(name) else self.name,
            task=mapping.task,
            metrics=mapping.metrics,
            classes=mapping.classes,
            source=mapping.source,
            license=mapping.license,
            unlabelled=_unlabelled(source, options),
            notes=() if options.map else (_guess(source, options)[1],),
        )


class _RowReader:
    """One row as a draft."""

    def __init__(
        self, row: TableRow, mapping: TableMap, folders: Sequence[str | Path], files: Mapping[str, str]
    ) -> None:
        self.row = row
        self.mapping = mapping
        self.folders = folders
        self.files = files
        self.cells: Mapping[str, Any] = row.cells if row.place is None else row.place.read()
        self.notes: list[str] = []

    def draft(self) -> Draft:
        mapping = self.mapping
        turns = [DraftTurn(self.question(turn), self.answer(turn), self.images(turn)) for turn in mapping.all_turns()]
        meta: dict[str, Scalar] = {name: _scalar(self.cell(name), name, self.row) for name in mapping.meta}
        return Draft(
            turns=turns,
            system=self.text(mapping.system),
            answers=[self.named(value, name) for name in mapping.answers for value in self.several(name)],
            meta={"source_id": self.named(self.cell(mapping.id), mapping.id) if mapping.id else self.row.where, **meta},
            notes=self.notes,
        )

    def cell(self, name: str) -> Any:
        """A cell, or a field inside one (`query.en`).

        Raises:
            Reject: `field-missing`.
        """
        try:
            return _lookup(self.cells, name)
        except KeyError:
            raise Reject("field-missing", f"{self.row.where} has no '{name}'") from None

    def several(self, name: str) -> list[Any]:
        """A cell that may hold several values."""
        value = self.cell(name)
        if isinstance(value, str) and self.mapping.separator:
            value = [piece.strip() for piece in value.split(self.mapping.separator)]
        values = value if isinstance(value, list) else [value]
        return [each for each in values if not is_absent(each) and each != ""]

    def named(self, value: Any, name: str) -> str:
        """A value as text, replaced according to `values` of the map.

        Raises:
            Reject: `field-not-text`.
        """
        text = scalar_text(value)
        if text is None:
            raise Reject("field-not-text", f"{self.row.where}: '{name}' is a {type(value).__name__}, not text")
        return _replaced(text, value, name, self.mapping)

    def text(self, template: str) -> str:
        """Fill a template with the row's cells."""
        return fill(template, {name: self.named(self.cell(name), name) for name in placeholders(template)})

    def question(self, turn: TurnMap) -> str:
        """The user's text; adds a note if all its cells are empty."""
        names = list(placeholders(turn.user))
        if names and not any(self.named(self.cell(name), name).strip() for name in names):
            self.notes.append("question-cell-empty")
        return self.text(turn.user)

    def answer(self, turn: TurnMap) -> str:
        """The answer; empty if all its cells are empty. The first one of a cell with several answers."""
        cells = {name: self.named(self.first(name), name) for name in placeholders(turn.assistant)}
        if cells and not any(map(str.strip, cells.values())):
            return ""
        return fill(turn.assistant, cells)

    def first(self, name: str) -> Any:
        """The cell, or its first text if it contains several."""
        value = self.cell(name)
        return value[0] if isinstance(value, list) and value and isinstance(value[0], str) else value

    def images(self, turn: TurnMap) -> list[DraftImage]:
        """The images of a turn.

        Raises:
            Reject: `image-missing`, `image-path-unsafe`, `image-unreadable`.
        """
        found = []
        for name in turn.images:
            for value in image_values(self.cell(name), self.mapping.separator):
                image, notes = cell_image(value, f"{self.row.where}: '{name}'", self.folders, self.files)
                self.notes += notes
                found.append(image)
        if turn.images and not found:
            self.notes.append("image-cell-empty")
        return found


@lru_cache(maxsize=8)
def _mapping(text: str) -> TableMap:
    return parse_map(text)


def _map_text(source: Source, options: TableOptions) -> str:
    """The text of the mapping file, or of a map guessed from the column names."""
    return options.map or _guess(source, options)[0]


@once_a_source
def _guess(source: Source, options: TableOptions) -> tuple[str, str]:
    return guess_map(open_table(source, options.table, "", frozenset()).columns)


def _open(source: Source, options: TableOptions) -> Table:
    mapping = _mapping(_map_text(source, options))
    images = frozenset(name for turn in mapping.all_turns() for name in turn.images)
    return open_table(source, options.table, mapping.delimiter, images)


def _folders(row: TableRow, root: str, options: TableOptions) -> list[str | Path]:
    """The folders to which paths of a row are relative: --image_dir, else that of the row's file, else the source."""
    if row.place is None or options.image_dir or row.place.folder is None:
        return [root]
    return [row.place.folder, root]


def _image_root(table: Table, options: TableOptions) -> str:
    if not options.image_dir:
        return table.root
    if not Path(options.image_dir).is_dir():
        raise NotFoundError(f"--image_dir '{options.image_dir}' is not a folder")
    return str(Path(options.image_dir).absolute())


def _check_columns(mapping: TableMap, table: Table, text: str) -> None:
    """Reject a map with a column that the table does not have.

    Raises:
        UserError: naming the line of the map and the column that was probably meant.
    """
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for field, name in mapping.columns():
        if name in table.columns or name.partition(".")[0] in table.columns:
            continue
        near = get_close_matches(name, table.columns, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"it has {join_words(table.columns, 5, each=shown)}; {HELP}"
        place = [int(piece) if piece.isdigit() else piece for piece in field.split(".")]
        raise UserError(f"--map, line {line_of(node, place)}, {field}: the table has no column '{name}'; {hint}")


def _split(row: TableRow, mapping: TableMap) -> str:
    named = _quiet_text(row.cells, mapping.split).strip()
    return _replaced(named, named, mapping.split, mapping) or row.split or "train"


def _replaced(text: str, value: Any, name: str, mapping: TableMap) -> str:
    """A cell's text through `values` of the map, where a whole float may also be written as `3.0`."""
    known = mapping.values.get(name, {})
    return known.get(text, known.get(str(value), text))


@once_a_source
def _unlabelled(source: Source, options: TableOptions) -> tuple[str, ...]:
    """The splits in which no row has an answer to the last turn."""
    mapping = _mapping(_map_text(source, options))
    names = list(placeholders(mapping.all_turns()[-1].assistant))
    answered: dict[str, bool] = {}
    for row in _open(source, options).rows:
        split = _split(row, mapping)
        has = any(_quiet_text(row.cells, name).strip() for name in names)
        answered[split] = answered.get(split, False) or has
    return tuple(split for split, has in answered.items() if not has)


def _lookup(cells: Mapping[str, Any], name: str) -> Any:
    if name in cells:
        return cells[name]
    value: Any = cells
    for piece in name.split("."):
        if not isinstance(value, Mapping) or piece not in value:
            raise KeyError(name)
        value = value[piece]
    return value


def _quiet_text(cells: Mapping[str, Any], name: str) -> str:
    """A cell as text, empty if it is missing or not text; for the plan, which rejects nothing."""
    try:
        value = _lookup(cells, name) if name else None
        return scalar_text(value[0] if isinstance(value, list) and value else value) or ""
    except KeyError:
        return ""


def _scalar(value: Any, name: str, row: TableRow) -> Scalar:
    if is_absent(value):
        return None
    if isinstance(value, str | int | float | bool):
        return value
    if (text := scalar_text(value)) is not None:
        return text
    raise Reject("field-not-text", f"{row.where}: '{name}' is a {type(value).__name__}, which is not allowed in meta")
