"""Rows that differ in nothing but plain strings, checked and measured a whole block at a time without parsing each.

One valid line is parsed; the text between its string values is its *template*. A line that consists of the same
fixed text around strings of valid UTF-8 without quote, backslash or control character is valid as well, has the same
keys, and its values are where the template says. All other lines go the long way, through `batch`.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
from msgspec import UNSET

from phi3v_data.jsonl import Block
from phi3v_data.validate.batch import read_valid_line
from phi3v_data.validate.control import ControlTokens
from phi3v_data.validate.hashes import PADDING, hash_spans

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
T = TypeVar("T")
G = TypeVar("G")

MIN_ROWS = 16
"""Rows of one template in a block; for fewer, parsing each costs less."""

_MAX_SHAPES = 8  # with the same number of values, and lines that turned out to be like few others
_LF, _QUOTE, _COMMA, _CLOSE, _BRACKET, _BACKSLASH = b'\n",}[\\'
_TO_CLOSE = 0x20  # set in "]", it makes "}"


@dataclass(frozen=True, slots=True)
class FixedTexts:
    """Fixed texts before, between and behind the string values of a row, quotes included."""

    parts: tuple[bytes, ...]

    def match(self, padded: bytes, starts: Ints, ends: Ints, closings: Ints) -> tuple[Ints, Ints]:
        """Which lines have this template, and where their values begin (one row a value, one column such a line).

        `ends` are the positions of the last bytes, `closings` those of the quotes behind the values, one column a line.
        """
        sizes = np.array([len(part) for part in self.parts])
        opens = np.empty_like(closings)
        opens[0] = starts + sizes[0]
        opens[1:] = closings[:-1] + sizes[1:-1, None]
        found: Ints = np.flatnonzero((closings >= opens).all(axis=0) & (closings[-1] + (sizes[-1] - 1) == ends))
        if len(found) < len(starts):
            starts, closings, opens = starts[found], closings[:, found], opens[:, found]
        same: Bools | None = None  # None: in all so far
        for base, part in zip((starts, *closings), self.parts, strict=True):
            texts = span_view(padded, len(part))[base]
            if texts.tobytes() != part * len(base):  # compared at once first, which costs next to nothing
                equal = texts == part
                same = equal if same is None else same & equal
        if same is None:
            return found, opens
        return found[same], opens[:, same]


def span_view(padded: bytes, size: int) -> npt.NDArray[np.bytes_]:
    """A view of the `size` bytes from each position, without a copy; those of a text without NUL compare exactly."""
    return np.ndarray((max(len(padded) - size + 1, 0),), f"S{size}", buffer=padded, strides=(1,))


@dataclass(frozen=True, slots=True)
class Template:
    """Fixed texts around the string values of a row; the rest are indices of values."""

    fixed: FixedTexts
    id: int
    users: tuple[int, ...]
    answers: tuple[int, ...]
    images: tuple[int, ...]
    num_images: tuple[int, ...]  # per turn
    system: int | None
    group: int | None
    num_quotes: int
    num_brackets: int


@dataclass(frozen=True, slots=True)
class TemplateRows:
    """Rows of one block with one template; `opens` and `closes`: one row a value, one column a line."""

    template: Template
    padded: bytes  # the block's text and `PADDING`
    lines: Ints  # 0-based within the block, rising
    starts: Ints  # byte offsets within the block
    opens: Ints
    closes: Ints

    def lengths(self, value: int) -> Ints:
        """Bytes of one value of each row."""
        result: Ints = self.closes[value] - self.opens[value]
        return result

    def hashes(self, values: "int | list[int]") -> Ints:
        """Hashes of one value, or of several (one row a value)."""
        opens = self.opens[values]
        return hash_spans(self.padded, opens.reshape(-1), (self.closes[values] - opens).reshape(-1)).reshape(
            opens.shape
        )

    def optional_hashes(self, value: int) -> Ints:
        """Hashes of one value, 0 where it is empty."""
        return np.where(self.lengths(value) > 0, self.hashes(value), 0)

    def text(self, value: int, position: int) -> str:
        """One value of one row."""
        return self.padded[int(self.opens[value, position]) : int(self.closes[value, position])].decode()


class KnownTemplates(Generic[T, G]):
    """The templates met so far, by the number of string values of their rows; more are learned on the way.

    `limit`: most templates of one number, and most rows of it that turned out to be like few others.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: dict[int, list[T]] = {}
        self._failures: Counter[int] = Counter()

    def groups(
        self,
        by_number: Iterable[tuple[Ints, Ints]],
        learn: Callable[[int], T | None],
        match: Callable[[T, Ints, Ints], tuple[Ints, G]],
    ) -> Iterator[G]:
        """Yield the rows of each template, where there are any.

        Args:
            by_number: rows with the same number of string values, and the quotes behind these (one column a row).
            learn: the template of a row; None if it has none.
            match: which of these rows have a template, and the group of them.
        """
        for rows, closings in by_number:
            number = len(closings)
            known = self._known.setdefault(number, [])
            untried = list(known)
            while len(rows) >= MIN_ROWS:
                is_new = not untried
                if is_new and (len(known) >= self._limit or self._failures[number] >= self._limit):
                    break
                template = learn(int(rows[0])) if is_new else untried.pop(0)
                matched = None if template is None else match(template, rows, closings)
                size = 0 if matched is None else len(matched[0])
                if is_new and size < MIN_ROWS:
                    self._failures[number] += 1
                    rows, closings = rows[1:], closings[:, 1:]
                    continue
                if is_new and template is not None:
                    known.append(template)
                if matched is None or not size:
                    continue
                yield matched[1]
                if size == len(rows):
                    break
                rows, closings = np.delete(rows, matched[0]), np.delete(closings, matched[0], axis=1)


