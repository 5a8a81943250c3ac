"""Reports all problems of a line that the fast path rejected.

The valid fields of the row are kept (`keep_valid_fields`), so that its id, texts and images are checked too.
"""

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import ValidationError

from phi3v_data.json_text import LENIENT, JsonFault, field_path, read_json
from phi3v_data.jsonl import BOM, MAX_LINE_BYTES, Line
from phi3v_data.messages import counted, escaped, shown
from phi3v_data.schema import Sample, ToolStep, Turn
from phi3v_data.validate.findings import Findings
from phi3v_data.validate.rowtypes import Row, TurnRow
from phi3v_data.wrong_values import complaint

_WEIGHT = "0 (context only) or 1 (trained)"


class BadRows:
    """Reports problems of single lines of one file."""

    def __init__(self, findings: Findings, file: str, *, labelled: bool = True) -> None:
        self.findings = findings
        self.file = file
        self.labelled = labelled

    def read(self, line: Line) -> Row | None:
        """Report all problems of a line; return the valid fields of the row, or None if there is no row."""
        add, number = self.findings.add, line.number
        if line.too_long:
            add(
                "line-too-long",
                f"the line is over {MAX_LINE_BYTES >> 20} MB and was not read",
                file=self.file,
                line=number,
                hint="is an image embedded as text? store it under images/ and refer to it by path",
            )
            return None
        value, faults = read_json(line.data)
        if value is None or not isinstance(value[0], dict):
            self._add(faults, {"file": self.file, "line": number})
        if value is None:
            return None
        if not isinstance(value[0], dict):
            in_array = isinstance(value[0], list)
            add(
                "json-not-object",
                f"a row must be an object, not {_kind(value[0])}",
                file=self.file,
                line=number,
                hint="is the whole file one JSON array? write one object per line" if in_array else "",
            )
            return None
        self._check_object(value[0], number, faults)
        return keep_valid_fields(value[0])

    def _add(self, faults: Iterable[JsonFault], place: dict[str, Any]) -> None:
        for fault in faults:
            field = field_path(fault.path) if fault.path else None
            self.findings.add(fault.code, fault.message, **place, field=field, hint=fault.hint)

    def _check_object(self, value: dict[str, Any], number: int, faults: list[JsonFault]) -> None:
        row_id = value.get("id")
        place: dict[str, Any] = {
            "file": self.file,
            "line": number,
            "id": row_id if isinstance(row_id, str) else None,
        }
        of_text = {"file": self.file, "line": number}
        for fault in faults:
            self._add([fault], place if fault.path else of_text)
        infinite = {fault.path for fault in faults if fault.code == "non-finite-number"}
        try:
            sample = Sample.model_validate(value)
        except ValidationError as error:
            self._report_schema(error, value, infinite, place)
        else:
            for index, turn in enumerate(sample.conversations):
                check_offsets(self.findings, index, turn.user, turn.images, turn.image_offsets, place)
        if isinstance(rejected := value.get("rejected"), str):
            check_rejected(self.findings, rejected, place)
        turns = value.get("conversations")
        if isinstance(turns, list) and turns and all(isinstance(turn, dict) and _is_zero(turn) for turn in turns):
            report_nothing_trained(self.findings, len(turns), place)
        for index, turn in enumerate(turns if isinstance(turns, list) else ()):
            if isinstance(turn, dict):
                check_blank(
                    self.findings,
                    index,
                    turn.get("user"),
                    turn.get("assistant") if self.labelled else None,
                    bool(turn.get("images")),
                    place,
                )

    def _report_schema(
        self,
        error: ValidationError,
        value: dict[str, Any],
        infinite: set[tuple[str | int, ...]],
        place: dict[str, Any],
    ) -> None:
        """Report Pydantic's errors with our codes, one per field."""
        seen: set[tuple[str | int, ...]] = set()
        for found in error.errors(include_url=False):
            path = found["loc"][:2] if found["loc"][:1] == ("meta",) else found["loc"]
            kind, given = found["type"], _at(value, path)
            if path in seen or path in infinite or kind == "string_unicode":
                continue  # `control.invalid_character` reports bad characters
            seen.add(path)
            where = {**place, "field": field_path(path)}
            name = escaped(str(path[-1]))
            if kind == "missing":
                self.findings.add("missing-field", f"the key '{name}' is missing", **where)
            elif kind == "extra_forbidden":
                self.findings.add("unknown-field", _unknown(path), **where, hint=_unknown_hint(path))
            elif kind == "too_short":
                if "steps" in path:
                    self.findings.add("wrong-type", f"'{name}' is empty: a step has at least one", **where)
                elif given == []:
                    self.findings.add("no-turns", "the row has no turns: 'conversations' is empty", **where)
            elif kind == "string_too_short":
                self.findings.add("empty-text", f"'{name}' is empty", **where)
            elif path[0] == "meta" and len(path) == 2:
                self.findings.add(
                    "wrong-type",
                    f"a value of 'meta' must be a string, number, boolean or null, not {_kind(given)}",
                    **where,
                    hint="meta is flat: join nested keys as in 'image.width'",
                )
            else:
                is_weight = path[0] == "conversations" and path[2:] == ("weight",)
                message = f"must be {_WEIGHT}, not {_kind(given)}" if is_weight else complaint(found, show=_kind)
                self.findings.add("wrong-type", message, **where)


