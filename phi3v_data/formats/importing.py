"""The converter of every chat format: rows of other tools' files become samples.

    phi3v-data import llava data.json --out_dir out

The plan reads each row once, for its location, its group and its digest; the workers read it again at its location.
A format is one `RowFormat`; nothing here depends on which.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import Any

import msgspec

from phi3v_data.converters.helpers.annotations import once_a_source
from phi3v_data.draft import Converter, DatasetInfo, Draft, Item
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.formats.base import RowFormat
from phi3v_data.formats.data_files import DataFile, find_data_files, set_name
from phi3v_data.formats.dataset_info import Entry
from phi3v_data.formats.drafts import MEDIA, make_draft, media_columns
from phi3v_data.formats.guess import differing, guess_from, nested
from phi3v_data.formats.images import ImagePlaces
from phi3v_data.formats.import_options import AUTO, ImportSettings
from phi3v_data.formats.plain import make_plain_rows
from phi3v_data.formats.plain_fields import PlainReader
from phi3v_data.formats.registry import all_formats, get_format
from phi3v_data.formats.row_block import read_row
from phi3v_data.formats.row_items import digest_of, group_of, row_items
from phi3v_data.formats.rows import RowReader, read_rows
from phi3v_data.formats.sharegpt import ShareGPT
from phi3v_data.formats.unread import unread_columns
from phi3v_data.messages import join_words, shown
from phi3v_data.sources.reads import not_noting
from phi3v_data.sources.source import Source
from phi3v_data.sources.tables import RowLocation

_decode = msgspec.json.Decoder().decode


class ImportRows(Converter[ImportSettings]):
    """Rows of another tool's chat format → samples."""

    name = "import"
    version = "1"

    def __init__(self) -> None:
        self._open: tuple[str, RowReader] | None = None  # the file of the last row, as rows come in order

    def plan(self, source: Source, options: ImportSettings) -> Iterable[Item]:
        root = _image_root(source, options)
        inner = {} if source.has_rows else _unpacked(source)
        for file, format_name in _formats(source, options):
            entry = file.entry.model_dump_json(exclude_defaults=True) if file.entry else ""
            row_format = make_format(format_name, options.format_file, entry)
            folder = "" if options.images_root else file.folder
            shared = {"format": format_name, "entry": entry, "root": root, "folder": folder}
            is_other_folder = options.images_root and not options.images_address
            outside = root if is_other_folder else ""  # what is read below an item's path is compared on resume
            _, plain = _make_readers(format_name, options.format_file, entry, options.model)
            yield from _items(source, file, row_format, outside, shared, inner, plain)

    def convert(self, item: Item, options: ImportSettings) -> Draft:
        data = item.data
        row = self._read(data["row"], data)
        row_format, plain = _make_readers(data["format"], options.format_file, data["entry"], options.model)
        places = ImagePlaces(
            data["root"], data["folder"], data.get("files", {}), Path(options.downloads), options.fetch
        )
        return make_draft(
            row,
            row_format,
            data["where"],
            places,
            key=item.key,
            merge_turns=options.merge_turns,
            model=options.model,
            plain=plain,
        )

    def _read(self, place: tuple[Any, ...] | RowLocation, data: Mapping[str, Any]) -> Any:
        """The value of a planned row; `place`: the fields of a `RowPlace`, or that of a row of a table.

        Raises:
            UserError: its file changed since it was planned.
        """
        if isinstance(place, RowLocation):
            return place.read()
        file, _, offset, length, name = place
        if self._open is None or self._open[0] != file:
            self._open = file, RowReader(file)
        with not_noting():  # the digest of the row stands for its file
            text = self._open[1].read(offset, length)
        try:
            value = _decode(text)  # equal keys were looked for by the plan, and the digest is that of what it read
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            found, _ = read_row(text, name)
            value = found[0] if found else None
        if "number" in data:
            value = value[data["number"]] if isinstance(value, list) and data["number"] < len(value) else None
        if digest_of(value) != data["digest"]:
            raise UserError(f"{data['where']} changed while it was imported; run the same command again")
        return value

    def describe(self, source: Source, options: ImportSettings) -> DatasetInfo:
        found = _formats(source, options)
        titles = dict.fromkeys(make_format(name, options.format_file, "").title for _, name in found)
        notes = []
        if options.format == AUTO:
            guessed = {name: get_format(name).title for _, name in found}
            notes = [
                f"read as format {name} ({title}); give another one instead of auto if that is wrong"
                for name, title in guessed.items()
            ]
        for file, name in found:
            entry = file.entry.model_dump_json(exclude_defaults=True) if file.entry else ""
            columns = unread_columns(_first_values(source, file), make_format(name, options.format_file, entry))
            if left := [shown(column, 40) for column in columns if column not in MEDIA]:  # rows with media are rejects
                notes.append(f"{shown(file.name)} has fields that are not imported: {join_words(left)}")
        return DatasetInfo(
            name=set_name([file for file, _ in found], source),
            task="chat",
            source=f"rows in the format of {', '.join(titles)}",
            notes=notes,
        )