class Templates:
    """The templates met so far; more are learned on the way."""

    def __init__(self, markers: ControlTokens) -> None:
        self._markers = markers
        self._known: KnownTemplates[Template, TemplateRows] = KnownTemplates(_MAX_SHAPES)

    def sort(self, block: Block, *, labelled: bool) -> tuple[list[TemplateRows], Ints | None]:
        """Rows by template, and the 0-based lines that are left; None if all are.

        No row found alike has anything to report but repetitions, labels and its images.
        """
        if block.too_long or block.num_lines < MIN_ROWS:
            return [], None
        text = _BlockText(block.data, self._markers)
        if text.rough is None:
            return [], None
        groups = [group for group in self._groups(text) if len(group.lines)]
        matched = sum(len(group.lines) for group in groups)
        whole = matched == len(text.ends)
        if not (
            whole
            and np.count_nonzero(text.array == _QUOTE) == sum(len(g.lines) * g.template.num_quotes for g in groups)
            and np.count_nonzero(text.array == _BRACKET) == sum(len(g.lines) * g.template.num_brackets for g in groups)
        ):
            groups = text.without_rough(groups)
        groups = [_without_blank(group, text.array, labelled=labelled) for group in groups]
        groups = [group for group in groups if len(group.lines)]
        if sum(len(group.lines) for group in groups) == len(text.ends):
            return groups, np.empty(0, np.int64)
        left = np.ones(len(text.ends), np.bool_)
        for group in groups:
            left[group.lines] = False
        return groups, np.flatnonzero(left) if groups else None

    def _groups(self, text: "_BlockText") -> Iterator[TemplateRows]:
        return self._known.groups(
            text.by_num_values(), lambda line: learn_template(text.line(line), self._markers), text.match
        )


class _BlockText:
    """A block's bytes, and which of its lines need a closer look."""

    def __init__(self, data: bytes, markers: ControlTokens) -> None:
        self._markers = markers
        self.padded = data + PADDING
        with_next: Bytes = np.frombuffer(self.padded, np.uint8, len(data) + 1)
        self.array = with_next[:-1]
        self._next = with_next[1:]
        self.ends: Ints = np.flatnonzero(self.array == _LF)
        self.starts: Ints = np.concatenate(([0], self.ends[:-1] + 1))
        self.rough: Bools | None = np.zeros(len(self.ends), np.bool_)  # None if all lines are
        if not data.isascii():
            try:
                data.decode()
            except UnicodeDecodeError:
                self.rough = None
                return
        if np.count_nonzero(self.array < ord(" ")) != len(self.ends):
            self._mark(self.rough, np.flatnonzero((self.array < ord(" ")) & (self.array != _LF)))
        if b"\\" in data:
            self._mark(self.rough, np.flatnonzero(self.array == _BACKSLASH))
        if candidates := markers.find_candidates(data):
            self._mark(self.rough, np.asarray(candidates, np.int64))

    def line(self, index: int) -> bytes:
        """One line with its LF."""
        return self.padded[self.starts[index] : self.ends[index] + 1]

    def match(self, template: Template, lines: Ints, closings: Ints) -> tuple[Ints, TemplateRows]:
        """Which of these lines have a template, and the group of them; `closings` as from `by_num_values`."""
        found = np.empty(0, np.int64)
        opens = closings[:, :0]
        if len(template.fixed.parts) == len(closings) + 1:
            found, opens = template.fixed.match(self.padded, self.starts[lines], self.ends[lines], closings)
        if len(found) < len(lines):
            lines, closings = lines[found], closings[:, found]
        return found, TemplateRows(template, self.padded, lines, self.starts[lines], opens, closings)

    def by_num_values(self) -> Iterator[tuple[Ints, Ints]]:
        """Lines that are not rough, by how many string values they have, and the quotes behind these."""
        assert self.rough is not None
        behind = (self._next == _COMMA) | ((self._next | _TO_CLOSE) == _CLOSE)
        closings: Ints = np.flatnonzero((self.array == _QUOTE) & behind)
        lines: Ints = np.arange(len(self.ends))
        number = len(closings) // len(lines)
        if not self.rough.any() and number and number * len(lines) == len(closings):
            table = np.ascontiguousarray(closings.reshape(-1, number).T)
            if (table[-1] < self.ends).all() and (table[0] > self.starts).all():
                yield lines, table
                return
        last: Ints = np.searchsorted(closings, self.ends)
        counts = np.diff(last, prepend=0)
        first = last - counts
        counts[self.rough] = 0
        for number in np.unique(counts).tolist():
            chosen = np.flatnonzero(counts == number)
            if number and len(chosen) >= MIN_ROWS:
                yield chosen, closings[first[chosen] + np.arange(number)[:, None]]

    def without_rough(self, groups: Sequence[TemplateRows]) -> list[TemplateRows]:
        """Leave out lines with a quote too many, or with a bracket that may begin a marker."""
        rough = np.zeros(len(self.ends), np.bool_)
        brackets = np.flatnonzero(self.array == _BRACKET)
        self._mark(rough, brackets[self._markers.may_follow_bracket(self._next[brackets])])
        num_quotes = np.diff(np.searchsorted(np.flatnonzero(self.array == _QUOTE), self.ends), prepend=0)
        return [
            _choose(group, ~rough[group.lines] & (num_quotes[group.lines] == group.template.num_quotes))
            for group in groups
        ]

    def _mark(self, rough: Bools, positions: Ints) -> None:
        rough[np.searchsorted(self.ends, positions)] = True


