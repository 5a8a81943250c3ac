"""LLaMA-Factory (git ff6d4d1 of 2026-08-18; its converter and loader are those of 0.9.5 on PyPI)."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from phi3v_data.formats.base import RowFormat
from phi3v_data.formats.chat import Fault
from phi3v_data.formats.consumers.base import Consumer, Effect, OverRows, RowView, packed_file
from phi3v_data.formats.dataset_info import Columns, Entry
from phi3v_data.formats.sharegpt import ShareGPT
from phi3v_data.messages import shown

DROPPED = "makes the row empty with a warning, and skips it"
_KINDS = ("arrow", "csv", "json", "jsonl", "parquet", "txt")
_USUAL = Columns(videos="videos", audios="audios", kto_tag="kto_tag")
_DEFAULTS = Columns(prompt="instruction", query="input", response="output")  # of an entry without columns
_THOUGHT = re.compile("<think>.*?</think>", re.DOTALL)


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
        "key-ignored": Effect("takes the message, and ignores this column"),
    }

    def judge(self, fault: Fault, view: RowView | None) -> Fault | None:
        if fault.code == "image-count" and view is not None and any(_hidden(view)):
            return None  # `check` says why
        if view is not None and fault.field and fault.field == _columns(view).history:
            return replace(fault, message=f"{fault.message}: LLaMA-Factory ignores it")
        if view is not None and fault.field and fault.field == _columns(view).kto_tag:
            if fault.code == "nothing-trained":
                return None  # of KTO
            return replace(fault, message=f"{fault.message}: LLaMA-Factory reads the row as one without it")
        return super().judge(fault, view)

    def check_media(self, view: RowView) -> Iterator[Fault]:
        columns = _columns(view)
        named = {"<video>": columns.videos, "<audio>": columns.audios}
        yield from self.count_media(view, {tag: (column,) for tag, column in named.items() if column})

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
        yield from _hidden(view)
        yield from _tools(view)
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

    def check_file(self, name: str, kind: str) -> Iterator[Fault]:
        suffix = Path(name).suffix
        if suffix == ".gz":  # under another name, `datasets` unpacks it
            yield packed_file("LLaMA-Factory goes by the end of a file's name")
        elif suffix.removeprefix(".") not in _KINDS:
            words = f"LLaMA-Factory reads files whose names end in {', '.join(_KINDS)}, and stops at {shown(suffix)}"
            yield Fault("file-encoding", "", words, "rename it")

    def over_rows(self) -> OverRows:
        return _OverRows("LLaMA-Factory loads the file with a version of datasets that stops at it")


class UniformTypes(OverRows):
    """Reports the first row of each type that a column has in fewer rows than another, as typed tables refuse it."""

    def __init__(self, words: str) -> None:
        self._words = words
        self._columns: dict[str, dict[str, _Seen]] = {}

    def row(self, view: RowView, place: int, count: int = 1) -> None:
        for field, column, value in _fields(view):
            if kind := _kind(value):
                seen = self._columns.setdefault(column, {}).setdefault(kind, _Seen(place, field))
                seen.add(place, field, count)

    def end(self, num_rows: int) -> Iterator[tuple[int | None, Fault]]:
        for column, kinds in self._columns.items():
            usual = max(kinds, key=lambda kind: kinds[kind].count)
            for kind, seen in kinds.items():
                if kind != usual:
                    message = f"{shown(column)} is {kind} here and {usual} elsewhere: {self._words}"
                    yield seen.place, Fault("mixed-types", seen.field, message, "use one type in all rows")


class _OverRows(UniformTypes):
    """Reports also columns that no row has, and a role that is spelled in two ways: an entry names one."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self._spellings: dict[str, dict[str, _Seen]] = {}  # role -> name
        self._entry: Entry | None = None
        self._keys: set[str] = set()
        self._num_rows = 0
        self._all_begin_with_system = True

    def row(self, view: RowView, place: int, count: int = 1) -> None:
        super().row(view, place, count)
        self._num_rows += count
        self._keys.update(view.row)
        if not isinstance(view.format, ShareGPT):
            return
        if view.format.entry is not None:
            self._entry = view.format.entry
            roles = [message.role for message in view.chat.messages]
            self._all_begin_with_system &= roles[:1] == ["system"]
            return
        for where, message in view.messages:
            key = "role" if "role" in message else "from"
            name = str(message.get(key))
            names = self._spellings.setdefault(view.format.names.roles.get(name, ""), {})
            names.setdefault(name, _Seen(place, f"{where}.{key}")).add(place, f"{where}.{key}", count)

    def end(self, num_rows: int) -> Iterator[tuple[int | None, Fault]]:
        yield from super().end(num_rows)
        if self._entry is not None and self._num_rows == num_rows:  # a row that was not read may have any column
            for column, name in self._read(self._entry):
                if name not in self._keys:
                    words = f"LLaMA-Factory reads {shown(name)} as '{column}' of each row, no row has it, and it stops"
                    hint = f"leave '{column}' out of 'columns' in dataset_info.json, or give it in a row"
                    yield None, Fault("settings-invalid", f"columns.{column}", words, hint)
        for names in self._spellings.values():
            usual = max(names, key=lambda name: names[name].count)
            for name, seen in names.items():
                if name != usual:
                    said = f"the role {shown(usual)} is {shown(name)} here: LLaMA-Factory reads one name, and {DROPPED}"
                    yield seen.place, Fault("role-unknown", seen.field, said, "use one name in all rows")

    def _read(self, entry: Entry) -> Iterator[tuple[str, str]]:
        """The columns that the converter of an entry reads of each row, beside that of messages, and their names."""
        is_alpaca = entry.formatting == "alpaca"
        named = entry.columns if "columns" in entry.model_fields_set else _DEFAULTS
        read = ["tools", "images", "videos", "audios", "kto_tag"]
        if is_alpaca or not self._all_begin_with_system:
            read.append("system")
        if is_alpaca:
            read += ["prompt", "query", "response", "history"]
        if entry.ranking:
            read += ["chosen", "rejected"]
        for column in read:
            if name := getattr(named, column):
                yield column, name


