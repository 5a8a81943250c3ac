"""Parquet shards as `datasets` writes them: a column `images` of `{bytes, path}`, the other columns are the row."""

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from phi3v_data.errors import UserError, how_to_install
from phi3v_data.media.export_pack import MAX_IMAGES_PER_CELL, NO_SIZE, PackedImage, cell_offset
from phi3v_data.media.formats import UnreadableImageError
from phi3v_data.media.images import identify_readable, size_in_header
from phi3v_data.messages import counted, shown
from phi3v_data.shards.files import ShardFile
from phi3v_data.shards.rows import BadRowError, ShardRow
from phi3v_data.suffixes import STORED_IMAGES

IMAGES = "images"
_BATCH = 64
_SUFFIXES = frozenset(suffix for suffixes in STORED_IMAGES.values() for suffix in suffixes)


def read_parquet(shard: ShardFile, number: int, stem: str) -> Iterator[ShardRow]:
    """Yield the rows of a shard in order; see `rows.ShardReader`.

    Raises:
        UserError: the file is damaged, its images are in another column, or pyarrow is not installed.
        BadRowError: a row that has an image without bytes, or a text that is not UTF-8.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"reading parquet files needs pyarrow: {how_to_install('hub')}") from None
    try:
        with shard.open() as opened, pyarrow.parquet.ParquetFile(opened) as file:
            _check_columns(file.schema_arrow, shard)
            first = 0
            for group in range(file.num_row_groups):
                at = 0
                for batch in file.iter_batches(batch_size=_BATCH, row_groups=[group], use_threads=False):
                    for value in _values(batch, shard, first + at):
                        yield _row(shard, value, number, stem, (group, at, first + at))
                        at += 1
                first += at
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{shard} is damaged or not a parquet file ({str(error)[:80]}); download it again") from None


def _check_columns(schema: Any, shard: ShardFile) -> None:
    """Refuse a file whose images are in a column of another name, as its rows would be read without them."""
    others = [] if IMAGES in schema.names else [field.name for field in schema if _has_bytes(field.type)]
    if others:
        raise UserError(
            f"{shard}: the images of shards are read from a column {IMAGES!r}, and this file has bytes in "
            f"{shown(others[0])}; import it with `phi3v-data import`, or rename the column"
        )


def _has_bytes(kind: Any) -> bool:
    """Whether values of an Arrow type are or have bytes, as `{bytes, path}` of `datasets` has."""
    import pyarrow

    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return _has_bytes(kind.value_type)
    if pyarrow.types.is_struct(kind):
        return any(_has_bytes(field.type) for field in kind)
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _values(batch: Any, shard: ShardFile, first: int) -> list[dict[str, Any]]:
    """The rows of a batch whose first one is row `first`."""
    try:
        values: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError:  # pyarrow believes what the file says is a text
        where = f"{shard.name}: rows {first} to {first + len(batch) - 1}"
        raise BadRowError(where, "a text is not UTF-8") from None
    return values


def _row(shard: ShardFile, value: dict[str, Any], number: int, stem: str, place: tuple[int, int, int]) -> ShardRow:
    group, at, row = place
    where = f"{shard.name}: row {row}"
    cells = value.get(IMAGES)
    cells = cells if isinstance(cells, list) else [] if cells is None else [cells]
    if len(cells) > MAX_IMAGES_PER_CELL:
        raise BadRowError(where, f"has {counted(len(cells), 'image')}, over the limit of {MAX_IMAGES_PER_CELL:,}")
    images = {}
    for index, cell in enumerate(cells):
        data = cell.get("bytes") if isinstance(cell, dict) else None
        if not isinstance(data, bytes) or not data:
            raise BadRowError(where, f"{IMAGES}[{index}] has no bytes: only images inside the file can be read")
        name = f"{stem}/{row:08d}.{index}{_suffix(cell.get('path'), data)}"
        offset, size = cell_offset(group, at, index), NO_SIZE
        if shard.is_remote:
            size = size_in_header(data)
            shard.keep(offset, data)
        images[name] = PackedImage(name, number, offset, len(data), image_size=size)
    value[IMAGES] = list(images)
    return ShardRow(where, value, images)


def _suffix(path: Any, data: bytes) -> str:
    """The suffix of an image's own name, else of what its bytes are."""
    if isinstance(path, str) and (suffix := _suffix_of(path).lower()) in _SUFFIXES:
        return suffix
    try:
        return STORED_IMAGES[identify_readable(data)][0]
    except UnreadableImageError:
        return ""


def _suffix_of(path: str) -> str:
    """`PurePath(path).suffix` in a fraction of its time."""
    name = path.rpartition("/")[2]
    if name in ("", "."):  # the end of the path of a folder
        return PurePath(path).suffix
    dot = name.rfind(".")
    return name[dot:] if 0 < dot < len(name) - 1 else ""
