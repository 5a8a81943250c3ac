"""Plans the rows of a JSON file of another tool: an item for each, and its sample if that is text alone."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, pairwise, repeat
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np
import xxhash

from phi3v_data.converters.helpers.cell_images import cell_path
from phi3v_data.draft import Item
from phi3v_data.formats.base import RowFormat
from phi3v_data.formats.data_files import DataFile
from phi3v_data.formats.made_rows import make_row
from phi3v_data.formats.plain_fields import PlainReader
from phi3v_data.formats.row_block import Ints
from phi3v_data.formats.rows import VALUES_BYTES, open_rows
from phi3v_data.json_text import JsonFault, field_path
from phi3v_data.sources.fingerprint import fingerprint

_HARMLESS = ("bom", "blank-line")
"""Faults of the text that no row suffers from."""

_encode = msgspec.json.Encoder().encode
_digest_of = xxhash.xxh3_128_hexdigest


def row_items(
    path: Path,
    file: DataFile,
    row_format: RowFormat,
    plain: PlainReader | None,
    below: str,
    shared: Mapping[str, Any],
    inner: Mapping[str, str],
) -> Iterator[Item]:
    """The samples of one data file.

    Args:
        path: where the file is.
        file: what it is in the source.
        plain: reads the format's plain rows.
        below: `Item.path` of each.
        shared: further input of `convert`, the same for all.
        inner: files of archives within the source, path as if unpacked in place -> where it is.
    """
    assert file.file is not None
    own, name, whole_path = file.file.path, PurePosixPath(file.file.path).name, str(path)
    is_array = (opened := open_rows(path)).layout == "array"
    index, before = 0, -1
    texts: Counter[int] = Counter()  # faults between rows, by line
    for block, following in pairwise(chain(opened.blocks(VALUES_BYTES), (None,))):
        assert block is not None
        for line, fault in block.faults:
            if first_fault([fault]):
                texts[line] += 1
                key = f"{own}: text in line {line}" + (f" ({texts[line]})" if texts[line] > 1 else "")
                yield Item(file.split, key, below, reject=fault.code, message=_said(fault, f"{name}, line {line}"))
        after = -1 if following is None or following.faults or not len(following) else int(following.lines[0])
        crowded = _crowded(block.lines, -1 if block.faults else before, after) if is_array else repeat(False)
        before = int(block.lines[-1]) if len(block) else (-1 if block.faults else before)
        places = zip(*(array.tolist() for array in (block.starts, block.ends, block.lines)), strict=True)
        for (start, end, line), (found, faults, encoded), is_crowded in zip(
            places, block.encoded_values(), crowded, strict=False
        ):
            where = f"{name}[{index}], line {line}" if is_crowded else f"{name}, line {line}"
            key = f"{own}[{index}]" if is_array else f"{own}:{line}"
            index += 1
            size = end - start
            if faults and (fault_of_row := first_fault(faults)):
                message = _said(fault_of_row, where)
                yield Item(file.split, key, below, size=size, reject=fault_of_row.code, message=message)
                continue
            value = found[0] if found else None
            place = (whole_path, line, block.offset + start, size, block.name)
            rows: list[tuple[str, Any, str, Mapping[str, int]]]
            if type(value) is list and value:  # several rows; an empty array is one row, a reject
                rows = [
                    (f"{key}#{number}", each, digest_of(each), {"number": number}) for number, each in enumerate(value)
                ]
            else:
                rows = [(key, value, _digest_of(encoded) if encoded else digest_of(value), _NO_NUMBER)]
            for own_key, each, digest, number in rows:
                data = {"row": place, "digest": digest, "where": where, **shared, **number}
                if inner and isinstance(each, Mapping) and (files := _inner_files(each, row_format, file, inner)):
                    data["files"] = files
                yield Item(
                    file.split,
                    own_key,
                    below,
                    group_of(each),
                    size,
                    data=data,
                    made=make_row(each, own_key, plain) if plain is not None else b"",
                )


_NO_NUMBER: Mapping[str, int] = {}


def _crowded(lines: Ints, before: int, after: int) -> list[bool]:
    """Whether each row shares its line with a neighbour; `before` and `after` are the lines of the rows around."""
    around = np.concatenate(([before], lines, [after]))
    same = around[1:] == around[:-1]
    crowded: list[bool] = (same[1:] | same[:-1]).tolist()
    return crowded


def digest_of(value: Any) -> str:
    """Digest of a row, to be compared when a run is resumed and when the row is read again."""
    try:
        return _digest_of(_encode(value))
    except (UnicodeEncodeError, ValueError, OverflowError):  # half a character, or a number of any length
        return fingerprint(value)


def group_of(row: Any) -> str:
    """The group of a row; empty if it has none."""
    group = row.get("group") if type(row) is dict or isinstance(row, Mapping) else None
    return group if isinstance(group, str) else ""


def first_fault(faults: Iterable[JsonFault]) -> JsonFault | None:
    """The first error in the text of a row, or between rows."""
    return next((fault for fault in faults if fault.code not in _HARMLESS), None)


def _said(fault: JsonFault, where: str) -> str:
    """A fault of the text of a row, for its reject."""
    field = f", {field_path(fault.path)}" if fault.path else ""
    hint = f"; {fault.hint}" if fault.hint else ""
    return f"{where}{field}: {fault.message}{hint}"


def _inner_files(
    row: Mapping[str, Any], row_format: RowFormat, file: DataFile, inner: Mapping[str, str]
) -> dict[str, str]:
    """Locations of a row's images that are in an archive within the source."""
    chat = row_format.read(row).chat
    found = {}
    for ref in chat.images if chat is not None else ():
        path = cell_path(ref.value)
        for wanted in (f"{file.folder}/{path}" if file.folder else path, path):
            if path and wanted in inner:
                found[wanted] = inner[wanted]
    return found
