"""The neutral form of a conversation between a foreign row and a sample.

A format reads its own rows into a `Chat` and writes a `Chat` as its own row; only `turns.py` knows what a sample of
this project can hold. Texts and images of a message are `parts` in the order of the text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from phi3v_data.schema import Scalar, Severity

Role: TypeAlias = Literal["system", "user", "assistant", "tool_call", "tool"]


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image as a row refers to it.

    `value`: a path, a URL, a data URL, or the encoded bytes. `field`: its path in the row, such as `images[1]`.
    """

    value: str | bytes
    field: str = ""


Part: TypeAlias = str | ImageRef


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `field`: path of its text in the row, such as `messages[2].content`."""

    role: Role
    parts: tuple[Part, ...]
    weight: int = 1  # 0: an answer that is context only
    field: str = ""

    @property
    def text(self) -> str:
        """The text without its images."""
        parts = self.parts
        if len(parts) == 1 and isinstance(only := parts[0], str):
            return only
        return "".join([part for part in parts if isinstance(part, str)])

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """The images in order."""
        return tuple([part for part in self.parts if isinstance(part, ImageRef)])


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation with all that comes with it."""

    messages: tuple[Message, ...]
    id: str = ""
    answers: tuple[str, ...] = ()
    group: str = ""
    meta: Mapping[str, Scalar] = field(default_factory=dict)
    rejected: Message | None = None  # of a preference pair: the last message is the chosen answer
    tools: str = ""  # JSON text of the tools that the conversation may call

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """The images of all messages, in order."""
        return tuple([part for message in self.messages for part in message.parts if isinstance(part, ImageRef)])


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with a row, under a code of the catalogue; `field` as it is called in the row."""

    code: str
    field: str
    message: str
    hint: str = ""
    severity: Severity | None = None  # None: that of the code


@dataclass(frozen=True, slots=True)
class Reading:
    """Result of reading a row: the conversation, None if it has none that can be used, and the faults of the row."""

    chat: Chat | None
    faults: Sequence[Fault] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """A row in a foreign format.

    `lost`: codes of what the format cannot carry, so that the row is only written with `--lossy`. `left_out`: names of
    fields that do not affect training and that the format's reader would refuse or misread (`id`, `meta`).
    """

    row: dict[str, Any]
    lost: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
