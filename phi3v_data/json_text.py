"""Reads JSON text of unknown origin: its value as far as it can be read, and everything that is wrong with the text.

Fast parsers silently keep the last of two equal keys; `is_whole` verifies that none was dropped.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from phi3v_data.jsonl import BOM
from phi3v_data.messages import escaped, shown

Path = tuple[str | int, ...]

_encode = msgspec.json.Encoder().encode

BLANK = " \t\r\n\v\f"

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class JsonFault:
    """Something wrong with a JSON text, under a code of the catalogue; `path` of the value that it is about."""

    code: str
    message: str
    hint: str = ""
    path: Path = ()


class _Pairs(dict[str, Any]):
    """A JSON object that records duplicate keys."""

    duplicates: tuple[str, ...] = ()


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = _Pairs(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice: dict[str, None] = {}
        for key, _ in pairs:
            if key in seen:
                twice[key] = None
            seen.add(key)
        result.duplicates = tuple(twice)
    return result


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) <= 4300 else math.inf  # the interpreter's limit on digits


LENIENT = json.JSONDecoder(object_pairs_hook=_pairs, parse_int=_whole_number, strict=False)
"""Reads what is almost JSON: raw control characters, NaN, duplicate keys."""

_STRICT = json.JSONDecoder()


def read_json(data: bytes, name: str = "line") -> tuple[tuple[Any] | None, list[JsonFault]]:
    """The value of a text in a tuple (it may be null), None if it has none, and its faults.

    `name` is that of the text in messages. Line ends inside the text are allowed.
    """
    faults: list[JsonFault] = []
    if data.startswith(BOM):
        data = data[len(BOM) :]
        faults.append(JsonFault("bom", f"the {name} starts with a byte order mark"))
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        faults.append(
            JsonFault(
                "invalid-utf8",
                f"byte {error.start} of the {name} (0x{data[error.start]:02x}) is not UTF-8",
                "the text was saved in another encoding, often latin-1 or cp1252: convert the file to UTF-8",
            )
        )
        text = data.decode(errors="replace")
    if not text.strip(BLANK):
        faults.append(JsonFault("blank-line", f"the {name} is blank"))
        return None, faults
    return _parse(text, name, faults), faults


def _parse(text: str, name: str, faults: list[JsonFault]) -> tuple[Any] | None:
    try:
        value = LENIENT.decode(text)
    except json.JSONDecodeError as error:
        faults.append(
            JsonFault("json-syntax", f"not JSON at character {error.pos + 1}: {error.msg}", _hint(error, text, name))
        )
        return None
    except RecursionError:
        faults.append(JsonFault("json-syntax", "arrays or objects nested too deeply"))
        return None
    if any(char < " " for char in text.strip(" \t\r\n")):
        _check_raw_control(text, faults)
    for path, item in walk(value):
        if isinstance(item, _Pairs):
            for key in item.duplicates:
                message = f"the key {shown(key)} is in the object twice; readers keep only one of the values"
                faults.append(JsonFault("duplicate-key", message, path=(*path, key)))
        elif isinstance(item, float) and not math.isfinite(item):
            message = "nan is not a valid number in JSON" if math.isnan(item) else "a number is infinite, or too large"
            faults.append(JsonFault("non-finite-number", message, "use null or leave the key out", path))
    return (value,)


def _hint(error: json.JSONDecodeError, text: str, name: str) -> str:
    in_line = name == "line"
    if error.msg == "Extra data":
        return "two objects on one line? put a line end between them" if in_line else "is a comma missing?"
    if text.startswith(("'", "None", "True", "False"), error.pos):
        return "this is Python: JSON has double quotes, null, true and false; write rows with a JSON library"
    if error.pos < len(text.rstrip()):
        return ""
    other = "the object spread over several lines" if in_line else "is a bracket missing"
    return f"the {name} ends too early: was the file cut off, or {other}?"


def _check_raw_control(text: str, faults: list[JsonFault]) -> None:
    """Report raw control characters inside strings, which JSON requires to be escaped."""
    try:
        _STRICT.decode(text)
    except json.JSONDecodeError as error:
        if error.msg.startswith("Invalid control character"):
            faults.append(
                JsonFault(
                    "json-syntax",
                    f"a raw control character {shown(text[error.pos : error.pos + 1])} at character {error.pos + 1}",
                    "inside a string, write it as an escape such as \\n or \\t",
                )
            )
    except (ValueError, RecursionError):
        return


def field_path(parts: Path) -> str:
    """`("conversations", 0, "user")` as `conversations[0].user`."""
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = escaped(part[:60])
            text += f".{name}" if text else name
    return text


def walk(value: object, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every value of a JSON document with its path, without recursion, since the depth is not limited."""
    stack: list[tuple[Path, Any]] = [(path, value)]
    while stack:
        path, item = stack.pop()
        yield path, item
        if isinstance(item, dict):
            stack.extend(((*path, key), child) for key, child in reversed(item.items()))
        elif isinstance(item, list):
            stack.extend(((*path, index), child) for index, child in reversed(list(enumerate(item))))


def count_quotes(data: bytes) -> int:
    """Unescaped quotes in JSON text: two per string."""
    if b"\\" not in data:
        return data.count(b'"')
    return data.count(b'"') - data.replace(b"\\\\", b"").count(b'\\"')


def spelled(value: object) -> bytes:
    """The text of `json.dumps(value, ensure_ascii=False)` in a third of its time; empty if msgspec cannot encode it.

    msgspec and `json` spell everything alike but numbers with a fraction, which the value must not have.
    """
    try:
        return msgspec.json.format(_encode(value), indent=0)
    except (TypeError, ValueError, OverflowError):
        return b""


def is_whole(data: bytes, value: object) -> bool:
    """Whether a value that a fast parser read from JSON text is all of it: no key was dropped as a duplicate."""
    return count_quotes(data) == count_quotes(msgspec.json.encode(value))


def invalid_character(text: str) -> str | None:
    """A description of the lone surrogate or NUL that makes a text invalid; None if the text is valid."""
    surrogate = _SURROGATE.search(text)
    if surrogate is not None:
        return f"a lone surrogate (\\u{ord(surrogate.group()):04x}) at character {surrogate.start()}"
    position = text.find("\0")
    return None if position < 0 else f"a NUL at character {position}"