@lru_cache(maxsize=64)
def make_format(name: str, file: str, entry: str) -> RowFormat:
    """The format of a name, with an entry of `dataset_info.json` as JSON."""
    if entry:
        return ShareGPT(entry=Entry.model_validate_json(entry))
    return get_format(file or name)()


@lru_cache(maxsize=64)
def _make_readers(name: str, file: str, entry: str, model: str) -> tuple[RowFormat, PlainReader | None]:
    """The format of a name as `make_format`, and the reader of its plain rows if it has one."""
    row_format = make_format(name, file, entry)
    return row_format, make_plain_rows(row_format, media_columns(row_format), model)


@once_a_source
def _formats(source: Source, options: ImportSettings) -> tuple[tuple[DataFile, str], ...]:
    """The data files and the format of each."""
    found = []
    for file in find_data_files(source, options.data):
        name = ShareGPT.name if file.entry is not None and options.format == AUTO else options.format
        if name == AUTO:
            name = guess_format(source, file)
        found.append((file if name == ShareGPT.name else replace(file, entry=None), name))
    return tuple(found)


def guess_format(source: Source, file: DataFile) -> str:
    """The format that most of the first rows have; of several, any if they read these rows alike.

    Raises:
        UserError: they have none, or may have several that read them differently.
    """
    guess = guess_from(_first_values(source, file))
    if guess.name:
        return guess.name
    if guess.others:
        if differing(guess.others, _first_values(source, file)):
            names = " or ".join(guess.others)
            said = f"{shown(file.name)} may be {names}, which read it differently"
            raise UserError(f"{said}: give the format instead of auto")
        return guess.others[0]
    if not guess.num_rows:
        raise UserError(f"{shown(file.name)} has no rows")
    if guess.within:
        raise nested(file.name, guess.within)
    if guess.own_rows:
        raise UserError(f"{shown(file.name)} has rows of a conversations directory already, which need no import")
    said = f"has rows of no known format in its first {guess.num_rows}{guess.fields}"
    raise UserError(f"{shown(file.name)} {said}; give the format instead of auto: {', '.join(all_formats())}")


def _first_values(source: Source, file: DataFile) -> Iterator[Any]:
    if file.file is None:
        return source.rows(file.name)
    return (row.value for row in read_rows(file.file.file) if row.value is not None)


def _items(
    source: Source,
    file: DataFile,
    row_format: RowFormat,
    path: str,
    shared: Mapping[str, Any],
    inner: Mapping[str, str],
    plain: PlainReader | None,
) -> Iterator[Item]:
    """The samples of one data file."""
    if file.file is None:
        groups = ["group"] if "group" in source.columns(file.name) else []
        values: Iterator[Mapping[str, Any]] = source.rows(file.name, columns=groups) if groups else repeat({})
        for index, (location, value) in enumerate(zip(source.places(file.name), values, strict=False)):
            key = f"{file.name}[{index}]"
            yield Item(
                split=file.split,
                key=key,
                path=path,
                group=group_of(value),
                bundle=location.bundle,
                data={"row": location, "where": key, **shared},
            )
        return
    yield from row_items(file.file.file, file, row_format, plain, path, shared, inner)


def _image_root(source: Source, options: ImportSettings) -> str:
    """The folder or address that no image path leads out of; empty for rows on the Hub."""
    if options.images_address:
        return options.images_address
    if options.images_root:
        if not Path(options.images_root).is_dir():
            raise NotFoundError(f"--images_root '{options.images_root}' is not a folder")
        return str(Path(options.images_root).absolute())
    if source.hub_id and not source.root.is_absolute():
        return ""
    return str(source.root if source.root.is_dir() else source.root.parent)


def _unpacked(source: Source) -> dict[str, str]:
    """The files of archives within the source: path as if unpacked in place -> where it is."""
    return {file.path: str(file.file) for file in source.all_files() if not file.file.is_relative_to(source.root)}
