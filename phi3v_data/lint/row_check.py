"""The checks of one row of another tool's file, in the words of that file."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phi3v_data.formats.base import RowFormat
from phi3v_data.formats.chat import Chat, Fault, ImageRef
from phi3v_data.formats.consumers.base import Consumer, OverRows, RowView
from phi3v_data.formats.placeholders import IMAGE, spell_out
from phi3v_data.formats.turns import check_characters, check_content, check_turns
from phi3v_data.json_text import JsonFault, field_path
from phi3v_data.messages import shown
from phi3v_data.validate.control import ControlTokens

_OTHER_MEDIA = {
    "<video>": ("video", "videos"),
    "<audio>": ("audio", "audios"),
    "<bbox>": ("objects",),
    "<ref-object>": ("objects",),
}
_UNREAD = frozenset({"role-unknown", "missing-field", "wrong-type"})


@dataclass(slots=True)
class CheckedRow:
    """Result of the checks of a row; `view` is None if it has no conversation, or several packed ones."""

    id: str = ""
    faults: list[Fault] = field(default_factory=list)
    view: RowView | None = None
    images: list[ImageRef] = field(default_factory=list)
    num_turns: int = 0
    packed: list[RowView] = field(default_factory=list)

    @property
    def views(self) -> list[RowView]:
        """The conversations of the row."""
        return self.packed if self.view is None else [self.view]


class RowCheck:
    """Checks rows of one format for one consumer.

    Args:
        markers: special strings that must not be in a text.
        own_is_error: the model is known, so that its own special strings are errors.
        root: folder that paths of images are relative to.
        hidden: codes of faults that are not reported of rows, as settings of the file cause them.
    """

    def __init__(
        self,
        format_: RowFormat,
        consumer: Consumer,
        markers: ControlTokens,
        root: Path,
        *,
        own_is_error: bool = False,
        hidden: frozenset[str] = frozenset(),
    ) -> None:
        self.format = format_
        self.consumer = consumer
        self.markers = markers
        self.root = root
        self.own_is_error = own_is_error
        self.hidden = hidden
        self.over_rows: OverRows = consumer.over_rows()

    def check(self, value: Any, number: int, text_faults: Iterable[JsonFault] = (), *, count: int = 1) -> CheckedRow:
        """All faults of a row, by its number in the file from 0 on.

        `value` is None if it has none; with a `count` of 0 it is not counted with others.
        """
        found = [_as_fault(fault) for fault in text_faults]
        result = CheckedRow(faults=self._judged(found, None))
        if value is None and found:
            return result
        if isinstance(value, list) and value and self.format.name == "qwen":
            self._check_packed(value, number, count, result)
        elif not isinstance(value, Mapping):
            hint = "Qwen's trainer reads arrays of rows: --format qwen" if isinstance(value, list) else ""
            result.faults.append(Fault("json-not-object", "", f"a row must be an object, not {shown(value)}", hint))
        else:
            self._check_object(value, number, count, result)
        return result

    def _check_packed(self, rows: list[Any], place: int, count: int, result: CheckedRow) -> None:
        """Several rows in one line, which are trained as one sequence."""
        for number, row in enumerate(rows):
            inner = CheckedRow()
            if isinstance(row, Mapping):
                self._check_object(row, place, count, inner)
            else:
                inner.faults.append(Fault("json-not-object", "", f"a row must be an object, not {shown(row)}"))
            for fault in inner.faults:
                where = f"[{number}].{fault.field}".rstrip(".")
                result.faults.append(Fault(fault.code, where, fault.message, fault.hint, fault.severity))
            result.images += [ImageRef(ref.value, f"[{number}].{ref.field}") for ref in inner.images]
            result.num_turns += inner.num_turns
            result.packed += inner.views

    def _check_object(self, row: Mapping[str, Any], number: int, count: int, result: CheckedRow) -> None:
        row_id = row.get("id")
        if isinstance(row_id, str | int) and not isinstance(row_id, bool):
            result.id = str(row_id)
        reading = self.format.read(row)
        chat = reading.chat
        view = None if chat is None else RowView(row, chat, self.format, self.root)
        judged = self._judged(reading.faults, view)
        if chat is not None:
            result.view = view
            result.images = list(chat.images)
            result.num_turns = sum(message.role == "assistant" for message in chat.messages)
            is_read = not any(fault.code in _UNREAD for fault in judged)
            if is_read:
                judged += self._judged(self._of_turns(chat), view)
            else:  # what would only follow from a message that was not read
                judged = [fault for fault in judged if fault.code != "image-count"]
            judged += self._judged(self._of_texts(chat, _placeholders(row)), view)
            if view is not None:
                named = {fault.field for fault in judged}
                roles = (fault for fault in self.consumer.check_roles(view) if fault.field not in named)
                judged += self._judged(roles, view)
                if is_read:
                    judged += self._judged(self.consumer.check_media(view), view)
                    if count:
                        self.over_rows.row(view, number, count)
        own = [*self.consumer.check(view), *self.consumer.check_weights(view)] if view is not None else []
        result.faults += [fault for fault in _once(judged, own) if fault.code not in self.hidden]

    def _judged(self, faults: Iterable[Fault], view: RowView | None) -> list[Fault]:
        """The faults that the consumer minds, with what it does."""
        return [fault for fault in (self.consumer.judge(fault, view) for fault in faults) if fault is not None]

    def _of_turns(self, chat: Chat) -> Iterator[Fault]:
        """Order of messages, empty texts, answers that are not trained."""
        has_tools = any(message.role in ("tool", "tool_call") for message in chat.messages)
        for fault in check_turns(chat):
            if not (has_tools and fault.code in ("turn-order", "no-turns")):
                yield fault
        yield from check_content(chat)
        for message in chat.messages:
            if message.role == "user" and message.images and not message.text.strip():
                yield Fault("image-only-turn", message.field, "the message has images and no text")

    def _of_texts(self, chat: Chat, used: frozenset[str]) -> Iterator[Fault]:
        """Placeholders, special strings and characters that a text must not have."""
        rejected = () if chat.rejected is None else (chat.rejected,)
        for message in (*chat.messages, *rejected):
            text = message.text
            for placeholder in used:
                text = text.replace(placeholder, " ")
            reserved = next((string for string in self.format.reserved if string in text), None)
            if reserved is not None:
                yield Fault(
                    "placeholder-in-text",
                    message.field,
                    f"the text has {shown(reserved)}, which {self.format.title} replaces",
                    f"write it with a space, as in {shown(spell_out(reserved, (reserved,)))}",
                )
            found = self.markers.find(text)
            if found is not None and found[0] != reserved:
                token, is_own = found
                own = is_own and self.own_is_error
                yield Fault(
                    "control-token",
                    message.field,
                    f"the text has {shown(token)}, "
                    + ("which the model reads as a control token" if own else "a marker of some model or format"),
                    "remove it: it is not part of the conversation",
                    "error" if own else "warning",
                )
        yield from check_characters(chat)


def _once(judged: list[Fault], own: list[Fault]) -> list[Fault]:
    """The faults that any reader finds and those of the consumer, each cause once."""
    if any(fault.code in ("image-moved", "image-ignored") for fault in own):  # of a tag, too
        judged = [fault for fault in judged if fault.code != "control-token" or IMAGE not in fault.message]
    systems = {_message(fault.field) for fault in own if fault.code == "system-message"}  # wherever it is
    judged = [fault for fault in judged if fault.code != "system-message-place" or _message(fault.field) not in systems]
    said = {(fault.code, fault.field) for fault in judged}
    if any(fault.code == "image-count" for fault in judged):  # it is not known which image belongs where
        said |= {("image-moved", fault.field) for fault in own}
    said |= {("image-moved", fault.field) for fault in judged if fault.code == "image-in-answer"}
    return [*judged, *(fault for fault in own if (fault.code, fault.field) not in said)]


def _message(field: str) -> str:
    """The path of the message that a field is in."""
    return field.rpartition(".")[0]


def _placeholders(row: Mapping[str, Any]) -> frozenset[str]:
    """Placeholders of files or boxes that the row has in a column, which are not checked here."""
    return frozenset(
        placeholder for placeholder, columns in _OTHER_MEDIA.items() if any(row.get(column) for column in columns)
    )


def _as_fault(fault: JsonFault) -> Fault:
    return Fault(fault.code, field_path(fault.path) if fault.path else "", fault.message, fault.hint)
