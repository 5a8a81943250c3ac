"""Pieces of the text of a JSON array: white space, keys of rows, where a row begins, whether it is an element."""

import json
import re
from collections.abc import Iterator

import msgspec
import numpy as np
import numpy.typing as npt

from phi3v_data.formats.row_block import Ints
from phi3v_data.json_text import LENIENT, read_json

SPACES = b" \t\r\n"
"""White space of JSON."""

IS_SPACE: npt.NDArray[np.bool_] = np.zeros(256, np.bool_)
"""Whether a byte is white space of JSON."""

IS_SPACE[list(SPACES)] = True
_MARGIN = 32  # characters at the end of an unfinished text that may be wrong because they are cut
_FIRST_KEY = re.compile(rb'\s*\{\s*("(?:[^"\\]|\\.)*")\s*:')
_STRING = r'"(?:[^"\\]|\\.)*+"'
_FIRST_MEMBER = re.compile(rf"\s*\{{\s*({_STRING})\s*:\s*")
_MEMBER = re.compile(rf"\s*,\s*({_STRING})\s*:\s*")
_CUT_MEMBER = re.compile(rf'\s*(?:[,{{]\s*(?:(?:{_STRING}|"[^"]*+)\s*)?)?')
_OBJECT = re.compile(r'(\{)(?=\s*")')
_OBJECT_INSIDE = re.compile(r'[^\s{\[:]\s*(\{)(?=\s*")')  # not the value of a key, nor the first one of an array
_LOOSE = json.JSONDecoder(strict=False)
_ELEMENT = msgspec.json.Decoder(msgspec.Raw)
_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw])


def trimmed(text: bytes, starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """The spans without white space at both ends."""
    array = np.frombuffer(text, np.uint8)
    starts, ends = starts.copy(), ends.copy()
    while len(wide := np.flatnonzero(starts < ends)) and (blank := IS_SPACE[array[starts[wide]]]).any():
        wide = wide[blank]
        starts[wide] += 1
        if len(wide) == 1:  # a long stretch, as after the last row
            (one,) = wide.tolist()
            starts[one] = ends[one] - len(text[starts[one] : ends[one]].lstrip(SPACES))
    while len(wide := np.flatnonzero(starts < ends)) and (blank := IS_SPACE[array[ends[wide] - 1]]).any():
        wide = wide[blank]
        ends[wide] -= 1
        if len(wide) == 1:
            (one,) = wide.tolist()
            ends[one] = starts[one] + len(text[starts[one] : ends[one]].rstrip(SPACES))
    return starts, ends


def blank_lines(text: bytes) -> int:
    """Line ends before the first byte that is not white space."""
    return text[: len(text) - len(text.lstrip(SPACES))].count(b"\n")


def first_key(text: bytes, start: int) -> bytes | None:
    """The first key of the object that begins here, behind white space, with its quotes; None if none does."""
    found = _FIRST_KEY.match(text, start)
    return found.group(1) if found else None


def row_keys(text: bytes, start: int) -> tuple[frozenset[str], frozenset[str]]:
    """The keys that tell the row that begins here, and the keys of the objects inside it, as far as it can be read.

    Those that tell it have arrays or objects, if it has such: an `id` is often in inner objects, too. A row without
    its last bracket may have the next rows inside it. Keys are with their quotes, bytes as Latin-1.
    """
    string = text.decode("latin-1")
    keys: dict[str, bool] = {}
    inner: set[str] = set()
    for key, at in _members(string, start):
        keys[key] = string[at : at + 1] in ("[", "{")
        try:
            value, end = _LOOSE.raw_decode(string, at)
        except (ValueError, RecursionError):
            break
        if isinstance(value, list | dict):
            inner.update(re.findall(rf"({_STRING})\s*:", string[at:end]))
    wide = {key for key, is_wide in keys.items() if is_wide}
    return frozenset(wide or keys), frozenset(inner)


def next_row(
    text: bytes, start: int, end: int, first: bytes | None, keys: frozenset[str], *, inside: bool
) -> tuple[int | None, bool]:
    """Where the next row begins, and whether an object before it is cut off by the end of the text.

    A row is an object whose first key is `first`, or that has one of `keys`, wherever.

    Args:
        end: the row begins before it, but may go on behind it.
        inside: of a broken row, whose inner objects are no rows.
    """
    string = text.decode("latin-1")
    is_cut = False
    for found in (_OBJECT_INSIDE if inside else _OBJECT).finditer(string, start, end):
        place = found.start(1)
        if first is not None and first_key(text, place) == first:
            return place, is_cut
        at = place
        for key, value_at in _members(string, place):
            if key in keys:
                return place, is_cut
            at = value_at
        is_cut = is_cut or _is_cut(string, at)
    return None, is_cut


def _members(text: str, start: int) -> Iterator[tuple[str, int]]:
    """The keys of the object that begins here, and where their values begin, up to what is not JSON."""
    found = _FIRST_MEMBER.match(text, start)
    while found is not None:
        yield found.group(1), found.end()
        try:
            _, end = _LOOSE.raw_decode(text, found.end())
        except (ValueError, RecursionError):
            return
        found = _MEMBER.match(text, end)


def _is_cut(text: str, at: int) -> bool:
    """Whether a member ends, from its value on, with the text; `at` may be that of an object without a whole key."""
    if text[at : at + 1] == "{" and _CUT_MEMBER.fullmatch(text, at):
        return True
    try:
        _, end = _LOOSE.raw_decode(text, at)
    except json.JSONDecodeError as error:
        return error.pos >= len(text) - _MARGIN or error.msg.startswith("Unterminated string")
    except (ValueError, RecursionError):
        return False
    return _CUT_MEMBER.fullmatch(text, end) is not None


def is_list(text: bytes) -> bool:
    """Whether a text is elements of an array, with commas between them."""
    return bool(text.strip(SPACES)) and is_json(b"[" + text + b"]")


def all_json(text: bytes, starts: Ints, ends: Ints) -> bool:
    """Whether a text has just these elements, with commas between them, all strictly JSON."""
    if not len(starts):
        return True
    try:
        return len(_ELEMENTS.decode(b"[" + text[starts[0] : ends[-1]] + b"]")) == len(starts)
    except (msgspec.MsgspecError, RecursionError):
        return False


def is_json(text: bytes) -> bool:
    """Whether an element has a value, even if it is not strictly JSON."""
    try:
        _ELEMENT.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return read_json(text)[0] is not None
    return True


def is_broken(text: bytes) -> bool:
    """Whether a text cannot be the start of an element."""
    try:
        _ELEMENT.decode(text)
    except msgspec.DecodeError as error:
        if "truncated" in str(error):
            return False
    except RecursionError:
        return False
    else:
        return False
    start = text.decode(errors="replace")
    try:
        LENIENT.raw_decode(start.lstrip())
    except json.JSONDecodeError as error:
        return error.pos < len(start) - _MARGIN and not error.msg.startswith("Unterminated string")
    except RecursionError:
        return False
    return False
