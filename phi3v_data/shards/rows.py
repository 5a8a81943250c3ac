"""Rows of shards in the neutral form: what the reader of one kind of shard gives to the view."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from phi3v_data.converters.helpers.cell_images import WRITE_BASE64, lacks_base64
from phi3v_data.formats.base import RowFormat
from phi3v_data.formats.chat import Chat
from phi3v_data.formats.registry import all_formats
from phi3v_data.formats.turns import check_characters, check_turns, to_turns
from phi3v_data.media.export_pack import PackedImage
from phi3v_data.messages import shown
from phi3v_data.schema import Sample, Turn
from phi3v_data.shards.files import ShardFile

_HALF = "surrogate"
"""A word of what `check_characters` says of half a character."""


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


def line_of(row: ShardRow, source: str, number: str) -> tuple[bytes, list[PackedImage], int]:
    """The line of a row's sample with its line end, the images that it uses, each once, and the format of the row.

    Args:
        source: name of the set.
        number: the id of a row without one.

    Raises:
        BadRowError: as `chat_of`; an image is not in the shard; a text has half a character.
    """
    chat = chat_of(row)
    sample, images = _sample_of(chat, row, source, number)
    try:
        return sample.to_json().encode() + b"\n", images, sample.format
    except UnicodeEncodeError:
        halves = (f"{fault.field}: {fault.message}" for fault in check_characters(chat) if _HALF in fault.message)
        raise BadRowError(row.where, next(halves, "the name of an image is not UTF-8")) from None


def _sample_of(chat: Chat, row: ShardRow, source: str, number: str) -> tuple[Sample, list[PackedImage]]:
    system, turns = to_turns(chat)
    used: dict[str, PackedImage] = {}
    made = []
    for turn, references in turns:
        names = []
        for reference in references:
            found = row.images.get(reference.value) if isinstance(reference.value, str) else None
            if found is None:
                value = reference.value
                said = f"the image {shown(value)} is not in the shard; only images inside the shards can be read"
                if isinstance(value, str) and lacks_base64(value):
                    said = f"the data URL {shown(value, 40)} is not base64; {WRITE_BASE64}"
                raise BadRowError(row.where, f"{reference.field}: {said}")
            used[found.name] = found
            names.append(found.name)
        made.append(
            Turn(
                images=tuple(names),
                user=turn.user,
                assistant=turn.assistant,
                image_offsets=tuple(turn.image_offsets),
                weight=turn.weight,
                steps=tuple(turn.steps),
            )
        )
    return (
        Sample(
            id=chat.id or number,
            source=source,
            conversations=tuple(made),
            system=system,
            answers=chat.answers,
            group=chat.group,
            meta=dict(chat.meta),
            rejected=chat.rejected.text if chat.rejected is not None else "",
            tools=chat.tools,
        ),
        list(used.values()),
    )


def format_of(value: Mapping[str, Any]) -> RowFormat | None:
    """The first format that recognizes a row; None if none does."""
    return next((found() for found in all_formats().values() if found().recognizes(value)), None)
