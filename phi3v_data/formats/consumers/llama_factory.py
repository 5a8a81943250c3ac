"""LLaMA-Factory (git ff6d4d1 of 2026-08-18; its converter and loader are those of 0.9.5 on PyPI)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from phi3v_data.formats.base import RowFormat
from phi3v_data.formats.chat import Fault
from phi3v_data.formats.consumers.base import Consumer, Effect, OverRows, RowView
from phi3v_data.formats.sharegpt import ShareGPT
from phi3v_data.messages import shown

DROPPED = "makes the row empty with a warning, and skips it"


class LlamaFactory(Consumer):
    """Reads ShareGPT rows, as an entry of `dataset_info.json` says."""

    name = "llama-factory"
    title = "LLaMA-Factory"
    formats = ("sharegpt",)
    files_only = True
    trains_all = True
    effects: ClassVar = {
        "turn-order": Effect(DROPPED),
        "last-turn-open": Effect(DROPPED),
        "system-message-place": Effect(DROPPED),
        "role-unknown": Effect(DROPPED),
        "no-turns": Effect(DROPPED),
        "image-count": Effect("stops, and names neither the file nor the line"),
        "placeholder-in-text": Effect("counts it as the place of a file, finds none, and stops"),
        "image-missing": Effect("tries its working directory then, with one warning for all files, and stops"),
        "wrong-type": Effect("stops"),
    }

    def check(self, view: RowView) -> Iterator[Fault]:
        columns = view.format.names.images if isinstance(view.format, ShareGPT) else ()
        for column in columns:
            if view.row.get(column) == "":
                yield Fault(
                    "wrong-type",
                    column,
                    "LLaMA-Factory takes an empty text for an image without a tag, and stops",
                    "write null or [], or leave the key out",
                )
        roles = [message.role for message in view.chat.messages]
        if "tool" in roles or "tool_call" in roles:
            turns = roles[1:] if roles[:1] == ["system"] else roles
            for number, role in enumerate(turns):
                if (role in ("user", "tool")) != (number % 2 == 0):
                    field = view.chat.messages[number + len(roles) - len(turns)].field
                    message = (
                        f"messages of a user or a tool and answers do not take turns here: LLaMA-Factory {DROPPED}"
                    )
                    yield Fault("turn-order", field, message)
                    return

    def check_settings(self, format_: RowFormat) -> Iterator[Fault]:
        entry = format_.entry if isinstance(format_, ShareGPT) else None
        if entry is None:
            return
        if entry.formatting == "openai":
            yield Fault(
                "system-text-added",
                "formatting",
                "with formatting 'openai', LLaMA-Factory adds 'detailed thinking off' to the system text of every row "
                "without tools",
                "write formatting 'sharegpt' and all tags",
            )
        if entry.formatting != "alpaca" and not entry.columns.messages:
            yield Fault(
                "settings-invalid",
                "columns.messages",
                "an entry with 'columns' that do not name 'messages' has none: LLaMA-Factory reads no messages",
                "add 'messages' to 'columns', or leave 'columns' out",
            )
        for tag in ("role_tag", "content_tag", "user_tag", "assistant_tag"):
            if getattr(entry.tags, tag) is None:
                yield Fault(
                    "settings-invalid",
                    f"tags.{tag}",
                    f"an entry with 'tags' that do not give '{tag}' has none: LLaMA-Factory makes every row empty",
                    "give all tags",
                )

    def over_rows(self) -> OverRows:
        return UniformTypes("LLaMA-Factory loads the file with a version of datasets that stops at it")


class UniformTypes(OverRows):
    """Reports the first row of each type that a column has in fewer rows than another, as typed tables refuse it."""

    def __init__(self, words: str) -> None:
        self._words = words
        self._columns: dict[str, dict[str, _Seen]] = {}

    def row(self, view: RowView, place: int, count: int = 1) -> None:
        for field, column, value in _fields(view):
            if kind := _kind(value):
                seen = self._columns.setdefault(column, {}).setdefault(kind, _Seen(place, field))
                seen.count += count
                if place < seen.place:
                    seen.place, seen.field = place, field

    def end(self, num_rows: int) -> Iterator[tuple[int | None, Fault]]:
        for column, kinds in self._columns.items():
            usual = max(kinds, key=lambda kind: kinds[kind].count)
            for kind, seen in kinds.items():
                if kind != usual:
                    message = f"{shown(column)} is {kind} here and {usual} elsewhere: {self._words}"
                    yield seen.place, Fault("mixed-types", seen.field, message, "use one type in all rows")


@dataclass(slots=True)
class _Seen:
    """First place of a type in a column, and how often it is there."""

    place: int
    field: str
    count: int = 0


def _fields(view: RowView) -> Iterator[tuple[str, str, Any]]:
    """Field, column and value of a row's fields and of those of its messages."""
    for key, value in view.row.items():
        yield key, key, value
    for where, message in view.messages:
        column = where.partition("[")[0]
        for key, value in message.items():
            yield f"{where}.{key}", f"{column}.{key}", value


def _kind(value: Any) -> str:
    """The type of a value in a typed column; empty for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "a text"
    if isinstance(value, int | float):
        return "a number"
    return "an array" if isinstance(value, list | tuple) else "an object"
