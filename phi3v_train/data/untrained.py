"""Rows that cannot be trained, found before a model is loaded: all turns have weight 0, preference pairs, tools."""

import re
from collections.abc import Iterator, Sequence

import msgspec
from msgspec import UNSET

from phi3v_data.errors import UserError
from phi3v_data.jsonl import BOM, block_lines, read_blocks
from phi3v_data.validate.rowtypes import DECODER, Row
from phi3v_train.data.encode import HAS_TOOLS, IS_PAIR, nothing_trained
from phi3v_train.data.sources import Source

_SUSPECT = re.compile(rb'"weight"\s*:\s*-?0|"rejected"|"tools"|"steps"|\\u00')
"""A weight of 0, a key of format 2, or an escape that may spell one: only these lines are parsed."""


def refuse_untrained(sources: Sequence[Source]) -> None:
    """Refuse a split with rows that train nothing or need format 2. Lines that are not rows are left to the reader.

    Raises:
        UserError: the first such row, and how many there are.
    """
    for source in sources:
        found = list(_untrained(source))
        if found:
            place, row = found[0]
            more = f" ({len(found):,} such rows; `phi3v-data validate` lists them)" if len(found) > 1 else ""
            raise UserError(f"{place} (id {row.id!r}): {_why(row)}{more}")


def _why(row: Row) -> str:
    """Why a row is refused; empty if it can be trained."""
    if row.rejected is not UNSET and row.rejected:
        return IS_PAIR
    if row.new_texts():
        return HAS_TOOLS
    return nothing_trained(len(row.conversations)) if all(turn.weight == 0 for turn in row.conversations) else ""


def _untrained(source: Source) -> Iterator[tuple[str, Row]]:
    for file in source.split.files:
        path = source.directory / file
        for block in read_blocks(path):
            if not _SUSPECT.search(block.data):
                continue
            for line in block_lines(block):
                if not _SUSPECT.search(line.data):
                    continue
                try:
                    row = DECODER.decode(line.data.removeprefix(BOM))
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                    continue
                if _why(row):
                    yield f"{path}:{line.number}", row
