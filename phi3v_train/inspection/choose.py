"""Rows to look at, as they are named on the command line."""

import random
import re

from phi3v_data.errors import UserError
from phi3v_data.messages import shown
from phi3v_train.data.sources import Source

_RANGE = re.compile(r"(\d{1,12})(?:-(\d{1,12}))?")


def parse_rows(text: str, source: Source) -> list[int]:
    """Numbers and ranges such as `3,7,10-12`, in the order given, each row once.

    Raises:
        UserError: something else, or a row that the split does not have.
    """
    rows: dict[int, None] = {}
    for piece in text.split(","):
        found = _RANGE.fullmatch(piece.strip())
        if found is None:
            raise UserError(f"--rows {shown(text)}: write numbers and ranges from 0 on, such as 0-9 or 3,7,10-12")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise UserError(f"--rows {shown(text)}: the range {piece.strip()} ends before it begins")
        require_row(last, source, "--rows")
        rows.update(dict.fromkeys(range(first, last + 1)))
    return list(rows)


def require_row(row: int, source: Source, option: str) -> None:
    """Refuse a row that the split does not have.

    Raises:
        UserError: naming those that it has.
    """
    if row >= len(source):
        raise UserError(f"{option} {row}: split {source.split.name!r} has the rows 0 to {len(source) - 1}")


def draw_rows(count: int, source: Source, seed: int) -> list[int]:
    """`count` different rows in rising order, or all if there are no more; the same for the same seed."""
    total = len(source)
    if count >= total:
        return list(range(total))
    generator = random.Random(seed)
    drawn: set[int] = set()
    while len(drawn) < count:
        drawn.add(int(generator.random() * total))  # `random()` is the same in every version of Python
    return sorted(drawn)
