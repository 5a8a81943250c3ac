"""Columns of rows, and keys of their messages, that a format does not read, found by watching it read."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from phi3v_data.formats.base import RowFormat

LOOKED_AT = 100
"""Rows whose columns are looked at."""


_MESSAGES = ("messages", "conversations", "conversation", "prompt", "completion", "chosen", "rejected")
_EMPTY: tuple[Any, ...] = (None, "", [], {})
_EXTRAS = ("id", "answers", "group", "meta")  # which `extras` leaves out if they have another type
_BY_ORDER = "tool_call_id"  # results follow their calls, whose ids are kept


class _Watched(Mapping[str, Any]):
    """An object that records the keys that are asked for; so do the objects in the arrays `inner`."""

    def __init__(self, row: Mapping[str, Any], inner: Iterable[str] = ()) -> None:
        self._row = row
        self._asked: set[str] = set()
        self.inner = {
            key: [_Watched(each) if isinstance(each, Mapping) else each for each in row[key]]
            for key in inner
            if isinstance(row.get(key), list | tuple)
        }

    def __getitem__(self, key: str) -> Any:
        self._asked.add(key)
        return self.inner[key] if key in self.inner else self._row[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)

    def unread(self) -> list[str]:
        """Keys with content that nobody asked for; none of an object of which nobody asked for any."""
        if not self._asked:
            return []
        return [key for key, value in self._row.items() if key not in self._asked and value not in _EMPTY]


def unread_columns(values: Iterable[Any], row_format: RowFormat) -> tuple[str, ...]:
    """The columns, and keys of messages, with content in the first rows that the format does not read, in their order.

    So are `id`, `answers`, `group` and `meta` of another type than theirs. A key of messages is `messages[].weight`.
    """
    names = getattr(row_format, "names", None)
    columns = dict.fromkeys((*_MESSAGES, *(() if names is None else names.messages)))
    found: dict[str, None] = {}
    for value in islice(values, LOOKED_AT):
        for row in value if isinstance(value, list | tuple) else (value,):
            if isinstance(row, Mapping):
                watched = _Watched(row, columns)
                chat = row_format.read(watched).chat
                if chat is None:
                    continue  # it is a reject, and was not read to its end
                found |= dict.fromkeys(watched.unread())
                left_out = (key for key in _EXTRAS if row.get(key) not in _EMPTY and not getattr(chat, key))
                found |= dict.fromkeys(left_out)
                for column, messages in watched.inner.items():
                    keys = [key for message in messages if isinstance(message, _Watched) for key in message.unread()]
                    found |= {f"{column}[].{key}": None for key in keys if key != _BY_ORDER}
    return tuple(found)