def check_blank(
    findings: Findings, turn: int, user: object, assistant: object, has_images: bool, place: dict[str, Any]
) -> None:
    """Report empty texts of a turn: the answer (an error), the question (an error without images, a warning with them).
    None is ignored.
    """
    if isinstance(assistant, str) and not assistant.strip():
        findings.add(
            "empty-text",
            "the answer is empty, so the model cannot learn from it",
            **place,
            field=f"conversations[{turn}].assistant",
            hint="a split without answers is marked `labelled: false` in dataset.json",
        )
    if isinstance(user, str) and not user.strip():
        where = {**place, "field": f"conversations[{turn}].user"}
        if has_images:
            findings.add(
                "image-only-turn",
                "the turn has images and no text",
                **where,
                hint="write the question or instruction that the answer replies to, if there is one",
            )
        else:
            findings.add("empty-text", "the turn has neither text nor images", **where)


def check_rejected(findings: Findings, rejected: str, place: dict[str, Any]) -> None:
    """Report a rejected answer of white space only; an empty one counts as left out."""
    if rejected and not rejected.strip():
        findings.add(
            "empty-text",
            "the rejected answer has only white space",
            **place,
            field="rejected",
            hint="give the worse answer, or leave the key out",
        )


def report_nothing_trained(findings: Findings, num_turns: int, place: dict[str, Any]) -> None:
    """Report a row whose turns all have weight 0."""
    which = "the only turn has" if num_turns == 1 else f"all {num_turns} turns have"
    findings.add(
        "nothing-trained",
        f"{which} weight 0, so no answer of the row is trained or scored",
        **place,
        field="conversations",
        hint="leave out 'weight', or give 1, at each answer to be learned; else drop the row",
    )


def _is_zero(turn: dict[str, Any]) -> bool:
    """Whether a turn has weight 0 of the right type."""
    weight = turn.get("weight", 1)
    return type(weight) is int and weight == 0


def check_offsets(
    findings: Findings,
    turn: int,
    user: str,
    images: tuple[str, ...] | list[str],
    offsets: tuple[int, ...] | list[int],
    place: dict[str, Any],
) -> None:
    """Report invalid `image_offsets`: they must be one per image, non-decreasing and inside the text."""
    if not offsets:
        return
    message = ""
    if len(offsets) != len(images):
        message = f"{len(offsets)} image_offsets for {counted(len(images), 'image')}: there must be one per image"
    elif list(offsets) != sorted(offsets):
        message = "image_offsets must not decrease: images are in the order of their tags"
    elif offsets[-1] > len(user):
        message = f"image offset {shown(offsets[-1])} is after the end of 'user' ({len(user)} characters)"
    if message:
        findings.add("wrong-type", message, **place, field=f"conversations[{turn}].image_offsets")


def keep_valid_fields(value: dict[str, Any]) -> Row:
    """The row with all fields of a wrong type left empty; turns keep their number."""
    turns = value.get("conversations")
    answers = value.get("answers")
    return Row(
        id=_text(value, "id"),
        source=_text(value, "source"),
        conversations=[
            TurnRow(_text(turn, "user"), _text(turn, "assistant"), [path for _, path in _turn_images(turn)])
            if isinstance(turn, dict)
            else TurnRow("", "", [])
            for turn in (turns if isinstance(turns, list) else ())
        ],
        system=_text(value, "system"),
        answers=[item for item in answers if isinstance(item, str)] if isinstance(answers, list) else [],
        group=_text(value, "group"),
        meta=_scalars(value.get("meta")),
        rejected=_text(value, "rejected"),
        tools=_text(value, "tools"),
    )


def image_fields(value: object) -> Iterator[tuple[str, str]]:
    """(field, path) of every image of a row, in the order of `keep_valid_fields`."""
    turns = value.get("conversations") if isinstance(value, dict) else None
    for index, turn in enumerate(turns if isinstance(turns, list) else ()):
        if isinstance(turn, dict):
            for position, path in _turn_images(turn):
                yield f"conversations[{index}].images[{position}]", path


def load_row(data: bytes) -> dict[str, Any]:
    """Decode a line that was read before; empty if it has changed and is not a row any more."""
    try:
        value = LENIENT.decode(data.removeprefix(BOM).decode(errors="replace"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: dict[str, Any], key: str) -> str:
    item = value.get(key)
    return item if isinstance(item, str) else ""


def _scalars(value: object) -> dict[str, Any]:
    return (
        {key: item for key, item in value.items() if not isinstance(item, dict | list)}
        if isinstance(value, dict)
        else {}
    )


def _turn_images(turn: dict[str, Any]) -> list[tuple[int, str]]:
    images = turn.get("images")
    return [(i, path) for i, path in enumerate(images) if isinstance(path, str)] if isinstance(images, list) else []


def _at(value: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int)):
            value = value[part]  # type: ignore[index]  # the condition has told which of the two it is
        else:
            return None
    return value


def _kind(value: object) -> str:
    if isinstance(value, str):
        return f"the string {shown(value)}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"the number {shown(value)}"
    return shown(value)


def _unknown(path: tuple[str | int, ...]) -> str:
    where = "a row" if len(path) == 1 else "a step" if "steps" in path else "a turn"
    return f"{where} has no key {shown(path[-1])}"


def _unknown_hint(path: tuple[str | int, ...]) -> str:
    names = list((Sample if len(path) == 1 else ToolStep if "steps" in path else Turn).model_fields)
    near = difflib.get_close_matches(str(path[-1])[:60], names, 1)
    if near:
        return f"did you mean '{near[0]}'?"
    return "put your own fields into 'meta'" if len(path) == 1 else ""
