"""Rows whose turns all have weight 0, found before a model is loaded."""

import re
from collections.abc import Iterator, Sequence

import msgspec

from phi3v_data.errors import UserError
from phi3v_data.jsonl import BOM, block_lines, read_blocks
from phi3v_data.validate.rowtypes import DECODER, Row
from phi3v_train.data.encode import nothing_trained
from phi3v_train.data.sources import Source

_MAYBE_ZERO = re.compile(rb'"weight"\s*:\s*-?0|\\u00')
"""A weight of 0, or an escape that may spell the key: only these lines are parsed."""


def refuse_untrained(sources: Sequence[Source]) -> None:
    """Refuse a split with rows that train nothing. Lines that are not rows are left to the reader.

    Raises:
        UserError: the first such row, and how many there are.
    """
    for source in sources:
        found = list(_untrained(source))
        if found:
            place, row = found[0]
            more = f" ({len(found):,} such rows; `phi3v-data validate` lists them)" if len(found) > 1 else ""
            raise UserError(f"{place} (id {row.id!r}): {nothing_trained(len(row.conversations))}{more}")


def _untrained(source: Source) -> Iterator[tuple[str, Row]]:
    for file in source.split.files:
        path = source.directory / file
        for block in read_blocks(path):
            if not _MAYBE_ZERO.search(block.data):
                continue
            for line in block_lines(block):
                if not _MAYBE_ZERO.search(line.data):
                    continue
                try:
                    row = DECODER.decode(line.data.removeprefix(BOM))
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                    continue
                if all(turn.weight == 0 for turn in row.conversations):
                    yield f"{path}:{line.number}", row
