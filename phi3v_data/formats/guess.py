"""The format of rows of unknown origin, if it is plain."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from phi3v_data.errors import UserError
from phi3v_data.formats.chat import Reading
from phi3v_data.formats.registry import all_formats, get_format
from phi3v_data.messages import join_words, shown

GUESSED_FROM = 100
"""Rows from whose fields a format is guessed."""


@dataclass(frozen=True, slots=True)
class Guess:
    """`name` is empty if the format is not plain; `rows` of `num_rows` have it. `others` have been recognized too.

    `own_rows` are rows of this package's own format. `within`: the rows are in an array under this key of the only one.
    `keys` are those of the first row, for messages.
    """

    name: str
    rows: int
    num_rows: int
    others: tuple[str, ...] = ()
    own_rows: int = 0
    within: str = ""
    keys: tuple[str, ...] = ()

    @property
    def fields(self) -> str:
        """The fields of the first row, as words in brackets; empty if it is not an object."""
        return f" (its fields: {join_words(self.keys, 6, each=lambda key: shown(key, 40))})" if self.keys else ""


def guess_from(values: Iterable[Any]) -> Guess:
    """The format that most of the first rows have; plain if it is that of more rows than any other."""
    counts: Counter[str] = Counter()
    num_rows = own_rows = 0
    keys: tuple[str, ...] = ()
    formats = {name: cls() for name, cls in all_formats().items()}
    for value in islice(values, GUESSED_FROM):
        num_rows += 1
        row = value[0] if isinstance(value, list | tuple) and value else value
        if isinstance(row, Mapping) and not keys:
            keys = tuple(row)
        if is_own(row):
            own_rows += 1
        elif isinstance(row, Mapping):
            counts.update(name for name, format_ in formats.items() if format_.recognizes(row))
    ranked = counts.most_common()
    if not ranked or (len(ranked) > 1 and ranked[0][1] == ranked[1][1]):
        ties = tuple(name for name, count in ranked if count == ranked[0][1])
        within = _key_of_rows(row) if num_rows == 1 and not ranked else ""
        return Guess("", 0, num_rows, ties, own_rows, within, keys)
    return Guess(ranked[0][0], ranked[0][1], num_rows, tuple(name for name, _ in ranked[1:]), own_rows)


def _key_of_rows(row: Any) -> str:
    """The key of an object under which it has an array of rows; empty if there is none."""
    for key, value in row.items() if isinstance(row, Mapping) else ():
        if isinstance(value, list) and value and (guess := guess_from(value[:1])) and (guess.name or guess.others):
            return str(key)
    return ""


def differing(names: Iterable[str], values: Iterable[Any]) -> bool:
    """Whether formats read any of the first rows differently."""
    formats = [get_format(name)() for name in names]
    for row in islice(values, GUESSED_FROM):
        if isinstance(row, Mapping):
            first, *others = (_essence(format_.read(row)) for format_ in formats)
            if any(other != first for other in others):
                return True
    return False


def _essence(reading: Reading) -> tuple[Any, ...]:
    """The messages that an import makes of a row, with tools and rejected answer; nothing if it is a reject."""
    if reading.chat is None or any(fault.severity in (None, "error") for fault in reading.faults):
        return ()
    chat = reading.chat
    messages = [
        (message.role, [part if isinstance(part, str) else (part.value,) for part in message.parts], message.weight)
        for message in chat.messages
    ]
    return (messages, chat.tools, chat.rejected and chat.rejected.text)


def nested(name: str, key: str) -> UserError:
    """The error for a file whose rows are an array inside an object."""
    said = f"'{name}' is one object, whose rows are under {shown(key, 60)}"
    return UserError(f"{said}: write a file that is that array alone, or has one row per line")


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
