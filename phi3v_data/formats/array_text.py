"""Pieces of the text of a JSON array: white space, the first key of a row, and whether a piece is an element."""

import json
import re

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
