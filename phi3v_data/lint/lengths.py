"""Lengths of a file's rows in tokens, counted as those of a directory: texts as rows are read, images at the end.

Rows that no sample can hold have no length; consecutive messages of one role count as one, packed rows together.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from msgspec import UNSET

from phi3v_data.formats.chat import Chat
from phi3v_data.formats.turns import check_turns, merged, to_turns
from phi3v_data.lint.elements import inside
from phi3v_data.lint.images import ref_hashes
from phi3v_data.lint.row_check import CheckedRow
from phi3v_data.messages import short
from phi3v_data.tokens.choose import ChosenModel, with_image_options
from phi3v_data.tokens.family import ImageShapeError, TokenFamily
from phi3v_data.tokens.registry import count_image_tokens
from phi3v_data.validate.batch import Batch, sum_turns, text_bytes
from phi3v_data.validate.findings import Findings
from phi3v_data.validate.rowtypes import Row, StepRow, TurnRow
from phi3v_data.validate.tokens import TokenCounter, estimated, load_tokenizer, report_lengths, report_settings

Size: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class LengthSettings:
    """Settings of the count, as `validate` of a directory takes them."""

    max_tokens: int | None = None
    num_crops: int | None = None
    image_options: Mapping[str, int] = field(default_factory=dict)
    tokenizer: Path | None = None

    @property
    def are_given(self) -> bool:
        """Whether any is, so that tokens are counted at all: each row is then parsed."""
        return self != LengthSettings()


class Lengths:
    """Collects the rows of a file; `report` says which are too long once the sizes of their images are known."""

    def __init__(self, file: str, chosen: ChosenModel, settings: LengthSettings, findings: Findings) -> None:
        self._file = file
        self._findings = findings
        self._max_tokens = settings.max_tokens
        self._family, budget = with_image_options(chosen.family, settings.num_crops, settings.image_options)
        self._budget = self._family.choose_budget(budget, None)
        self._counter: TokenCounter | None = None
        if chosen.tokenizer is not None:
            required = chosen.tokenizer_required
            self._counter = load_tokenizer(chosen.tokenizer, self._family, findings, required=required)
        report_settings(chosen, findings)
        self._places: list[tuple[int, str | None]] = []  # line and element
        self._ids: list[str] = []
        self._texts: list[int] = []
        self._images: list[tuple[tuple[int, str], ...]] = []  # hash and field of each image

    def add(self, lines: Sequence[int], elements: Sequence[str | None], rows: Iterable[CheckedRow]) -> None:
        """Add rows that were checked, with their lines, and their elements where others are on their line."""
        known = [
            ((line, element), row, found)
            for line, element, row in zip(lines, elements, rows, strict=True)
            if (found := [one for view in row.views if (one := _row_of(view.chat)) is not None])
        ]
        if not known:
            return
        batch = Batch([one for *_, found in known for one in found])
        users, answers = [turn.user for turn in batch.turns], [turn.assistant for turn in batch.turns]
        if self._counter is not None:
            texts = self._counter(batch, users, answers)
        else:
            units = text_bytes(batch, users, answers)
            num_images = sum_turns(batch.num_images, batch.num_turns, np.cumsum(batch.num_turns) - batch.num_turns)
            texts = estimated(units, batch.num_turns, num_images, self._family)
        at = 0
        for place, row, found in known:
            self._places.append(place)
            self._ids.append(row.id)
            self._texts.append(int(texts[at : at + len(found)].sum()))
            at += len(found)
            hashes = ref_hashes([image.value for image in row.images]).tolist()
            self._images.append(tuple(zip(hashes, (image.field for image in row.images), strict=True)))

    def report(self, sizes: Mapping[int, Size]) -> None:
        """Report rows that are too long, and images that the image processor cannot take."""
        alone = _Counts(self._family, self._budget, several=False)
        several = _Counts(self._family, self._budget, several=True) if self._family.several_differ else alone
        lengths = np.array(self._texts, np.int64)
        for number, images in enumerate(self._images):
            counts = several if len(images) > 1 else alone
            for key, where in images:
                size = sizes.get(key)
                if size is None:
                    continue  # a finding says why
                lengths[number] += max(counts[size], 0)
                if alone[size] < 0:
                    self._findings.add(
                        "image-aspect",
                        short(f"the image: {alone.why[size]}"),
                        **{**self.place(number), "field": inside(self._places[number][1], where)},
                        hint="crop it, or add a margin on its short side",
                    )
        exact = self._counter is not None
        report_lengths(self, lengths, self._findings, self._family, max_tokens=self._max_tokens, exact=exact)

    def place(self, row: int) -> dict[str, Any]:
        """File, line, id and element of a row, as arguments of `Findings.add`."""
        line, element = self._places[row]
        return {"file": self._file, "line": line, "id": self._ids[row] or None, "field": element}


class _Counts(dict[Size, int]):
    """Image tokens by size, -1 where the image processor cannot take it; `why` has the reason."""

    def __init__(self, family: TokenFamily, budget: int | None, *, several: bool) -> None:
        self._family = family
        self._budget = budget
        self._several = several
        self.why: dict[Size, str] = {}

    def __missing__(self, size: Size) -> int:
        try:
            if self._several:
                self[size] = self._family.several_image_tokens(*size, self._budget)
            else:
                self[size] = count_image_tokens(self._family, *size, self._budget)
        except ImageShapeError as error:
            self[size] = -1
            self.why[size] = str(error)
        return self[size]


def _row_of(chat: Chat) -> Row | None:
    """The conversation as a row of a directory; None if a sample cannot hold it."""
    if check_turns(chat, merge_turns=True):
        return None
    system, turns = to_turns(replace(chat, messages=merged(chat.messages)))
    return Row(
        id="-",
        source="",
        conversations=[
            TurnRow(
                turn.user,
                turn.assistant,
                [""] * len(images),
                list(turn.image_offsets) or UNSET,
                steps=[StepRow(list(step.calls), list(step.results)) for step in turn.steps] or UNSET,
            )
            for turn, images in turns
        ],
        system=system or UNSET,
        rejected=chat.rejected.text if chat.rejected is not None else UNSET,
        tools=chat.tools or UNSET,
    )
