"""Columns of rows that a format does not read, found by watching it read."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from phi3v_data.formats.base import RowFormat

LOOKED_AT = 100
"""Rows whose columns are looked at."""


class _Watched(Mapping[str, Any]):
    """A row that records the keys that are asked for."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self._row = row
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return self._row[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)


def unread_columns(values: Iterable[Any], row_format: RowFormat) -> tuple[str, ...]:
    """The columns with content in the first rows that the format does not read, in the order of the rows."""
    found: dict[str, None] = {}
    for value in islice(values, LOOKED_AT):
        for row in value if isinstance(value, list | tuple) else (value,):
            if isinstance(row, Mapping):
                watched = _Watched(row)
                row_format.read(watched)
                found |= {key: None for key, cell in row.items() if key not in watched.asked and cell not in _EMPTY}
    return tuple(found)


_EMPTY: tuple[Any, ...] = (None, "", [], {})
