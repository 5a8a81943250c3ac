"""From a row of another tool's format to the draft of its sample: its messages, its images, or its first fault."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from phi3v_data.draft import Draft
from phi3v_data.errors import Reject
from phi3v_data.formats.base import RowFormat
from phi3v_data.formats.chat import Chat, Fault
from phi3v_data.formats.fields import extras
from phi3v_data.formats.images import ImagePlaces
from phi3v_data.formats.plain_fields import PlainReader
from phi3v_data.formats.sharegpt import ShareGPT
from phi3v_data.formats.swift import Swift
from phi3v_data.formats.texts import own_marker
from phi3v_data.formats.turns import check_characters, check_content, check_turns, merged, texts_beside, to_turns
from phi3v_data.messages import counted, shown
from phi3v_data.schema import Scalar

MEDIA = ("video", "videos", "audio", "audios")
"""Columns whose content a sample cannot hold."""

MERGED = "turns-merged"
"""Note: consecutive messages of one role were joined."""


def make_draft(
    row: Any,
    row_format: RowFormat,
    where: str,
    places: ImagePlaces,
    *,
    key: str,
    merge_turns: bool = False,
    model: str = "",
    plain: PlainReader | None = None,
) -> Draft:
    """The sample of a row.

    Args:
        row: its value.
        where: file and line, for messages.
        places: where its images are.
        key: kept as `source_id` if the row has no id.
        merge_turns: join consecutive messages of one role.
        model: family or directory of a model, whose control tokens must not be in a text.
        plain: reads the format's plain rows in less time, to equal samples; made for the same model.

    Raises:
        Reject: by the code of its first fault.
    """
    notes: list[str] = []
    if plain is not None and (found := plain.read(row)) is not None:
        system, read = found
        chat = Chat((), **extras(row))
        if any("\0" in text or not text.isascii() for _, text in texts_beside(chat)) and (
            faults := check_characters(chat)
        ):
            raise _reject(faults, where)
    else:
        chat = _read_chat(row, row_format, where, merge_turns=merge_turns, model=model)
        if merge_turns:
            messages = merged(chat.messages)
            notes += [MERGED] if len(messages) < len(chat.messages) else []
            chat = replace(chat, messages=messages)
        system, read = to_turns(chat)
    turns = []
    for turn, refs in read:
        images = []
        for ref in refs:
            image, more = places.load(ref, where)
            images.append(image)
            notes += more
        turns.append(replace(turn, images=images) if images else turn)
    meta: dict[str, Scalar] = {"source_id": chat.id or key, **chat.meta}
    return Draft(
        turns=turns,
        system=system,
        answers=chat.answers,
        group=chat.group,
        meta=meta,
        rejected=chat.rejected.text if chat.rejected is not None else "",
        tools=chat.tools,
        notes=notes,
    )


def _read_chat(row: Any, row_format: RowFormat, where: str, *, merge_turns: bool, model: str) -> Chat:
    """The conversation of a row, which a sample can hold. Raises as `make_draft`."""
    if not isinstance(row, Mapping):
        raise Reject("json-not-object", f"{where}: the row is {shown(row)}, not an object")
    reading = row_format.read(row)
    if column := next((name for name in media_columns(row_format) if row.get(name)), ""):
        raise Reject("media-left-out", f"{where}, {column}: the row has {column}, which a sample cannot hold")
    faults = [fault for fault in reading.faults if fault.severity in (None, "error")]
    chat = reading.chat
    if chat is not None and not faults:
        faults = [
            *check_turns(chat, merge_turns=merge_turns),
            *check_content(chat, merge_turns=merge_turns),
            *check_characters(chat),
            *_markers(chat, model),
        ]
    if chat is None or faults:
        raise _reject(faults, where)
    return chat


def media_columns(row_format: RowFormat) -> list[str]:
    """Columns of videos, audio or boxes, which a sample cannot hold."""
    if isinstance(row_format, ShareGPT) and row_format.entry is not None:
        columns = row_format.entry.columns
        return [name for name in (columns.videos, columns.audios) if name]
    return [*MEDIA, *(["objects"] if isinstance(row_format, Swift) else [])]


def _markers(chat: Chat, model: str) -> Iterator[Fault]:
    """Faults of the model's own markers in texts."""
    for message in (*chat.messages, *([chat.rejected] if chat.rejected is not None else [])):
        if marker := own_marker(message.text, model):
            yield Fault("control-token", message.field, f"the text has {shown(marker)}, a control token of the model")


def _reject(faults: Sequence[Fault], where: str) -> Reject:
    first = faults[0]
    field = f", {first.field}" if first.field else ""
    more = f" (and {counted(len(faults) - 1, 'more fault')})" if len(faults) > 1 else ""
    hint = f"; {first.hint}" if first.hint else ""
    return Reject(first.code, f"{where}{field}: {first.message}{more}{hint}")