def learn_template(line: bytes, markers: ControlTokens) -> Template | None:
    """The template of a line with its LF; None if it is not valid or has more to check than its strings."""
    row, suspect = read_valid_line(line[:-1], markers)
    if row is None or suspect or b"\\" in line:
        return None
    value = json.loads(line)
    turns = value["conversations"]
    if row.new_texts() or row.rejected is not UNSET or row.tools is not UNSET or any("steps" in turn for turn in turns):
        return None
    if any("image_offsets" in turn for turn in turns) or not any(turn.get("weight", 1) for turn in turns):
        return None
    quotes = [position for position, byte in enumerate(line) if byte == _QUOTE]
    roles: dict[str, list[int]] = {}
    parts: list[bytes] = []
    end = number = 0
    for begin, close, (role, text) in zip(quotes[::2], quotes[1::2], _strings(value), strict=True):
        if line[begin + 1 : close].decode() != text:
            return None
        if role:
            roles.setdefault(role, []).append(number)
            number += 1
            parts.append(line[end : begin + 1])
            end = close
    parts.append(line[end:])
    return Template(
        FixedTexts(tuple(parts)),
        roles["id"][0],
        tuple(roles["user"]),
        tuple(roles["assistant"]),
        tuple(roles.get("image", ())),
        tuple(len(turn.get("images", ())) for turn in turns),
        next(iter(roles.get("system", ())), None),
        next(iter(roles.get("group", ())), None),
        len(quotes),
        sum(part.count(b"[") for part in parts),
    )


def _strings(row: object, role: str = "other") -> Iterator[tuple[str, str]]:
    """(role, text) of every string of a JSON value in the order of the text; the role of a key is empty."""
    if isinstance(row, str):
        yield role, row
    elif isinstance(row, list):
        for item in row:
            yield from _strings(item, role)
    elif isinstance(row, dict):
        for key, value in row.items():
            yield "", key
            if role == "meta":
                yield from _strings(value, "meta")
            else:
                yield from _strings(value, "image" if key == "images" else key)


def _without_blank(group: TemplateRows, array: Bytes, *, labelled: bool) -> TemplateRows:
    """Leave out rows whose id is empty, and those with a text that may be blank where that is to be reported."""
    template = group.template
    keep = group.closes[template.id] > group.opens[template.id]
    for value in (*template.users, *(template.answers if labelled else ())):
        # A character over " " that is ASCII is not white space; others are looked at the long way.
        begin = array[group.opens[value]]
        plain = (begin > ord(" ")) & ((begin < 0x80) | is_letter(begin, array[group.opens[value] + 1]))
        keep &= plain & (group.closes[value] > group.opens[value])
    return group if keep.all() else _choose(group, keep)


def is_letter(begin: Bytes, following: Bytes) -> Bools:
    """Whether a UTF-8 sequence with this start is not white space (C2 85, C2 A0, E1 9A 80, E2 80/81 .., E3 80 80)."""
    space: Bools = (begin == 0xC2) | ((begin == 0xE1) & (following == 0x9A)) | (begin == 0xE2)
    space |= (begin == 0xE3) & (following == 0x80)
    return ~space


def _choose(group: TemplateRows, keep: Bools) -> TemplateRows:
    return TemplateRows(
        group.template,
        group.padded,
        group.lines[keep],
        group.starts[keep],
        group.opens[:, keep],
        group.closes[:, keep],
    )
