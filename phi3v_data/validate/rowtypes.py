"""The row for msgspec: `phi3v_data.schema.Sample` again, for speed, distinguishing absent from empty fields.

A test compares the verdicts of both on generated rows. Only valid rows use these types; messages about invalid rows
come from Pydantic.
"""

from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType


class StepRow(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Calls of tools and their results."""

    calls: Annotated[list[Annotated[str, msgspec.Meta(min_length=1)]], msgspec.Meta(min_length=1)]
    results: Annotated[list[str], msgspec.Meta(min_length=1)]


class TurnRow(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One turn."""

    user: str
    assistant: str
    images: list[str] | UnsetType = UNSET
    image_offsets: list[Annotated[int, msgspec.Meta(ge=0)]] | UnsetType = UNSET
    weight: Annotated[int, msgspec.Meta(ge=0, le=1)] | UnsetType = UNSET
    steps: list[StepRow] | UnsetType = UNSET


class Row(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One line."""

    id: Annotated[str, msgspec.Meta(min_length=1)]
    source: str
    conversations: Annotated[list[TurnRow], msgspec.Meta(min_length=1)]
    system: str | UnsetType = UNSET
    answers: list[str] | UnsetType = UNSET
    group: str | UnsetType = UNSET
    meta: dict[str, str | int | float | bool | None] | UnsetType = UNSET
    rejected: str | UnsetType = UNSET
    tools: str | UnsetType = UNSET

    def new_texts(self) -> list[tuple[str, str]]:
        """Field and text of all that format 1 does not have."""
        found = []
        for index, turn in enumerate(self.conversations):
            for number, step in enumerate(() if turn.steps is UNSET else turn.steps):
                where = f"conversations[{index}].steps[{number}]"
                found += [(f"{where}.calls[{each}]", text) for each, text in enumerate(step.calls)]
                found += [(f"{where}.results[{each}]", text) for each, text in enumerate(step.results)]
        for name, text in (("rejected", self.rejected), ("tools", self.tools)):
            if text is not UNSET and text:
                found.append((name, text))
        return found


DECODER = msgspec.json.Decoder(Row)
