"""The row for msgspec: `phi3v_data.schema.Sample` again, for speed, distinguishing absent from empty fields.

A test compares the verdicts of both on generated rows. Only valid rows use these types; messages about invalid rows
come from Pydantic.
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
    weight: Annotated[int, msgspec.Meta(ge=0, le=1)] | UnsetType = UNSET


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
