"""From a draft to the line of a row and the images that it names; what a row cannot hold makes a reject.

A draft of the usual types becomes a row without the format's models, to the same line.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from phi3v_data.draft import Draft, DraftImage, DraftTurn
from phi3v_data.errors import Reject
from phi3v_data.json_text import spelled
from phi3v_data.messages import shown
from phi3v_data.schema import Sample, Turn
from phi3v_data.sources.reads import note_file
from phi3v_data.tokens.family import ImageShapeError
from phi3v_data.tokens.registry import default_family
from phi3v_data.writing.images import PreparedImage, prepare_image
from phi3v_data.writing.request import StoreName
from phi3v_data.wrong_values import refusal

_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""A NUL as JSON spells it, not the six characters of its spelling."""

_CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
WEIGHTS_DROPPED = "weights-dropped"
"""Note on a sample whose turns of weight 0 are written as if they were trained (`plain`)."""


@dataclass(frozen=True, slots=True)
class RowSettings:
    """Settings shared by all rows of a directory."""

    source: str
    num_crops: int | None = None  # of the set's `dataset.json`; the validator judges by it
    plain: bool = False
    unlabelled: frozenset[str] = frozenset()
    roots: tuple[str, ...] = ()  # folders that must not show in the output; relative ones as the source was spelled
    all_unlabelled: bool = False
    store: StoreName = "files"

    def is_unlabelled(self, split: str) -> bool:
        """Whether the split's last answers stay empty."""
        return self.all_unlabelled or split in self.unlabelled


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one planned sample."""

    number: int
    split: str
    item: str
    group: str = ""

    @property
    def name(self) -> str:
        """The item's key in characters that JSON can hold."""
        return self.item.encode("utf-8", "backslashreplace").decode()

    @property
    def id(self) -> str:
        return f"{self.split}-{self.number:010d}"


def make_row(
    slot: Slot, draft: Draft, settings: RowSettings
) -> tuple[str, Mapping[str, PreparedImage], tuple[str, ...]]:
    """Convert a draft to the line of a row; return it with its images by name, and notes.

    Raises:
        Reject: an image or a text is not valid in a row.
    """
    if _is_usual(draft, slot, settings):
        row, prepared = _usual_row(slot, draft, settings)
        line = spelled(row).decode()
        if line and "\\u0000" not in line:
            return line, prepared, ()
    sample, prepared, notes = make_sample(slot, draft, settings)
    return to_line(sample, plain=settings.plain), prepared, notes


def make_sample(
    slot: Slot, draft: Draft, settings: RowSettings
) -> tuple[Sample, Mapping[str, PreparedImage], tuple[str, ...]]:
    """Convert a draft to a row; return it with its images by name, and notes.

    Raises:
        Reject: an image or a text is not valid in a row.
    """
    if not isinstance(draft, Draft):
        raise Reject("draft-invalid", f"convert() returned a {type(draft).__name__}; it must return a Draft")
    _check_shape(draft)
    prepared: dict[str, PreparedImage] = {}
    turns: list[Turn] = []
    notes = list(draft.notes)
    drafts = draft.all_turns()
    unlabelled = settings.is_unlabelled(slot.split)
    try:
        for index, turn in enumerate(drafts):
            names = [_take(image, prepared) for image in _prepare_all(turn, slot.split, settings.num_crops)]
            offsets = tuple(turn.image_offsets)
            _check_offsets(offsets, turn.user, len(names), index)
            if settings.plain and any(offsets):
                notes.append("offsets-dropped")
            last = index == len(drafts) - 1
            answer = "" if unlabelled and last else turn.assistant
            if isinstance(answer, str) and not answer.strip() and not unlabelled:
                raise Reject("empty-text", f"turn {index} has no answer; use --unlabelled if the source has none")
            if not names and isinstance(turn.user, str) and not turn.user.strip():
                raise Reject("empty-text", f"turn {index} has neither text nor images")
            turns.append(
                Turn(
                    images=tuple(names),
                    user=turn.user,
                    assistant=answer,
                    image_offsets=offsets,
                    weight=turn.weight,
                    steps=tuple(turn.steps),
                )
            )
        if not any(turn.weight for turn in turns):
            raise Reject("nothing-trained", "all turns have weight 0: no answer of the sample would be trained")
        if settings.plain and not all(turn.weight for turn in turns):
            notes.append(WEIGHTS_DROPPED)
        if settings.plain and draft.system:
            notes.append("system-dropped")
        sample = Sample(
            id=slot.id,
            source=settings.source,
            conversations=tuple(turns),
            system=draft.system,
            answers=() if unlabelled else tuple(draft.answers),
            group=draft.group or slot.group,
            meta=dict(draft.meta),
            rejected="" if unlabelled else draft.rejected,
            tools=draft.tools,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(piece) for piece in first["loc"])
        raise Reject("draft-invalid", refusal(where, first)) from None
    if sample.rejected and not sample.rejected.strip():
        raise Reject("empty-text", "the rejected answer has only white space")
    if settings.plain and sample.format > 1:
        code, what = ("preference-pair", "a rejected answer") if sample.rejected else ("tool-turn", "calls of tools")
        raise Reject(code, f"the row has {what}, which --plain cannot write")
    return sample, prepared, tuple(notes)


