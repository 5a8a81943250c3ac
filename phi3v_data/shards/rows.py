"""Rows of shards in the neutral form: what the reader of one kind of shard gives to the view."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from phi3v_data.formats.base import RowFormat
from phi3v_data.formats.chat import Chat
from phi3v_data.formats.registry import all_formats
from phi3v_data.formats.turns import check_turns
from phi3v_data.media.packed import PackedImage
from phi3v_data.messages import shown
from phi3v_data.shards.files import ShardFile


@dataclass(frozen=True, slots=True)
class ShardRow:
    """One row of a shard and the images that it has there, by the value by which the row refers to them."""

    where: str  # of the row, for messages: `train-00000.tar: 000017`
    value: Mapping[str, Any]
    images: Mapping[str, PackedImage]


class ShardReader(Protocol):
    """Reads shards of one kind."""

    def __call__(self, shard: ShardFile, number: int, stem: str) -> Iterator[ShardRow]:
        """Yield the rows of shard `number` in order; names of images begin with `stem`."""


class BadRowError(Exception):
    """A row of a shard that is not a sample; `where` and the reason."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}")


def chat_of(row: ShardRow) -> Chat:
    """The conversation of a row.

    Raises:
        BadRowError: the row is in no known format, or not a sample.
    """
    found = format_of(row.value)
    if found is None:
        raise BadRowError(row.where, f"no conversation: the fields are {', '.join(map(shown, list(row.value)[:8]))}")
    reading = found.read(row.value)
    faults = [*reading.faults, *(check_turns(reading.chat) if reading.chat else ())]
    if reading.chat is None or faults:
        fault = faults[0]
        raise BadRowError(row.where, f"{fault.field}: {fault.message}" if fault.field else fault.message)
    return reading.chat


def format_of(value: Mapping[str, Any]) -> RowFormat | None:
    """The first format that recognizes a row; None if none does."""
    return next((found() for found in all_formats().values() if found().recognizes(value)), None)
