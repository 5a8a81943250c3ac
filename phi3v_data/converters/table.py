"""A plain table and a mapping file: data of one's own without code.

    phi3v-data convert table --source rows.csv --map map.yaml --out_dir out

`table_map` says what a mapping file holds, `table_rows` which tables are read. Pictures are paths relative to the
table, or to `--image_dir`, or embedded as `datasets` stores them.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from pydantic import Field, field_validator

from phi3v_data.converters.annotations import embedded_picture, once_a_source
from phi3v_data.converters.base import Converter, DatasetInfo, Draft, DraftImage, DraftTurn, Item, Options
from phi3v_data.converters.picture_files import stored_name
from phi3v_data.converters.source import Source
from phi3v_data.converters.table_map import TableMap, TurnMap, fill, line_of, parse_map, placeholders, read_map
from phi3v_data.converters.table_rows import Table, TableRow, open_table
from phi3v_data.errors import NotFoundError, Reject, UserError
from phi3v_data.files import unsafe_reason
from phi3v_data.media.formats import UnreadableImageError
from phi3v_data.media.images import read_image_file
from phi3v_data.messages import shown
from phi3v_data.schema import Scalar
from phi3v_data.splits import is_split_name
from phi3v_data.suffixes import SOURCE_IMAGE_SUFFIXES


class TableOptions(Options):
    """What can be chosen."""

    map: str = Field(description="The mapping file (YAML): which columns make up a sample.")
    table: str = Field("", description="Which file of the source is the table, where it holds several.")
    image_dir: str = Field("", exclude=True, description="Where the pictures' paths start, if not at the table.")

    @field_validator("map", mode="before")
    @classmethod
    def _read(cls, value: Any) -> str:
        """A file becomes its text, so that `dataset.json` says what was done and names no path of this machine."""
        if isinstance(value, Mapping):
            value = json.dumps(value, ensure_ascii=False)
        if not isinstance(value, str | Path):
            raise ValueError("give the path of a mapping file")
        text = str(value)
        if "\n" in text or text.lstrip().startswith("{"):
            parse_map(text)
            return text
        return read_map(value)


class TableConverter(Converter[TableOptions]):
    """Rows of CSV, JSON lines or parquet → samples, as a mapping file says."""

    name = "table"
    version = "1"

    def plan(self, source: Source, options: TableOptions) -> Iterable[Item]:
        mapping = _mapping(options.map)
        table = _open(source, options)
        _check_columns(mapping, table, options.map)
        root = _image_root(table, options)
        for row in table.rows:
            yield Item(
                split=_split(row, mapping),
                key=row.where,
                path=root,
                group=_quiet_text(row.cells, mapping.group),
                size=row.size,
                part=row.place.part if row.place else "",
                data={"row": row if row.place is None else replace(row, cells={})},
            )

    def convert(self, item: Item, options: TableOptions) -> Draft:
        row: TableRow = item.data["row"]
        if row.problem:
            raise Reject("row-invalid", f"{row.where} {row.problem}")
        return _RowReader(row, _mapping(options.map), item.path).draft()

    def describe(self, source: Source, options: TableOptions) -> DatasetInfo:
        mapping = _mapping(options.map)
        name = mapping.name or _open(source, options).name
        return DatasetInfo(
            name=name if is_split_name(name) else self.name,
            task=mapping.task,
            metrics=mapping.metrics,
            classes=mapping.classes,
            source=mapping.source,
            license=mapping.license,
            unlabelled=_unlabelled(source, options),
        )


class _RowReader:
    """One row as a draft."""

    def __init__(self, row: TableRow, mapping: TableMap, root: str) -> None:
        self.row = row
        self.mapping = mapping
        self.root = root
        self.cells: Mapping[str, Any] = row.cells if row.place is None else row.place.read()
        self.notes: list[str] = []

    def draft(self) -> Draft:
        mapping = self.mapping
        turns = [
            DraftTurn(
                self.text(turn.user),
                self.answer(turn),
                [self.picture(value, name) for name in turn.images for value in self.several(name)],
            )
            for turn in mapping.all_turns()
        ]
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
        return [each for each in values if each is not None and each != ""]

    def named(self, value: Any, name: str) -> str:
        """A value as text, through `values` of the map.

        Raises:
            Reject: `field-not-text`.
        """
        text = _as_text(value)
        if text is None:
            raise Reject("field-not-text", f"{self.row.where}: '{name}' holds a {type(value).__name__}, not a text")
        return self.mapping.values.get(name, {}).get(text, text)

    def text(self, template: str) -> str:
        """A template with the row's cells."""
        return fill(template, {name: self.named(self.cell(name), name) for name in placeholders(template)})

    def answer(self, turn: TurnMap) -> str:
        """The answer; empty where all cells that it is made of are."""
        names = list(placeholders(turn.assistant))
        if names and not any(self.named(self.cell(name), name).strip() for name in names):
            return ""
        return self.text(turn.assistant)

    def picture(self, value: Any, name: str) -> DraftImage:
        """A path's file, or an embedded picture.

        Raises:
            Reject: `image-missing`, `image-path-unsafe`, `image-unreadable`.
        """
        if isinstance(value, Mapping) and not value.get("bytes") and isinstance(value.get("path"), str):
            value = value["path"]
        if not isinstance(value, str):
            return DraftImage(embedded_picture(value, f"{self.row.where}: '{name}'"))
        if "://" in value[:10]:
            raise Reject("image-missing", f"{self.row.where}: '{name}' holds an address; download the pictures first")
        path = str(PurePosixPath(value.replace("\\", "/")))
        if why := unsafe_reason(path):
            raise Reject(
                "image-path-unsafe",
                f"{self.row.where}: '{name}' holds the path {shown(path)}, which {why}; write it "
                "relative to the table, or to --image_dir",
            )
        file = Path(self.root, path)
        try:
            data = read_image_file(file)
        except (FileNotFoundError, NotADirectoryError):
            raise Reject("image-missing", f"{self.row.where}: there is no picture {shown(path)}") from None
        except UnreadableImageError as error:
            raise Reject(error.code, f"{self.row.where}: {shown(path)} {error}") from None
        except PermissionError as error:
            raise Reject("image-unreadable", f"{self.row.where}: {shown(path)}: {error.strerror}") from None
        named = path.lower().endswith(SOURCE_IMAGE_SUFFIXES) and not any(
            piece.startswith(".") for piece in path.split("/")
        )
        stored, notes = stored_name(path, file) if named else ("", ())
        self.notes += notes
        return DraftImage(data, name=stored)