def to_line(sample: Sample, *, plain: bool) -> str:
    """The line of a row, verified to be UTF-8 and JSON.

    Raises:
        Reject: `invalid-text`, `non-finite-number`.
    """
    try:
        line = _fast_json(sample.to_row(plain=plain)) or sample.to_json(plain=plain)
        line.encode()
    except UnicodeEncodeError as error:
        raise Reject(
            "invalid-text", f"the text contains {error.object[error.start]!r}, which is not a character"
        ) from None
    except ValueError:
        raise Reject("non-finite-number", "meta contains NaN or infinity, which JSON cannot represent") from None
    if "\\u0000" in line and _NUL.search(line):
        raise Reject("invalid-text", "the text contains a NUL (\\x00), which the validator rejects")
    return line


def _fast_json(row: Mapping[str, Any]) -> str:
    """The text of `Sample.to_json` for a row; empty if the row needs Python's own encoder.

    Numbers with a fraction are only in `meta`.
    """
    return "" if any(isinstance(value, float) for value in row.get("meta", {}).values()) else spelled(row).decode()


_SEQUENCES = (list, tuple)
_SCALARS = (str, int, bool, type(None))  # a float is checked by the models
_LISTS = {"images": "images", "turns": "DraftTurn objects", "answers": "strings", "notes": "strings"}


def _check_shape(draft: Draft) -> None:
    """Reject invalid types that the format's models do not check, such as a string instead of a list."""
    if _is_plain(draft):
        return
    parts = [draft, *(draft.turns if isinstance(draft.turns, Sequence) else ())]
    for part in parts:
        if not isinstance(part, Draft | DraftTurn):
            raise Reject("draft-invalid", f"turns contains a {type(part).__name__}; it must contain DraftTurn objects")
        for name, content in _LISTS.items():
            value = getattr(part, name, ())
            if type(value) in (list, tuple):  # a check of an abstract class takes longer, and rows are many
                continue
            if not isinstance(value, Sequence) or isinstance(value, str | bytes):
                raise Reject("draft-invalid", f"{name} is a {type(value).__name__}; it must be a list of {content}")
        if not all(isinstance(offset, int) for offset in getattr(part, "image_offsets", ())):
            raise Reject("draft-invalid", "image_offsets must be integers")
    if not isinstance(draft.meta, Mapping):
        raise Reject("draft-invalid", f"meta is a {type(draft.meta).__name__}; it must be a dict")
    if not all(isinstance(note, str) and _CODE.fullmatch(note) for note in draft.notes):
        raise Reject("draft-invalid", f"notes must be kebab-case codes, not {list(draft.notes)!r:.80}")


