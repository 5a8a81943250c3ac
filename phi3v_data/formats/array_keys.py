"""Finds the elements of a JSON array by the key that all of them begin with, without a scan of brackets and quotes."""

import msgspec
import numpy as np
import numpy.typing as npt

from phi3v_data.formats.array_text import IS_SPACE, SPACES
from phi3v_data.formats.row_block import Ints, rare_positions

Bytes = npt.NDArray[np.uint8]

_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw])
_MAX_SPACES = 32  # in a row, around braces and commas
_QUOTE, _COMMA, _OPEN = b'",{'


def spans_at_keys(text: bytes, key: bytes) -> tuple[Ints, Ints, int] | None:
    """Starts and ends of the elements of a text, but for the last, and where the text of the last begins.

    The text begins with an element, and its last one may be cut off. None if the elements are not all objects whose
    first key is `key` (with its quotes), or if one is not JSON. The result is exact: the decoder has to find as many
    elements before the last one, each as long as here.
    """
    array: Bytes = np.frombuffer(text + bytes(_MAX_SPACES + 1 + len(key)), np.uint8)
    opens = rare_positions(array == _OPEN)
    keys = _behind_spaces(array, opens + 1, 1)
    if keys is None:
        return None
    starts = opens
    for place, byte in enumerate(key):
        same = array[keys + place] == byte
        starts, keys = starts[same], keys[same]
    if len(starts) < 2 or text[: starts[0]].strip(SPACES):
        return None
    commas = _behind_spaces(array, starts[1:] - 1, -1)
    if commas is None or not (array[commas] == _COMMA).all():
        return None
    lasts = _behind_spaces(array, commas - 1, -1)
    if lasts is None:
        return None
    starts, ends = starts[:-1], lasts + 1
    try:
        elements = _ELEMENTS.decode(b"[" + text[starts[0] : ends[-1]] + b"]")
    except (msgspec.MsgspecError, RecursionError):
        return None
    sizes = np.fromiter(map(len, elements), np.int64, len(elements))
    if not np.array_equal(sizes, ends - starts):
        return None
    return starts, ends, int(commas[-1]) + 1


def _behind_spaces(array: Bytes, places: Ints, step: int) -> Ints | None:
    """The first places from here on, or back, without white space; None if there is much of it."""
    for _ in range(_MAX_SPACES):
        blank = IS_SPACE[array[places]]
        if not blank.any():
            return places
        places = places + step * blank
    return None
