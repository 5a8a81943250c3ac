"""A block of lines as columns: valid rows through msgspec, the others one by one through `badrow`.

A fast parser silently keeps the last of two equal keys. Here each block is verified to have none: a JSON
string is two unescaped quotes, so the quotes of a block are twice the strings that came out of it, unless a key was
dropped.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import UNSET

from phi3v_data.jsonl import Block, Line, block_lines
from phi3v_data.validate.badrow import BadRows
from phi3v_data.validate.control import ControlTokens
from phi3v_data.validate.rowtypes import DECODER, Row, TurnRow

_LF, _CR, _QUOTE, _SLASH, _0, _8, _BRACKET, _BACKSLASH, _U, _OPEN, _CLOSE = b'\n\r"/08[\\u{}'

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

_get_conversations = attrgetter("conversations")
_get_images = attrgetter("images")
_get_image_offsets = attrgetter("image_offsets")
_get_weight = attrgetter("weight")
_get_steps = attrgetter("steps")


class Batch:
    """Rows of one block, flattened: `turns` in row order, `images` (a list of paths) per turn."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        conversations: list[list[TurnRow]] = list(map(_get_conversations, rows))
        self.turns: list[TurnRow] = list(chain.from_iterable(conversations))
        self.num_turns: Ints = (
            np.ones(len(rows), np.int64)
            if len(self.turns) == len(rows) and all(conversations)
            else np.fromiter(map(len, conversations), np.int64, len(rows))
        )
        images: list[Any] = list(map(_get_images, self.turns))
        self._unset_images = 0
        try:
            self.num_images: Ints = np.fromiter(map(len, images), np.int64, len(images))  # per turn
        except TypeError:  # UNSET among them
            self._unset_images = images.count(UNSET)
            images = [[] if paths is UNSET else paths for paths in images]
            self.num_images = np.fromiter(map(len, images), np.int64, len(images))
        self.images: list[list[str]] = images
        self.lines: Ints = np.empty(0, np.int64)  # per row, 1-based
        self.offsets: Ints = np.empty(0, np.int64)  # per row, bytes
        self.suspects: Iterable[int] = ()  # positions of rows whose text may contain what it must not
        self.is_plain = False  # no row has an optional field
        self.is_ascii = False  # so was the file's text
        self.bad: frozenset[int] = frozenset()  # positions of rows that `BadRows` has reported on

    def column(self, name: str) -> list[Any] | None:
        """An optional field of every row, UNSET if omitted; None if all rows omit it."""
        if self.is_plain:
            return None
        values = list(map(attrgetter(name), self.rows))
        return None if set(map(type, values)) <= {msgspec.UnsetType} else values

    @property
    def has_offsets(self) -> bool:
        """Whether any turn gives `image_offsets`."""
        return not self.is_plain and not set(map(type, map(_get_image_offsets, self.turns))) <= {msgspec.UnsetType}

    @property
    def has_weights(self) -> bool:
        """Whether any turn gives `weight`."""
        return not self.is_plain and not set(map(type, map(_get_weight, self.turns))) <= {msgspec.UnsetType}

    @property
    def has_steps(self) -> bool:
        """Whether any turn gives `steps`."""
        return not self.is_plain and not set(map(type, map(_get_steps, self.turns))) <= {msgspec.UnsetType}

    def new_texts(self) -> list[list[tuple[str, str]]] | None:
        """For each row the fields and texts that format 1 does not have; None if there are none."""
        if not self.has_steps and self.column("rejected") is None and self.column("tools") is None:
            return None
        return [row.new_texts() for row in self.rows]

    def holds(self, num_quotes: int) -> bool:
        """Whether these rows are the whole of a text with so many unescaped quotes."""
        # Optional fields and keys given twice only add quotes: without any to spare, there are none.
        self.is_plain = self._unset_images == 0 and num_quotes == 2 * self._num_plain_strings()
        return self.is_plain or num_quotes == 2 * self.num_strings()

    def _num_plain_strings(self) -> int:
        return 5 * len(self.rows) + 5 * len(self.turns) - self._unset_images + int(self.num_images.sum())

    def num_strings(self) -> int:
        """Strings in the JSON text of these rows, keys included, if no key was dropped."""
        total = self._num_plain_strings()
        for name in ("system", "group", "rejected", "tools"):
            values = self.column(name)
            if values is not None:
                total += 2 * (len(values) - values.count(UNSET))
        answers = self.column("answers")
        if answers is not None:
            total += sum(1 + len(value) for value in answers if value is not UNSET)
        meta = self.column("meta")
        if meta is not None:
            for value in meta:
                if value is not UNSET:
                    total += 1 + len(value) + sum(isinstance(item, str) for item in value.values())
        if self.has_offsets:
            total += sum(turn.image_offsets is not UNSET for turn in self.turns)
        if self.has_steps:
            for turn in self.turns:
                if turn.steps is not UNSET:
                    total += 1 + sum(2 + len(step.calls) + len(step.results) for step in turn.steps)
        if self.has_weights:
            total += sum(turn.weight is not UNSET for turn in self.turns)
        return total


