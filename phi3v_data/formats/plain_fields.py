"""Columns of a row beside its messages, as readers of plain rows take them, and the interface of these readers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from json.encoder import encode_basestring
from typing import Any, Protocol

from phi3v_data.draft import DraftTurn
from phi3v_data.formats.chat import ImageRef
from phi3v_data.formats.encoded_turns import EncodedTurns

PlainRow = tuple[str, list[tuple[DraftTurn, list[ImageRef]]]]
"""The system message and the turns, as `turns.to_turns` gives them."""


PlainTurn = tuple[str, str, list[int], int, list[ImageRef]]
"""Question, answer, offsets of the images, weight and images of a turn."""


class PlainReader(Protocol):
    """Reads the rows of one format that are of the usual kind."""

    def read(self, row: Any) -> PlainRow | None:
        """The system message and the turns of a row, as `to_turns` gives them; None if it needs a closer look."""

    def rewrite(self, row: Any) -> bytes | None:
        """`conversations` and `system` of the sample of a row without images, as its line has them, without braces.

        None if the row has images, or needs a closer look.
        """


def with_turns(found: tuple[str, list[PlainTurn]] | None) -> PlainRow | None:
    """A row of plain values with turns of a draft."""
    if found is None:
        return None
    system, turns = found
    return system, [
        (DraftTurn(user, assistant, (), offsets if any(offsets) else (), weight), refs)
        for user, assistant, offsets, weight, refs in turns
    ]


def written(found: tuple[str, list[PlainTurn]] | None) -> bytes | None:
    """A row of plain values as `PlainReader.rewrite` gives it."""
    if found is None:
        return None
    system, turns = found
    pieces = []
    for user, assistant, _, weight, refs in turns:
        if refs:
            return None
        end = "}" if weight else ', "weight": 0}'
        pieces.append(
            f'{{"images": [], "user": {encode_basestring(user)}, "assistant": {encode_basestring(assistant)}{end}'
        )
    more = f', "system": {encode_basestring(system)}' if system else ""
    return f'"conversations": [{", ".join(pieces)}]{more}'.encode()


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


class MessageReader(ABC):
    """A `PlainReader` of a format whose turns are one list of messages."""

    _message_keys: tuple[str, ...]
    _fields: RowFields
    _encoded: EncodedTurns

    def read(self, row: Any) -> PlainRow | None:
        """As `PlainReader.read`."""
        return with_turns(self._read(row))

    def rewrite(self, row: Any) -> bytes | None:
        """As `PlainReader.rewrite`."""
        if type(row) is dict and len(row) == (2 if "id" in row else 1) and self._fields.is_usual(row):
            for key in self._message_keys:
                messages = row.get(key)
                if type(messages) is list and (turns := self._encoded.rewrite(messages)) is not None:
                    return b'"conversations": ' + turns
        return written(self._read(row))

    @abstractmethod
    def _read(self, row: Any) -> tuple[str, list[PlainTurn]] | None:
        """The system message and the turns; None if the row needs a closer look."""
