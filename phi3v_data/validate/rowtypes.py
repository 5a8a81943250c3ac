"""The row as msgspec reads it: `phi3v_data.schema.Sample` again, for speed, telling "left out" from "empty".

A test holds both to the same verdict on generated rows. Only the path for sound rows uses these types; the words
about a bad row come from Pydantic.
"""

from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType


class TurnRow(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One turn."""

    user: str
    assistant: str
    images: list[str] | UnsetType = UNSET
    image_offsets: list[Annotated[int, msgspec.Meta(ge=0)]] | UnsetType = UNSET


class Row(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One line."""

    id: Annotated[str, msgspec.Meta(min_length=1)]
    source: str
    conversations: Annotated[list[TurnRow], msgspec.Meta(min_length=1)]
    system: str | UnsetType = UNSET
    answers: list[str] | UnsetType = UNSET
    group: str | UnsetType = UNSET
    meta: dict[str, str | int | float | bool | None] | UnsetType = UNSET


DECODER = msgspec.json.Decoder(Row)