@lru_cache(maxsize=8)
def _mapping(text: str) -> TableMap:
    return parse_map(text)


def _open(source: Source, options: TableOptions) -> Table:
    mapping = _mapping(options.map)
    pictures = frozenset(name for turn in mapping.all_turns() for name in turn.images)
    return open_table(source, options.table, mapping.delimiter, pictures)


def _image_root(table: Table, options: TableOptions) -> str:
    if not options.image_dir:
        return table.root
    if not Path(options.image_dir).is_dir():
        raise NotFoundError(f"--image_dir '{options.image_dir}' is not a folder")
    return str(Path(options.image_dir).absolute())


def _check_columns(mapping: TableMap, table: Table, text: str) -> None:
    """Refuse a map that names a column which is not there.

    Raises:
        UserError: names the line of the map and what was probably meant.
    """
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for field, name in mapping.columns():
        if name in table.columns or name.partition(".")[0] in table.columns:
            continue
        near = get_close_matches(name, table.columns, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(table.columns)}"
        place = [int(piece) if piece.isdigit() else piece for piece in field.split(".")]
        raise UserError(f"--map, line {line_of(node, place)}, {field}: the table has no column '{name}'; {hint}")


def _split(row: TableRow, mapping: TableMap) -> str:
    named = _quiet_text(row.cells, mapping.split).strip()
    return mapping.values.get(mapping.split, {}).get(named, named) or row.split or "train"


@once_a_source
def _unlabelled(source: Source, options: TableOptions) -> tuple[str, ...]:
    """Splits in which no row has an answer to the last turn."""
    mapping = _mapping(options.map)
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
    """A cell as text, empty where it is not there or no text: for the plan, which rejects nothing."""
    try:
        return (_as_text(_lookup(cells, name)) or "") if name else ""
    except KeyError:
        return ""


def _as_text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value) if isinstance(value, str | int | float) else None


def _scalar(value: Any, name: str, row: TableRow) -> Scalar:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise Reject("field-not-text", f"{row.where}: '{name}' holds a {type(value).__name__}, which meta cannot hold")
