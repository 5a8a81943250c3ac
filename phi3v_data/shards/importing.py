"""Imports WebDataset shards: `phi3v-data import webdataset SRC`, for a folder of them or a single one.

    train-000000.tar:  000017.json  000017.0.jpg  000017.1.jpg

The JSON of a sample is a row in any chat format. Its images are members of the sample by their names, data URLs, or
URLs with `--fetch`. A row that names no image, or as many by other names as the sample has, gets the images of the
sample in their order. A sample that cannot be read is a reject, where a view of the shards refuses them all.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from phi3v_data.converters.helpers.annotations import once_a_source
from phi3v_data.converters.helpers.cell_images import is_inline
from phi3v_data.draft import Converter, DatasetInfo, Draft, DraftImage, Item
from phi3v_data.errors import NotFoundError, Reject, UserError
from phi3v_data.files import unreadable
from phi3v_data.formats.base import RowFormat
from phi3v_data.formats.blocks import BlockFormat
from phi3v_data.formats.chat import ImageRef
from phi3v_data.formats.drafts import make_draft
from phi3v_data.formats.images import ImagePlaces
from phi3v_data.formats.import_options import AUTO, ImportSettings
from phi3v_data.formats.importing import make_format
from phi3v_data.formats.row_block import read_row
from phi3v_data.formats.row_items import first_fault
from phi3v_data.formats.tagged import TaggedFormat
from phi3v_data.formats.webdataset import WebDataset
from phi3v_data.json_text import JsonFault
from phi3v_data.messages import join_words, shown
from phi3v_data.shards.files import LocalShard
from phi3v_data.shards.rows import format_of
from phi3v_data.shards.tar import MAX_JSON, TarSample, tar_samples, two_members
from phi3v_data.shards.view import (
    MANIFEST_OF_EXPORT,
    Export,
    find_export,
    manifest_of,
    name_of_export,
    shards_by_split,
)
from phi3v_data.sources.source import Source

BESIDE = (MANIFEST_OF_EXPORT, "cooker.py")
"""Files of an export beside its shards that have no rows."""

_URL = ("http://", "https://")


class ImportShards(Converter[ImportSettings]):
    """Samples of WebDataset shards → samples."""

    name = "import"
    version = "1"

    def __init__(self) -> None:
        self._others: dict[str, None] = {}  # fields that are not imported

    def plan(self, source: Source, options: ImportSettings) -> Iterable[Item]:
        export = _export(source, options)
        if not options.data:  # else the shard's folder may have anything
            source.use(file for file in source.files() if file.path in (*export.shards, *BESIDE))
        for split, shards in export.splits.items():
            for shard in shards:
                yield from self._items(export.root / shard, shard, split)

    def _items(self, path: Path, shard: str, split: str) -> Iterator[Item]:
        for index, sample in enumerate(tar_samples(LocalShard(path))):
            key, where = f"{shard}[{index}]", f"{path.name}: {sample.key}"
            self._others |= dict.fromkeys(sample.others)
            row, fault = _row_of(sample)
            if fault is not None:
                yield Item(split, key, reject=fault.code, message=f"{where}: {fault.message}")
                continue
            assert sample.json is not None
            assert sample.text is not None
            group = row.get("group")
            yield Item(
                split=split,
                key=key,
                path=str(path),
                group=group if isinstance(group, str) else "",
                size=len(sample.text) + sum(size for *_, size in sample.images),
                data={
                    "json": sample.json[1:],
                    "digest": xxhash.xxh3_128_hexdigest(sample.text),
                    "images": sample.images,
                    "where": where,
                },
            )

    def convert(self, item: Item, options: ImportSettings) -> Draft:
        data = item.data
        members = [_Member(*each) for each in data["images"]]
        places = ShardImages(
            "",
            downloads=Path(options.downloads),
            fetch=options.fetch,
            shard=item.path,
            members={name: member for member in members for name in member.names},
        )
        text = places.read(*data["json"])
        if xxhash.xxh3_128_hexdigest(text) != data["digest"]:
            raise UserError(f"{data['where']} changed while it was imported; run the same command again")
        found, _ = read_row(text, "row")
        assert found is not None
        row, row_format = _with_images(found[0], options, [member.field for member in members], places)
        return make_draft(
            row,
            row_format,
            data["where"],
            places,
            key=data["where"],
            merge_turns=options.merge_turns,
            model=options.model,
        )

    def describe(self, source: Source, options: ImportSettings) -> DatasetInfo:
        export = _export(source, options)
        left = [shown(name, 40) for name in self._others]
        notes = [f"members that are not imported: {join_words(left)}"] if left else []
        given = None if options.data else manifest_of(export)
        if given is None:
            name = Path(options.data).stem if options.data else ""
            return DatasetInfo(name_of_export(export.root / name), task="chat", source="WebDataset shards", notes=notes)
        return DatasetInfo(
            given.name or name_of_export(export.root),
            task=given.task,
            metrics=given.metrics,
            classes=given.classes,
            num_crops=given.num_crops,
            source="WebDataset shards",
            license=given.license,
            notes=notes,
        )


@dataclass(frozen=True, slots=True)
class _Member:
    """A member of a tar file that is an image of a sample."""

    name: str
    field: str
    offset: int
    size: int

    @property
    def names(self) -> tuple[str, ...]:
        """All by which a row may refer to it."""
        return self.name, PurePosixPath(self.name).name, self.field


@dataclass(frozen=True, slots=True)
class ShardImages(ImagePlaces):
    """The images of a sample: members of its shard, and what a row has inside or gives by a URL."""

    shard: str = ""
    members: Mapping[str, _Member] = field(default_factory=dict)

    def load(self, ref: ImageRef, where: str) -> tuple[DraftImage, tuple[str, ...]]:
        value = ref.value
        member = self.members.get(value) if isinstance(value, str) else None
        if member is not None:
            return DraftImage(self.read(member.offset, member.size), where=f"{where}: {shown(member.name)}"), ()
        if isinstance(value, bytes) or value.lower().startswith(_URL) or is_inline(value):
            return ImagePlaces.load(self, ref, where)
        what = f"{where}, {ref.field}" if ref.field else where
        raise Reject("image-missing", f"{what}: the image {shown(value)} is not in the shard")

    def read(self, offset: int, size: int) -> bytes:
        """The bytes of a member.

        Raises:
            UserError: the shard cannot be read.
        """
        try:
            with open(self.shard, "rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise unreadable(Path(self.shard), error) from None


@once_a_source
def _export(source: Source, options: ImportSettings) -> Export:
    """The shards of a source: all of them, or the one that `data` names."""
    if options.data:
        if not (source.root / options.data).is_file():
            raise NotFoundError(f"--data: '{source.spec}' has no shard '{options.data}'")
        return Export(source.root, "tar", shards_by_split([options.data]))
    export = find_export(source.root)
    if export is None or export.kind != "tar":
        raise NotFoundError(f"'{source.spec}' contains no shards (.tar)")
    return export


def _row_of(sample: TarSample) -> tuple[dict[str, Any], JsonFault | None]:
    """The row of a sample, or why it has none."""
    if sample.repeated:
        return {}, JsonFault("archive-member", two_members(sample))
    if sample.json is None:
        return {}, JsonFault("json-not-object", "the sample has no .json, which would be its conversation")
    if sample.text is None:
        size = sample.json[2]
        return {}, JsonFault("line-too-long", f"the JSON has {size:,} bytes, over the limit of {MAX_JSON:,}")
    found, faults = read_row(sample.text, "row")
    if fault := first_fault(faults):
        return {}, fault
    row = found[0] if found else None
    if not isinstance(row, dict):
        return {}, JsonFault("json-not-object", f"the row is {shown(row)}, not an object")
    return row, None


def _with_images(
    row: dict[str, Any], options: ImportSettings, fields: Sequence[str], places: ShardImages
) -> tuple[dict[str, Any], RowFormat]:
    """The row with the images of its sample, if it names none of them, and its format."""
    if options.format in (AUTO, WebDataset.name):
        candidates = (row, {**row, "image": fields}, {**row, "images": fields})
        row_format = next((found for each in candidates if (found := format_of(each)) is not None), WebDataset())
    else:
        row_format = make_format(options.format, options.format_file, "")
    columns: Sequence[str] = ()
    if isinstance(row_format, TaggedFormat):
        columns = row_format.image_keys
    elif isinstance(row_format, BlockFormat):
        columns = row_format.image_columns
    if not columns or not fields:
        return row, row_format
    key = next((key for key in columns if row.get(key) not in (None, "", [])), "")
    if not key:
        return {**row, columns[0]: list(fields)}, row_format
    named = row[key] if isinstance(row[key], list) else [row[key]]
    are_other_names = all(isinstance(name, str) and _is_path(name) and name not in places.members for name in named)
    return ({**row, key: list(fields)} if are_other_names and len(named) == len(fields) else row), row_format


def _is_path(name: str) -> bool:
    return not (name.lower().startswith(_URL) or is_inline(name))
