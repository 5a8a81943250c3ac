"""Formats text from data for messages: printable, quoted and short, without raw cells or escape codes."""

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

MAX_MESSAGE = 300
"""Longest message that is recorded, in characters."""

MAX_ERROR = 1000
"""Longest line that is printed about why a command could not run: it has paths, and commands to copy."""

_SHOWN = 80
_TAIL = 100
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except line feed and tab, bidirectional control characters, and lone surrogates."""


def shown(value: object, limit: int = _SHOWN) -> str:
    """A value from the data for a message: text in quotes, cut to `limit` characters, escaped."""
    if isinstance(value, str):
        text = escaped(value[: limit + 1])
        return f"'{text[:limit]}…'" if len(text) > limit else f"'{text}'"
    if isinstance(value, list | tuple | dict):
        kind = "an object" if isinstance(value, dict) else "an array"
        return f"{kind} of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 4 * limit:
        return f"a number of {value.bit_length()} bits"
    return escaped(str(value))[:limit]


def counted(number: int, noun: str, plural: str = "") -> str:
    """A count with its noun: `1 image`, `2,000 images`; give `plural` if it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def join_words(words: Sequence[Any], limit: int = 6, *, each: Callable[[Any], str] = str, noun: str = "") -> str:
    """The first words and the number of the others: `a, b and 3 more`; `a, b and 3 more sizes` with the noun `size`.

    `each` writes one word; it is called for those that are shown.
    """
    text = ", ".join(map(each, words[:limit]))
    rest = len(words) - limit
    if rest <= 0:
        return text
    return f"{text} and {counted(rest, f'more {noun}') if noun else f'{rest:,} more'}"


def escaped(text: str) -> str:
    """`text` with all characters that are not printable escaped, including lone surrogates."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii") for char in text
    )


def printable(text: str) -> str:
    """`text` with control characters and lone surrogates escaped and the rest unchanged; JSON stays JSON."""
    return _STEERING.sub(_escape, text)


def _escape(match: "re.Match[str]") -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 32 else f"\\u{code:04x}"


def shown_path(path: "str | os.PathLike[str]") -> str:
    """A path that the user gave, in quotes: whole, as its end tells it from others, and escaped."""
    return f"'{escaped(os.fspath(path))}'"


def short(message: str, limit: int = MAX_MESSAGE) -> str:
    """A message ready to be printed or recorded: escaped, and at most `limit` characters.

    A longer one is cut in the middle: its start says where the problem is, its end what to do.
    """
    text = escaped(message[: limit * 4] + message[-limit:] if len(message) > limit * 5 else message)
    if len(text) <= limit:
        return text
    return f"{text[: limit - _TAIL - 3]} … {text[-_TAIL:]}"