def _is_plain(draft: Draft) -> bool:
    """Whether a draft has the usual types, seen at a glance; the others are looked at field by field."""
    if not (
        type(draft) is Draft
        and type(draft.meta) is dict
        and type(draft.turns) in _SEQUENCES
        and type(draft.images) in _SEQUENCES
        and type(draft.answers) in _SEQUENCES
        and type(draft.notes) in _SEQUENCES
        and not draft.notes
    ):
        return False
    for turn in draft.turns:
        if type(turn) is not DraftTurn or type(turn.images) not in _SEQUENCES:
            return False
        if type(turn.image_offsets) not in _SEQUENCES or turn.image_offsets:
            return False
    return True


def _is_usual(draft: Draft, slot: Slot, settings: RowSettings) -> bool:
    """Whether nothing but an image can make a reject of a draft, as all its values are what the format's models want.

    Such a draft becomes a row without these models, which take as long as everything else.
    """
    if (
        not _is_plain(draft)
        or settings.plain
        or settings.is_unlabelled(slot.split)
        or draft.rejected != ""
        or draft.tools != ""
        or type(draft.system) is not str
        or type(draft.group or slot.group) is not str
    ):
        return False
    is_trained = False
    for turn in draft.all_turns():
        user, answer = turn.user, turn.assistant
        if type(user) is not str or type(answer) is not str or type(turn.weight) is not int or turn.steps:
            return False
        if not answer.strip() or not (turn.images or user.strip()) or turn.weight not in (0, 1):
            return False
        is_trained = is_trained or turn.weight == 1
    for key, value in draft.meta.items():
        if type(key) is not str or type(value) not in _SCALARS:
            return False
    for text in draft.answers:
        if type(text) is not str:
            return False
    return is_trained


def _usual_row(slot: Slot, draft: Draft, settings: RowSettings) -> tuple[dict[str, Any], Mapping[str, PreparedImage]]:
    """The row of a draft of which `_is_usual` holds, as `Sample.to_row` gives it, and its images by name.

    Raises:
        Reject: of an image.
    """
    prepared: dict[str, PreparedImage] = {}
    turns = []
    for turn in draft.all_turns():
        names: list[str] = []
        if turn.images:
            names = [_take(image, prepared) for image in _prepare_all(turn, slot.split, settings.num_crops)]
        entry: dict[str, Any] = {"images": names, "user": turn.user, "assistant": turn.assistant}
        if not turn.weight:
            entry["weight"] = 0
        turns.append(entry)
    row: dict[str, Any] = {"id": slot.id, "source": settings.source, "conversations": turns}
    if draft.system:
        row["system"] = draft.system
    if draft.answers:
        row["answers"] = draft.answers
    if group := draft.group or slot.group:
        row["group"] = group
    if draft.meta:
        row["meta"] = draft.meta
    return row, prepared


def _prepare_all(turn: DraftTurn, split: str, num_crops: int | None) -> list[PreparedImage]:
    for image in turn.images:
        content = image.content if isinstance(image, DraftImage) else image
        if isinstance(content, str | Path):
            note_file(content)
    if not turn.images:
        return []
    prepared = [prepare_image(image, split) for image in turn.images]
    family = default_family()
    budget = family.choose_budget(None, num_crops)
    for image, each in zip(turn.images, prepared, strict=True):
        try:
            family.image_tokens(each.width, each.height, budget)
        except ImageShapeError as error:
            where = (isinstance(image, DraftImage) and image.where) or shown(each.record.name)
            raise Reject("image-aspect", f"{where}: {error}") from None
    return prepared


def _take(image: PreparedImage, prepared: dict[str, PreparedImage]) -> str:
    name = image.record.name
    if prepared.setdefault(name, image).record != image.record:
        raise Reject("image-name-collision", f"the sample uses the image name {shown(name)} for two different images")
    return name


def _check_offsets(offsets: Sequence[int], user: str, num_images: int, index: int) -> None:
    if not offsets:
        return
    if len(offsets) != num_images:
        raise Reject("draft-invalid", f"turn {index} has {num_images} images and {len(offsets)} image_offsets")
    if list(offsets) != sorted(offsets) or offsets[0] < 0 or offsets[-1] > len(user):
        raise Reject("draft-invalid", f"turn {index}: image_offsets must rise from 0 to the length of the user's text")
