"""Base class of consumers: one class in one module of this folder, found by being there.

class MyTool(Consumer):
    name = "my-tool"
    effects = {"turn-order": Effect("drops the row")}     # what it does where a row has a fault of any reader
    def check(self, view): ...                            # what only this tool objects to
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from phi3v_data.formats.base import RowFormat
from phi3v_data.formats.chat import Chat, Fault
from phi3v_data.messages import counted, shown
from phi3v_data.schema import Severity

_WEIGHTS = ("weight", "loss", "loss_scale")
_NOT_KNOWN = " is not one of "


@dataclass(frozen=True, slots=True)
class Effect:
    """Behavior of a tool where a row has a fault: the end of a sentence that begins with its title."""

    words: str
    severity: Severity | None = None


@dataclass(frozen=True, slots=True)
class RowView:
    """A row as a consumer checks it.

    `root`: folder that paths of images are relative to. `is_export`: the row is that of a sample in an export, which
    would write its images as the consumer wants them.
    """

    row: Mapping[str, Any]
    chat: Chat
    format: RowFormat
    root: Path
    is_export: bool = False

    @property
    def messages(self) -> list[tuple[str, Mapping[str, Any]]]:
        """The messages of the row with their paths."""
        found = []
        for key in ("messages", "conversations", "conversation", "prompt", "completion", *self.own_names):
            value = self.row.get(key)
            if isinstance(value, list | tuple):
                found += [(f"{key}[{n}]", message) for n, message in enumerate(value) if isinstance(message, Mapping)]
        return found

    @property
    def own_names(self) -> Sequence[str]:
        """Columns of messages under a name of the file's own."""
        names = getattr(self.format, "names", None)
        known = ("messages", "conversations", "conversation")
        return () if names is None else [name for name in names.messages if name not in known]

    @property
    def has_images(self) -> bool:
        """Whether the row has an image in a column."""
        return any(self.row.get(key) not in (None, "", []) for key in ("image", "images"))


class OverRows:
    """State of the checks that look at several rows of a file; a consumer returns a fresh one per file."""

    def row(self, view: RowView, place: int, count: int = 1) -> None:
        """Look at a row; `count` rows from here on are like it in the types of their fields.

        `place` is its line or its number: it rises from row to row, but rows do not come in order.
        """

    def end(self, num_rows: int) -> Iterator[tuple[int | None, Fault]]:
        """Faults of the file with the places of their rows, None for the whole file."""
        yield from ()


class Consumer:
    """A tool that reads rows; the class itself is a reader of which nothing is known."""

    name: ClassVar[str] = "any"
    title: ClassVar[str] = "a reader"
    formats: ClassVar[tuple[str, ...]] = ()  # that it reads; an exported row is checked in the first
    effects: ClassVar[Mapping[str, Effect]] = {}
    legal: ClassVar[frozenset[str]] = frozenset()  # codes of faults that it does not mind
    # Of rows alike but for the strings that are not empty, `check` sees one, and all those that the next two name:
    suspect: ClassVar[re.Pattern[bytes] | None] = None  # JSON text of rows that `check` has to look at
    checks_images: ClassVar[bool] = False  # `check` looks at what an image is given as: rows with images
    files_only: ClassVar[bool] = False  # it opens images as files: neither URLs nor data URLs
    trains_all: ClassVar[bool] = False  # it reads no weights of answers
    roles: ClassVar[tuple[str, ...]] = ()  # names of roles that it knows, if it knows fewer than others
    role_keys: ClassVar[tuple[str, ...]] = ("role", "from")
    media: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # tag -> columns of its files, which it counts

    def judge(self, fault: Fault, view: RowView | None) -> Fault | None:
        """A fault that any reader would find, with what this tool does; None if it does not mind."""
        if fault.code in self.legal:
            return None
        effect = self.effects.get(fault.code)
        said = fault.message
        if fault.code == "role-unknown" and self.roles:
            said = f"{said.partition(_NOT_KNOWN)[0]}{_NOT_KNOWN}{', '.join(self.roles)}"
        if effect is None:
            return replace(fault, message=said)
        message = f"{said}: {self.title} {effect.words}"
        return replace(fault, message=message, severity=effect.severity or fault.severity)

    def check(self, view: RowView) -> Iterator[Fault]:
        """Faults that only this tool has with a row."""
        yield from ()

    def check_weights(self, view: RowView) -> Iterator[Fault]:
        """Faults of answers that must not be trained, which this tool trains."""
        for where, message in view.messages if self.trains_all else ():
            for key in _WEIGHTS:
                value = message.get(key)
                if isinstance(value, int | float) and not value:
                    text = f"{self.title} does not read {shown(key)}: it trains the answer"
                    yield Fault("key-ignored", f"{where}.{key}", text, "leave the row out if it must not be trained")

    def check_roles(self, view: RowView) -> Iterator[Fault]:
        """Faults of roles that other tools know under this name; a system message has its own."""
        for where, message in view.messages if self.roles else ():
            key = next((key for key in self.role_keys if key in message), "")
            name = message.get(key)
            if isinstance(name, str) and name not in (*self.roles, "system"):
                yield Fault("role-unknown", f"{where}.{key}", f"the role {shown(name)}{_NOT_KNOWN}")

    def check_media(self, view: RowView) -> Iterator[Fault]:
        """Faults of videos and other files of which there are more or fewer than their tags in the texts."""
        yield from self.count_media(view, self.media)

    def count_media(self, view: RowView, media: Mapping[str, tuple[str, ...]]) -> Iterator[Fault]:
        """`check_media` for tags and the columns of their files."""
        for tag, columns in media.items():
            column = next((name for name in columns if view.row.get(name)), "")
            num_files, num_tags = num_refs(view.row.get(column)), self.num_tags(view, tag)
            if column and num_files != num_tags:
                said = f"the texts have {counted(num_tags, f'{tag} tag')} for {counted(num_files, tag.strip('<>'))}"
                yield Fault("image-count", column, said, f"give one {tag} per file, where it belongs")

    def num_tags(self, view: RowView, tag: str) -> int:
        """Tags in the texts that it reads them in."""
        return sum(message.text.count(tag) for message in view.chat.messages)

    def check_file(self, name: str, kind: str) -> Iterator[Fault]:
        """Faults of a file as a whole: of its name, and of its kind (`lines`, `array`, `gzip` or `parquet`)."""
        yield from ()

    def check_settings(self, format_: RowFormat) -> Iterator[Fault]:
        """Faults of the settings beside the file."""
        yield from ()

    def over_rows(self) -> OverRows:
        """A fresh state for one file."""
        return OverRows()


def packed_file(reads: str) -> Fault:
    """The fault of a gzip file, which may be kept so as long as it is not read; `reads`: what its reader wants."""
    return Fault("file-encoding", "", f"{reads}, and stops at a gzip file", "unpack it first", "warning")


def num_refs(value: Any) -> int:
    """How many files a column of a row names: one or an array of them, each a path or an array of frames."""
    return len(value) if isinstance(value, list | tuple) else int(value not in (None, ""))


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message whose content is a string; empty for blocks."""
    content = message.get("content", message.get("value"))
    return content if isinstance(content, str) else ""


def content_key(message: Mapping[str, Any]) -> str:
    """The key of a message's content."""
    return "value" if "value" in message and "content" not in message else "content"


def blocks_of(message: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    """The blocks of a message that are objects, with their numbers."""
    content = message.get("content")
    if not isinstance(content, list | tuple):
        return []
    return [(number, block) for number, block in enumerate(content) if isinstance(block, Mapping)]