def count_lines(data: bytes) -> int:
    """LF bytes in `data`."""
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == _LF))


def read_batch(block: Block, bad: BadRows, markers: ControlTokens, only: Ints | None = None) -> Batch:
    """Read a block's rows, in order; problems of lines go to `bad`. `only`: these lines, 0-based."""
    if block.too_long:
        for line in block_lines(block):
            bad.read(line)
        return Batch([])
    if only is None:
        return _read_valid(block, markers) or _read_mixed(block_lines(block), bad, markers)
    lines = list(block_lines(block))
    chosen = [lines[index] for index in only.tolist()]
    data = b"".join([line.data + b"\n" for line in chosen])
    batch = _read_valid(Block(data, 0, 0, len(data), len(chosen)), markers)
    if batch is None:
        return _read_mixed(chosen, bad, markers)
    batch.lines = only + block.first_line
    batch.offsets = np.fromiter((line.offset for line in chosen), np.int64, len(chosen))
    return batch


def _read_valid(block: Block, markers: ControlTokens) -> Batch | None:
    """All rows at once, or None if any line needs a closer look."""
    array: Bytes = np.frombuffer(block.data, np.uint8)
    ends = np.flatnonzero(array == _LF)
    starts = np.concatenate(([0], ends[:-1] + 1))
    # One value a line: no JSON value holds a line that ends in } before one that starts with {, so none spans two.
    last = array[ends - 1]
    if _CR in last:
        last = np.where(last == _CR, array[ends - 2], last)
    if not ((array[starts] == _OPEN).all() and (last == _CLOSE).all()):
        return None
    try:
        rows = DECODER.decode_lines(block.data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if len(rows) != len(ends):
        return None
    batch = Batch(rows)
    num_quotes, suspects = _scan(block.data, array, markers)
    if not batch.holds(num_quotes):
        return None
    batch.is_ascii = block.data.isascii()
    batch.lines = np.arange(block.first_line, block.first_line + len(rows))
    batch.offsets = starts + block.offset
    if suspects:
        batch.suspects = np.unique(np.searchsorted(ends, np.asarray(suspects))).tolist()
    return batch


def _read_mixed(block: Iterable[Line], bad: BadRows, markers: ControlTokens) -> Batch:
    """Line by line."""
    rows: list[Row] = []
    lines: list[int] = []
    offsets: list[int] = []
    suspects: list[int] = []
    reported: list[int] = []
    for line in block:
        row, suspect = read_valid_line(line.data, markers)
        if row is None:
            row, suspect = bad.read(line), True
            if row is None:
                continue
            reported.append(len(rows))
        if suspect:
            suspects.append(len(rows))
        rows.append(row)
        lines.append(line.number)
        offsets.append(line.offset)
    batch = Batch(rows)
    batch.lines = np.asarray(lines, np.int64)
    batch.offsets = np.asarray(offsets, np.int64)
    batch.suspects = suspects
    batch.bad = frozenset(reported)
    return batch


def read_valid_line(data: bytes, markers: ControlTokens) -> tuple[Row | None, bool]:
    """A valid row and whether its text needs a closer look; None for any other line."""
    try:
        row = DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None, True
    num_quotes, suspects = _scan(data, np.frombuffer(data, np.uint8), markers)
    if not Batch([row]).holds(num_quotes):
        return None, True
    return row, bool(suspects)


def _scan(data: bytes, array: Bytes, markers: ControlTokens) -> tuple[int, list[int]]:
    """Unescaped quotes in valid JSON text, and positions where a control token or a NUL may be.

    Backslashes occur only inside strings. In a run of them every other one escapes the byte after it; `\\u00` and a
    digit up to 7 may spell any ASCII character, and `\\/` the slash of `</s>`; other escapes only matter to markers
    that are not ASCII.
    """
    num_quotes = int(np.count_nonzero(array == _QUOTE))
    suspects = markers.find_candidates(data)
    brackets = np.flatnonzero(array[:-1] == _BRACKET)
    marked = markers.may_follow_bracket(array[brackets + 1])
    if marked.any():
        suspects += brackets[marked].tolist()
    if b"\\" in data:
        slashes = np.flatnonzero(array == _BACKSLASH)
        run_starts = np.concatenate(([True], np.diff(slashes) != 1))
        first_of_run = np.maximum.accumulate(np.where(run_starts, slashes, 0))
        escaping = slashes[(slashes - first_of_run) % 2 == 0]
        escaped = array[escaping + 1]
        num_quotes -= int(np.count_nonzero(escaped == _QUOTE))
        suspects += escaping[escaped == _SLASH].tolist()
        unicode = escaping[escaped == _U]
        if len(unicode) and not markers.is_ascii:
            suspects += unicode.tolist()
        elif len(unicode):
            digits = array[unicode[:, None] + np.arange(2, 5)]
            ascii_ = (digits[:, 0] == _0) & (digits[:, 1] == _0) & (digits[:, 2] < _8)
            suspects += unicode[ascii_].tolist()
    return num_quotes, suspects


def sum_turns(values: Ints, num_turns: Ints, first_turns: Ints) -> Ints:
    """Sum of a value over the turns of each row; 0 for a row without turns."""
    if len(values) == len(num_turns) and (num_turns == 1).all():
        return values
    sums: Ints = np.concatenate(([0], np.cumsum(values)))
    result: Ints = sums[first_turns + num_turns] - sums[first_turns]
    return result


def text_bytes(batch: Batch, users: list[str], answers: list[str]) -> Ints:
    """UTF-8 bytes of the texts of each row: the unit of the estimate."""
    count = len(batch.turns)
    if batch.is_ascii:
        sizes = np.fromiter(map(len, users), np.int64, count) + np.fromiter(map(len, answers), np.int64, count)
    else:
        sizes = np.fromiter(
            (_num_bytes(user) + _num_bytes(answer) for user, answer in zip(users, answers, strict=True)),
            np.int64,
            count,
        )
    sizes = sum_turns(sizes, batch.num_turns, np.cumsum(batch.num_turns) - batch.num_turns)
    systems = batch.column("system")
    if systems is not None:
        sizes = sizes + np.fromiter((_num_bytes(text) if text else 0 for text in systems), np.int64, len(batch.rows))
    return sizes + new_units(batch, lambda texts: np.fromiter(map(_num_bytes, texts), np.int64, len(texts)))


def new_units(batch: Batch, measure: Callable[[Sequence[str]], Ints]) -> Ints:
    """Sizes of the texts that format 1 does not have, per row; `measure` gives the sizes of texts.

    The tools and their calls and results are in the sequence. Of a pair there are two sequences, of which the longer
    counts: what a rejected answer has more than the chosen one.
    """
    sizes = np.zeros(len(batch.rows), np.int64)
    plain: list[tuple[int, str]] = []  # row and text
    pairs: list[tuple[int, str]] = []
    for index, found in enumerate(batch.new_texts() or ()):
        for field, text in found:
            (pairs if field == "rejected" else plain).append((index, text))
    if plain:
        np.add.at(sizes, [index for index, _ in plain], measure([text for _, text in plain]))
    if pairs:
        chosen = measure([batch.rows[index].conversations[-1].assistant for index, _ in pairs])
        sizes[[index for index, _ in pairs]] += np.maximum(measure([text for _, text in pairs]) - chosen, 0)
    return sizes


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="replace"))
