"""Cuts a JSON array of any size into its elements, in bounded memory, with the line and byte offset of each.

The text is scanned in chunks for quotes, brackets and commas. An element that is not JSON, because a bracket or a
quote is missing, would swallow the rest of the file: it ends where the next row begins, which is the next object that
has a key of the rows (`array_text.next_row`), and the text is scanned again from there.

A chunk whose elements all begin with that key is not scanned: it is cut where the key begins an object behind a comma,
if the decoder finds elements of just these lengths (`array_keys`).
"""

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from phi3v_data.formats.array_keys import spans_at_keys
from phi3v_data.formats.array_text import (
    SPACES,
    all_json,
    blank_lines,
    first_key,
    is_broken,
    is_json,
    is_list,
    next_row,
    row_keys,
    trimmed,
)
from phi3v_data.formats.row_block import Ints, RowBlock, odd_positions
from phi3v_data.json_text import JsonFault
from phi3v_data.jsonl import BOM, MAX_LINE_BYTES

Kinds = npt.NDArray[np.int8]

START, COMMA, NO_COMMA, END = range(4)
"""Bounds of elements: the array's opening bracket, a comma, an opening bracket without a comma, the closing bracket."""

_CHUNK = 1 << 21
_SMALL_CHUNK = 1 << 14  # after a broken element, as the chunk may have others
_PROBE = 1 << 20  # bytes of an unfinished element from which on it is examined for being broken
_QUOTE, _BACKSLASH, _COMMA, _OPEN, _CLOSE, _LF = b'"\\,{}\n'
_STEPS = np.zeros(256, np.int8)
_STEPS[list(b"{[")] = 1
_STEPS[list(b"}]")] = -1
_MAX_MISSES = 8  # chunks in a row that could not be cut at their keys, after which none is tried