def _columns(view: RowView) -> Columns:
    """The columns that the entry of a file names, else some of those that are usual."""
    entry = view.format.entry if isinstance(view.format, ShareGPT) else None
    return _USUAL if entry is None else entry.columns


def _hidden(view: RowView) -> Iterator[Fault]:
    """Faults of columns that the entry of a file does not name: only that of messages has a usual name."""
    entry = view.format.entry if isinstance(view.format, ShareGPT) else None
    if entry is None:
        return
    named = entry.columns if "columns" in entry.model_fields_set else Columns()
    for column in ("images", "system", "tools"):
        if view.row.get(column) and getattr(named, column) is None:
            words = f"'columns' in dataset_info.json do not name {shown(column)}: LLaMA-Factory does not see it"
            code = "image-ignored" if column == "images" else "key-ignored"
            yield Fault(code, column, words, f"add {shown(column)}, beside 'messages'")


def _tools(view: RowView) -> Iterator[Fault]:
    """Faults of tools and of calls that LLaMA-Factory cannot parse."""
    if not isinstance(view.format, ShareGPT):
        return
    column, entry = view.format.names.tools, view.format.entry
    tools = view.row.get(column) if column else None
    is_open = entry is not None and entry.formatting == "openai"  # takes an array, too
    if tools and not (_parsed(tools) is not None or (is_open and not isinstance(tools, str))):
        words = f"{shown(column)} is {shown(tools)}, not JSON text: LLaMA-Factory stops"
        yield Fault("wrong-type", column, words, "write the JSON text of an array")
    for message in view.chat.messages:
        if message.role == "tool_call":
            calls = _parsed(_THOUGHT.sub("", message.text))
            calls = calls if isinstance(calls, list) else [calls]
            if not all(isinstance(call, dict) and {"name", "arguments"} <= call.keys() for call in calls):
                words = "a call of tools is not JSON text with 'name' and 'arguments': LLaMA-Factory stops"
                yield Fault("wrong-type", message.field, words)


def _parsed(text: Any) -> Any:
    """The value of a JSON text; None if it is not one."""
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None


@dataclass(slots=True)
class _Seen:
    """First place of a type in a column, and how often it is there."""

    place: int
    field: str
    count: int = 0

    def add(self, place: int, field: str, count: int) -> None:
        """Count rows from a place on."""
        self.count += count
        if place < self.place:
            self.place, self.field = place, field


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
