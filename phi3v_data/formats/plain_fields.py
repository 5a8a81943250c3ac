"""Columns of a row beside its messages, as readers of plain rows take them, and the interface of these readers."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from phi3v_data.draft import DraftTurn
from phi3v_data.formats.chat import ImageRef

PlainRow = tuple[str, list[tuple[DraftTurn, list[ImageRef]]]]
"""The system message and the turns, as `turns.to_turns` gives them."""


class PlainReader(Protocol):
    """Reads the rows of one format that are of the usual kind."""

    def read(self, row: Any) -> PlainRow | None:
        """The system message and the turns of a row; None if it needs a closer look."""


class RowFields:
    """Fields of rows beside the messages.

    Args:
        image_keys: columns of images.
        weight_key: that of a message, which may be empty.
        own: columns and keys of messages that a format reads in its own way.
        odd: columns that make a row unusual if they are not empty.
    """

    def __init__(self, image_keys: Iterable[str], weight_key: str, own: Iterable[str], odd: Iterable[str]) -> None:
        self._image_keys = tuple(image_keys)
        self._weight_key = weight_key
        self._own = frozenset(own)
        self._odd = self._own | {name for name in odd if name}

    def is_usual(self, row: Mapping[str, Any]) -> bool:
        """Whether the unusual columns that a row has are empty."""
        if self._odd.isdisjoint(row):
            return True
        values = ((key, row.get(key)) for key in self._odd)
        return all(value is None or (key not in self._own and value in ("", [])) for key, value in values)

    def images_of(self, row: Mapping[str, Any]) -> list[ImageRef] | None:
        """The images of a row; None if they are not all texts."""
        for key in self._image_keys:
            value = row.get(key)
            if value in (None, "", []):
                continue
            if type(value) is str:
                return [ImageRef(value, key)]
            if type(value) is not list or not all(type(one) is str and one for one in value):
                return None
            return [ImageRef(one, f"{key}[{number}]") for number, one in enumerate(value)]
        return []

    def weight_of(self, message: Mapping[str, Any]) -> int:
        """The weight of a message; -1 if it needs a closer look."""
        if not self._own.isdisjoint(message):
            return -1
        weight = message.get(self._weight_key) if self._weight_key else None
        if weight is None:
            return 1
        return int(weight) if type(weight) in (bool, int, float) and weight in (0, 1) else -1