class ArrayReader:
    """Reads the array that a file consists of; `blocks` yields its elements. `chunk`: bytes scanned at a time."""

    def __init__(self, file: BinaryIO, chunk: int = _CHUNK) -> None:
        self._file = file
        self._chunk = self._size = chunk
        self._again, self._at = b"", 0  # text to be scanned again before the file is read on
        self._text: list[bytes] = []  # of the element that has not ended
        self._held = 0  # its bytes
        self._probe = _PROBE
        self._is_skipping = False  # it is over the limit: only its first bytes are kept
        self._offset, self._line = 0, 1  # of its first byte
        self._depth = 0
        self._in_string = self._is_escaped = False
        self._after_close = False  # an element's bracket was closed, and no comma has come since
        self._bound = START  # the last one
        self._has_ended = False
        self._is_stray = False  # by a brace
        self._key: bytes | None = None  # the first key of rows
        self._keys: frozenset[str] = frozenset()  # those that tell a row
        self._inner_keys: frozenset[str] = frozenset()
        self._faults: list[tuple[int, JsonFault]] = []
        self._is_unscanned = False  # the text that is held
        self._misses = 0

    def blocks(self) -> Iterator[RowBlock]:
        """Yield the elements in order, about a chunk at a time. Raises OSError."""
        chunk = self._next()
        if chunk.startswith(BOM):
            self._faults.append((1, JsonFault("bom", "the file starts with a byte order mark")))
            chunk = b"   " + chunk[len(BOM) :]
        while chunk:
            yield from self._take(chunk)
            chunk = self._next()
            if not chunk and self._is_unscanned:
                yield from self._take_scanned(b"")
                chunk = self._next()
            if not chunk:
                yield from self._end_of_file()
                chunk = self._next()
        yield from self._rows_of(b"", np.zeros(0, np.int64), np.zeros(0, np.int64), 0, is_plain=False)

    def _next(self) -> bytes:
        size, self._size = self._size, min(2 * self._size, self._chunk)
        if self._at >= len(self._again):
            self._again, self._at = b"", 0
            return self._file.read(size)
        chunk = self._again[self._at : self._at + size]
        self._at += len(chunk)
        return chunk

    def _take(self, chunk: bytes) -> Iterator[RowBlock]:
        if self._has_ended:
            yield from self._after_the_end(chunk)
            return
        rows = self._cut_at_keys(chunk) if self._may_have_keys() else None
        if rows is None:
            yield from self._take_scanned(chunk)
        else:
            yield from rows

    def _may_have_keys(self) -> bool:
        """Whether the next chunk may be cut at its keys: the text that is held begins behind a comma, and is short."""
        is_behind_comma = self._bound == COMMA and not self._is_skipping and not self._again
        return is_behind_comma and bool(self._key) and self._held < self._chunk and self._misses < _MAX_MISSES

    def _cut_at_keys(self, chunk: bytes) -> Iterator[RowBlock] | None:
        """The rows before the last key that begins one; None if the text is not of rows that begin with the key."""
        text = b"".join((*self._text, chunk))
        spans = spans_at_keys(text, self._key or b"")
        if spans is None:
            self._misses += 1
            return None
        self._misses = 0
        starts, ends, num_done = spans
        rows = list(self._rows_of(text, starts, ends, num_done, is_plain=True))
        self._text, self._held, self._is_unscanned = [text[num_done:]], len(text) - num_done, True
        self._depth, self._in_string, self._is_escaped, self._after_close = 1, False, False, False
        return iter(rows)

    def _take_scanned(self, chunk: bytes) -> Iterator[RowBlock]:
        if self._is_unscanned:
            chunk = b"".join((*self._text, chunk))
            self._text, self._held, self._is_unscanned = [], 0, False
        bounds, kinds = self._scan(chunk)
        if self._is_skipping and len(bounds):
            chunk, bounds, kinds = self._end_long_row(chunk, bounds, kinds)
        if self._bound == END:  # of the long row
            yield from self._after_the_end(chunk)
        elif len(bounds):
            yield from self._cut(b"".join((*self._text, chunk)), bounds + self._held, kinds)
        else:
            yield from self._hold(chunk)

    def _scan(self, chunk: bytes) -> tuple[Ints, Kinds]:
        """Where elements are bounded in a chunk: the index of the bracket or comma, and its kind."""
        array = np.frombuffer(chunk, np.uint8)
        folded = array | np.uint8(0x20)  # of a bracket: a brace
        special = (array == _QUOTE) | (array == _COMMA) | (array == _BACKSLASH) | (folded == _OPEN) | (folded == _CLOSE)
        places = np.flatnonzero(special)
        found = array[places]
        quotes = found == _QUOTE
        if self._is_escaped or b"\\" in chunk:
            quotes &= ~self._escaped(places, found == _BACKSLASH, len(array))
        parity = np.cumsum(quotes, dtype=np.uint8)
        parity += np.uint8(self._in_string)
        parity &= np.uint8(1)
        if len(places):
            self._in_string = bool(parity[-1])
        places = places[(parity == 0) & (found != _QUOTE) & (found != _BACKSLASH)]
        steps = _STEPS[array[places]]
        depths = self._depth + np.cumsum(steps, dtype=np.int64)
        near = np.flatnonzero(depths - (steps > 0) <= 1)  # brackets of the array and of elements, and their commas
        if len(places):
            self._depth = int(depths[-1])
        if not len(near):
            return np.zeros(0, np.int64), np.zeros(0, np.int8)
        depth, step = depths[near], steps[near]
        kinds = np.full(len(near), -1, np.int8)
        kinds[(depth == 1) & (step == 1)] = START
        kinds[(depth == 1) & (step == 0)] = COMMA
        closes = (depth == 1) & (step == -1)
        kinds[(depth == 2) & (step == 1) & np.concatenate(([self._after_close], closes[:-1]))] = NO_COMMA
        kinds[depth <= 0] = END
        self._after_close = bool(closes[-1])
        chosen = kinds >= 0
        bounds, kinds = places[near[chosen]].astype(np.int64), kinds[chosen]
        ends = np.flatnonzero(kinds == END)
        return (bounds[: ends[0] + 1], kinds[: ends[0] + 1]) if len(ends) else (bounds, kinds)

    def _escaped(self, places: Ints, is_slash: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.bool_]:
        """Which places are escaped: in a run of backslashes, every other one escapes the byte after it."""
        slashes = places[is_slash]
        starts_escaped = self._is_escaped
        if starts_escaped:
            slashes = slashes[slashes > 0]
        escaped = np.zeros(len(places), np.bool_)
        if starts_escaped and len(places) and places[0] == 0:
            escaped[0] = True
        self._is_escaped = False
        if not len(slashes):
            return escaped
        run_starts = np.concatenate(([True], np.diff(slashes) != 1))
        first_of_run = np.maximum.accumulate(np.where(run_starts, slashes, 0))
        escaping = slashes[(slashes - first_of_run) % 2 == 0]
        self._is_escaped = bool(escaping[-1] == size - 1)
        behind = np.minimum(np.searchsorted(places, escaping + 1), len(places) - 1)
        escaped[behind[places[behind] == escaping + 1]] = True
        return escaped

    def _hold(self, chunk: bytes) -> Iterator[RowBlock]:
        """Keep a chunk without a bound."""
        self._held += len(chunk)
        if self._is_skipping:
            self._line += chunk.count(b"\n")
            return
        self._text.append(chunk)
        if self._held < self._probe:
            return
        self._probe *= 2
        text = b"".join(self._text)
        self._text = [text]
        if is_broken(text) and (row := self._broken_row(text, 0, len(text))) is not None:
            start = len(text) - len(text.lstrip(SPACES))
            yield from self._rows_of(text, np.array([start]), np.array([row[0]]), row[1], is_plain=False)
            self._resume(text, row[1])
        elif self._held > MAX_LINE_BYTES:
            self._faults.append((self._line + blank_lines(text), _TOO_LONG))
            self._line += text.count(b"\n")
            self._text, self._is_skipping = [], True

    def _end_long_row(self, chunk: bytes, bounds: Ints, kinds: Kinds) -> tuple[bytes, Ints, Kinds]:
        """The rest of a chunk in which an element over the limit ends."""
        after = _after(int(bounds[0]), int(kinds[0]))
        self._offset += self._held + after
        self._line += chunk[:after].count(b"\n")
        self._held, self._probe, self._is_skipping = 0, _PROBE, False
        self._bound = int(kinds[0])
        self._has_ended = self._bound == END
        return chunk[after:], bounds[1:] - after, kinds[1:]

    def _cut(self, text: bytes, bounds: Ints, kinds: Kinds) -> Iterator[RowBlock]:
        """The elements of a text that has bounds, up to the last of them."""
        num_done = _after(int(bounds[-1]), int(kinds[-1]))
        self._is_stray = bool(kinds[-1] == END and text[bounds[-1]] == _CLOSE)
        if self._is_stray:  # a brace too many, which belongs to the element
            bounds[-1] += 1
        before = np.concatenate(([self._bound], kinds[:-1]))
        starts = np.concatenate(([0], bounds[:-1] + (kinds[:-1] != NO_COMMA)))
        is_row = kinds != START  # white space is before the array's bracket
        starts, ends = trimmed(text, starts[is_row], bounds[is_row])
        kinds, before = kinds[is_row], before[is_row]
        is_empty = starts == ends
        faults = [(place, "a comma is missing before this row") for place in starts[before == NO_COMMA].tolist()]
        missing = is_empty & ~((kinds == END) & (before == START))
        faults += [(place, "a row is missing, or there is a comma too many") for place in ends[missing].tolist()]
        is_plain = not is_empty.any() and not (before == NO_COMMA).any()
        starts, ends = starts[~is_empty], ends[~is_empty]
        if self._key is None and len(starts):
            self._key = first_key(text, int(starts[0]))
        if not self._keys:
            self._learn_keys(text, starts, ends)
        resume_at = None
        if not is_plain or not all_json(text, starts, ends):
            is_plain = False
            for index, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
                row = None if is_json(text[start:end]) else self._broken_row(text, start, end)
                if row is not None:
                    starts, ends = starts[: index + 1], np.concatenate((ends[:index], [row[0]]))
                    num_done = resume_at = row[1]
                    break
        for place, message in sorted(faults):
            if place < num_done:
                self._faults.append((self._line + text[:place].count(b"\n"), JsonFault("json-syntax", message)))
        bound = int(kinds[-1]) if len(kinds) else START
        yield from self._rows_of(text, starts, ends, num_done, is_plain=is_plain)
        if resume_at is not None:
            self._resume(text, resume_at)
            return
        self._bound = bound
        self._text, self._held = [text[num_done:]], len(text) - num_done
        if bound == END:
            self._text, self._held, self._has_ended = [], 0, True
            yield from self._after_the_end(text[num_done:])

    def _rows_of(self, text: bytes, starts: Ints, ends: Ints, size: int, *, is_plain: bool) -> Iterator[RowBlock]:
        """The rows of the first `size` bytes of a text, which are then done with."""
        array = np.frombuffer(text, np.uint8, size) if size else np.zeros(0, np.uint8)
        controls, beyond = odd_positions(array)
        newlines = controls[array[controls] == _LF]
        lines = self._line + np.searchsorted(newlines, starts)
        faults, self._faults = self._faults, []
        if len(starts) or faults:
            yield RowBlock(text, size, self._offset, starts, ends, lines, faults, False, is_plain, controls, beyond)
        self._offset += size
        self._line += len(newlines)
        self._text, self._held, self._probe = [], 0, _PROBE

    def _broken_row(self, text: bytes, start: int, end: int) -> tuple[int, int] | None:
        """Where a broken element ends and the next row begins; None if none begins inside it."""
        own, _ = row_keys(text, start)
        first, keys = self._key or first_key(text, start), (self._keys | own) - self._inner_keys
        ahead = b""
        while True:
            place, is_cut = next_row(text + ahead, start + 1, end, first, keys, inside=True)
            more = self._next() if is_cut and len(ahead) < _PROBE else b""
            if not more:
                break
            ahead += more
        if ahead:  # only looked at
            self._again, self._at = ahead + self._again[self._at :], 0
        if place is None:
            return None
        row = text[start:place].rstrip(SPACES).removesuffix(b",").rstrip(SPACES)
        return start + len(row), place

    def _learn_keys(self, text: bytes, starts: Ints, ends: Ints) -> None:
        """Learn from the first element that is an object."""
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            if text[start] == _OPEN and is_json(text[start:end]):
                self._keys, self._inner_keys = row_keys(text[start:end], 0)
                self._keys -= self._inner_keys
                return

    def _resume(self, text: bytes, start: int) -> None:
        """Scan a text again from the start of a row on."""
        self._again, self._at = text[start:] + self._again[self._at :], 0
        self._size = min(_SMALL_CHUNK, self._chunk)
        self._depth, self._in_string, self._is_escaped, self._after_close = 1, False, False, False
        self._bound, self._has_ended = COMMA, False

    def _after_the_end(self, text: bytes) -> Iterator[RowBlock]:
        """There is only white space after the array; rows there show that a bracket was too many."""
        if self._is_skipping:
            return
        text = b"".join((*self._text, text))
        self._text, self._held = [text], len(text)
        if self._key is None and self._is_stray:  # the first row has no opening brace
            self._key = first_key(text.lstrip(SPACES + b","), 0)
        place, _ = next_row(text, 0, len(text), self._key, self._keys, inside=False)
        if place is not None:
            first = text.find(b",") + 1  # elements before that row, such as null
            if not text[: max(first - 1, 0)].strip(SPACES) and is_list(text[first:place].rstrip(SPACES)[:-1]):
                place = first
            if not self._is_stray:
                self._faults.append((self._line + blank_lines(text), _BRACKET_TOO_MANY))
            yield from self._rows_of(text, np.zeros(0, np.int64), np.zeros(0, np.int64), place, is_plain=False)
            self._resume(text, place)
        elif len(text) > _PROBE:
            self._end_text(text)

    def _end_text(self, text: bytes) -> None:
        """Report text after the array; none of the file is read from there on."""
        if text.strip(SPACES) and not self._is_stray:
            self._faults.append((self._line + blank_lines(text), _AFTER_END))
        self._text, self._is_skipping = [], True

    def _end_of_file(self) -> Iterator[RowBlock]:
        """The rest of an array that is not closed."""
        text = b"".join(self._text)
        if self._has_ended:
            self._end_text(text)
            return
        if self._is_skipping or not text.strip(SPACES):
            self._line += text.count(b"\n")
            self._faults.append((self._line, _NOT_CLOSED))
            self._has_ended = True
            return
        start = len(text) - len(text.lstrip(SPACES))
        row = self._broken_row(text, start, len(text))
        end, done = row or (len(text.rstrip(SPACES)), len(text))
        yield from self._rows_of(text, np.array([start]), np.array([end]), done, is_plain=False)
        if row is not None:
            self._resume(text, done)
            return
        self._has_ended = True
        if is_json(text[start:end]):  # else the row is named, which was cut off or swallowed the bracket
            self._faults.append((self._line, _NOT_CLOSED))


_TOO_LONG = JsonFault(
    "line-too-long",
    f"the row is over {MAX_LINE_BYTES >> 20} MB and was not read",
    "is an image embedded as text? store it as a file and refer to it by path",
)
_AFTER_END = JsonFault("json-syntax", "text after the end of the array", "a file is one array, or one object per line")
_BRACKET_TOO_MANY = JsonFault("json-syntax", "the array ends before this row", "remove the closing bracket before it")
_NOT_CLOSED = JsonFault("json-syntax", "the file ends inside the array", "was the file cut off? its last line is ']'")


def _after(bound: int, kind: int) -> int:
    return bound + (kind != NO_COMMA)
