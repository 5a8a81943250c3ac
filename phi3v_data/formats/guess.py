"""The format of rows of unknown origin, if it is plain."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from phi3v_data.formats.registry import all_formats

GUESSED_FROM = 100
"""Rows from whose fields a format is guessed."""


@dataclass(frozen=True, slots=True)
class Guess:
    """`name` is empty if the format is not plain; `rows` of `num_rows` have it. `others` have been recognized too.

    `own_rows` are rows of this package's own format.
    """

    name: str
    rows: int
    num_rows: int
    others: tuple[str, ...] = ()
    own_rows: int = 0


def guess_from(values: Iterable[Any]) -> Guess:
    """The format that most of the first rows have; plain if it is that of more rows than any other."""
    counts: Counter[str] = Counter()
    num_rows = own_rows = 0
    formats = {name: cls() for name, cls in all_formats().items()}
    for value in islice(values, GUESSED_FROM):
        num_rows += 1
        row = value[0] if isinstance(value, list | tuple) and value else value
        if is_own(row):
            own_rows += 1
        elif isinstance(row, Mapping):
            counts.update(name for name, format_ in formats.items() if format_.recognizes(row))
    ranked = counts.most_common()
    if not ranked or (len(ranked) > 1 and ranked[0][1] == ranked[1][1]):
        return Guess("", 0, num_rows, tuple(name for name, _ in ranked), own_rows)
    return Guess(ranked[0][0], ranked[0][1], num_rows, tuple(name for name, _ in ranked[1:]), own_rows)


def is_own(row: Any) -> bool:
    """Whether a row has turns with `user` and `assistant`, as those of a conversations directory."""
    turns = row.get("conversations") if isinstance(row, Mapping) else None
    turn = turns[0] if isinstance(turns, list | tuple) and turns else None
    return isinstance(turn, Mapping) and "user" in turn and "assistant" in turn


def has_messages(row: Any) -> bool:
    """Whether a row has messages as other tools write them: `from` and `value`, or `role` and `content`."""
    for key in ("conversations", "messages"):
        messages = row.get(key) if isinstance(row, Mapping) else None
        first = messages[0] if isinstance(messages, list | tuple) and messages else None
        if isinstance(first, Mapping) and ({"from", "value"} <= first.keys() or {"role", "content"} <= first.keys()):
            return True
    return False
