"""Rows of a text file as bytes, many at a time: where each is, and its value."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from phi3v_data.json_text import JsonFault, count_quotes, is_whole, read_json

Ints = npt.NDArray[np.int64]

_VALUES = msgspec.json.Decoder(list[Any])
_encode = msgspec.json.Encoder().encode
_OPEN, _CLOSE, _CR, _SPACE = b"{}\r "
_BEYOND = 0x80
_HEAD = 1 << 12


class ListDecoder(Protocol):
    """Decodes a JSON array of rows: `msgspec.json.Decoder(list[ROW])`."""

    def decode(self, data: bytes) -> list[Any]: ...


def rare_positions(mask: npt.NDArray[np.bool_]) -> Ints:
    """Where a mask is true; faster than `flatnonzero` if that is rare."""
    whole = len(mask) & ~7
    words = mask[:whole].view(np.uint64)
    eights = np.flatnonzero(words != 0)
    inside = np.flatnonzero(words[eights].view(np.bool_))
    found: Ints = (eights[inside >> 3] << 3) + (inside & 7)
    rest = np.flatnonzero(mask[whole:])
    return np.concatenate((found, rest + whole)) if len(rest) else found


def odd_positions(array: npt.NDArray[np.uint8]) -> tuple[Ints, Ints | None]:
    """Where bytes are below the space, and where they are beyond ASCII; None for the latter if these are many."""
    head = array[:_HEAD]
    if np.count_nonzero(head >= _BEYOND) > len(head) >> 4:
        return rare_positions(array < _SPACE), None
    found = rare_positions(array.view(np.int8) < _SPACE)  # as a signed number, one beyond ASCII is negative
    is_control = array[found] < _SPACE
    if is_control.all():
        return found, found[:0]
    return found[is_control], found[~is_control]


@dataclass(slots=True)
class RowBlock:
    """Whole rows of a file; row i is `data[starts[i]:ends[i]]`, on line `lines[i]`, and may be broken.

    `offset` is the place of `data` in the (decompressed) file. Behind its first `size` bytes, `data` may have the start
    of a row of the next block. `faults` are those of no row, with their lines.
    """

    data: bytes
    size: int
    offset: int
    starts: Ints
    ends: Ints
    lines: Ints
    faults: list[tuple[int, JsonFault]]
    in_lines: bool  # one row per line; else rows are the elements of an array
    is_plain: bool  # nothing but commas, or line ends, between rows
    controls: Ints  # where the first `size` bytes have characters below the space, line ends among them
    beyond: Ints | None  # where they have bytes beyond ASCII; None: many

    def __len__(self) -> int:
        return len(self.starts)

    def text(self, index: int) -> bytes:
        """The bytes of a row."""
        return self.data[self.starts[index] : self.ends[index]]

    @property
    def name(self) -> str:
        """The name of a row's text in messages."""
        return "line" if self.in_lines else "row"

    def decode(self, decoder: ListDecoder) -> list[Any] | None:
        """All rows at once; None if any of them needs a closer look. Does not notice duplicate keys."""
        if not self.is_plain or not len(self):
            return None
        data = self.data[self.starts[0] : self.ends[-1]]
        if self.in_lines:
            if not self._has_one_object_per_line():
                return None
            data = data.replace(b"\n", b",")  # a line end inside a string is an error either way: a raw one is invalid
        try:
            values = decoder.decode(b"[" + data + b"]")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return values if len(values) == len(self) else None

    def values(self) -> Iterator[tuple[tuple[Any] | None, list[JsonFault]]]:
        """Value (in a tuple, as it may be null) and faults of each row, as `json_text.read_json`."""
        return ((value, faults) for value, faults, _ in self.encoded_values())

    def encoded_values(self) -> Iterator[tuple[tuple[Any] | None, list[JsonFault], bytes]]:
        """As `values`, with each value as msgspec encodes it; b"" if it was not encoded."""
        values = self.decode(_VALUES)
        if values is not None:
            encoded = list(map(_encode, values))
            # as `is_whole`, with the rows encoded one by one
            if count_quotes(self.data[self.starts[0] : self.ends[-1]]) == count_quotes(b"".join(encoded)):
                for value, text in zip(values, encoded, strict=True):
                    yield (value,), [], text
                return
        for index in range(len(self)):
            yield *read_row(self.text(index), self.name), b""

    def _has_one_object_per_line(self) -> bool:
        """No JSON value has a line that ends in } before one that starts with {, so none is on two lines."""
        array = np.frombuffer(self.data, np.uint8)
        last = array[self.ends - 1]
        if _CR in last:
            last = np.where(last == _CR, array[self.ends - 2], last)
        return bool((array[self.starts] == _OPEN).all() and (last == _CLOSE).all())


_VALUE = msgspec.json.Decoder()


def read_row(data: bytes, name: str) -> tuple[tuple[Any] | None, list[JsonFault]]:
    """`json_text.read_json` of one row; `name` is that of its text in messages."""
    try:
        value = _VALUE.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return read_json(data, name)
    return ((value,), []) if is_whole(data, value) else read_json(data, name)
