"""Rows that differ from a good one in nothing but plain strings, verified a whole block at a time without parsing each.

One row is checked the long way. If it has no fault, the text between its ids, texts, paths of images and other free
strings is a template: a row with the same text around plain strings is valid, too, and has the same roles, keys and
numbers of images and tags. A plain string is valid UTF-8 without a control character or the start of a marker; its
escapes are of line ends, tabs, quotes and characters beyond ASCII. All other rows go the long way.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from phi3v_data.formats.consumers.base import RowView
from phi3v_data.formats.placeholders import IMAGE
from phi3v_data.formats.row_block import RowBlock, read_row
from phi3v_data.lint.row_check import RowCheck
from phi3v_data.validate.control import ControlTokens
from phi3v_data.validate.hashes import PADDING, hash_spans, word_view
from phi3v_data.validate.templates import FixedTexts, is_letter

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

MIN_ROWS = 16
"""Rows of one template in a block; for fewer, checking each costs less."""

_MAX_SHAPES = 16  # with the same number of values
_MAX_FAILURES = 16  # rows with the same number of values that turned out to be like few others
_QUOTE, _BACKSLASH, _COMMA, _CLOSE, _BRACKET, _LESS, _U = b'"\\,}[<u'
_TO_CLOSE = 0x20  # set in "]", it makes "}"
_PLAIN_ESCAPES = np.zeros(256, np.bool_)
_PLAIN_ESCAPES[list(b'nrt"')] = True
_HEX = np.full(256, 16, np.int64)  # 16 for what is not a digit
for _digit in b"0123456789abcdefABCDEF":
    _HEX[_digit] = int(chr(_digit), 16)
_TAG = IMAGE.encode()
_TAG_WORD = np.uint64(int.from_bytes(_TAG, "little"))
_TAG_MASK = np.uint64((1 << 56) - 1)
_LINE_END = np.uint64(int.from_bytes(b"\\n", "little"))
_FIRST_ID = re.compile(rb'\{\s*"id"\s*:\s*(?:"(?:[^"\\]|\\.)*"|[^",}\]\s]*)')
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True, slots=True)
class Template:
    """A good row. Values are its free strings, by their number."""

    fixed: FixedTexts
    free: Ints  # which of all string values of the row are free
    id: int | None
    texts: tuple[int, ...]
    images: tuple[int, ...]
    image_fields: tuple[str, ...]
    tags: Ints  # number of image tags in each value
    num_quotes: int
    num_controls: int
    num_turns: int
    begins_with_id: bool
    view: RowView


@dataclass(frozen=True, slots=True)
class TemplateRows:
    """Rows of one block with one template; `opens` and `closes`: one row per value, one column per row of the block."""

    template: Template
    rows: Ints  # their numbers in the block
    opens: Ints
    closes: Ints


class Templates:
    """The templates met so far; more are learned on the way.

    Args:
        check: checks a row the long way.
        markers: strings that no plain text has, without `<image>` if that is a tag of the format.
        special: code points beyond ASCII of which markers are made.
    """

    def __init__(
        self, check: RowCheck, markers: ControlTokens, *, has_tags: bool, special: Collection[int] = ()
    ) -> None:
        self._check = check
        self._markers = markers
        self._has_tags = has_tags
        self._special = np.array(sorted(special), np.int64)
        self._known: dict[int, list[Template]] = {}  # by number of string values
        self._failures: Counter[int] = Counter()

    def sort(self, block: RowBlock) -> tuple["BlockText", list[TemplateRows], Ints]:
        """The text of a block, its rows by template, and the numbers of the rows that are left."""
        text = BlockText(block)
        left = np.ones(len(block), np.bool_)
        groups = []
        if len(block) >= MIN_ROWS and text.decodes:
            self._mark(text)
            for group in self._groups(text, block):
                group = self._without_blank(group, text)
                if len(group.rows):
                    groups.append(group)
                    left[group.rows] = False
        return text, groups, np.flatnonzero(left)

    def _mark(self, text: "BlockText") -> None:
        """Mark the rows that may have a marker, or that the consumer has to look at."""
        data = text.data
        text.mark(np.array(self._candidates(text), np.int64))
        text.mark(text.brackets[self._markers.may_follow_bracket(text.next[text.brackets])])
        text.mark(text.slashes[~self._are_plain(text)])
        suspect = self._check.consumer.suspect
        if suspect is not None:
            text.mark(np.array([match.start() for match in suspect.finditer(data)], np.int64))

    def _are_plain(self, text: "BlockText") -> Bools:
        """Which escapes are plain: of a line end, tab or quote, or of a character beyond ASCII that is in no marker."""
        following = text.next[text.slashes]
        plain = _PLAIN_ESCAPES[following]
        spelled = np.flatnonzero(following == _U)
        spelled = spelled[text.slashes[spelled] + 6 <= len(text.array)]
        digits = _HEX[text.array[text.slashes[spelled][:, None] + np.arange(2, 6)]]
        codes = digits @ np.array([4096, 256, 16, 1])
        is_half = (codes >= 0xD800) & (codes <= 0xDFFF)
        plain[spelled] = (digits < 16).all(axis=1) & (codes >= 0x80) & ~is_half & ~np.isin(codes, self._special)
        return plain

    def _candidates(self, text: "BlockText") -> list[int]:
        """Where a marker may begin; those with `<` are looked for at the few that are not tags."""
        found: list[int] = []
        for first, pattern in self._markers.candidates:
            if first != b"<":
                found += [match.start() for match in pattern.finditer(text.data)] if first in text.data else []
                continue
            places = text.less[~text.is_tag] if self._has_tags else text.less
            found += [place for place in places.tolist() if pattern.match(text.data, place)]
        return found

    def _groups(self, text: "BlockText", block: RowBlock) -> Iterator[TemplateRows]:
        for rows, closings in text.by_num_values():
            number = len(closings)
            known = self._known.setdefault(number, [])
            untried = list(known)
            while len(rows) >= MIN_ROWS:
                new = not untried
                if new and (len(known) >= _MAX_SHAPES or self._failures[number] >= _MAX_FAILURES):
                    break
                template = self._learn(block, int(rows[0])) if new else untried.pop(0)
                group = None if template is None else text.match(template, rows, closings)
                if new and (group is None or len(group.rows) < MIN_ROWS):
                    self._failures[number] += 1
                    rows, closings = rows[1:], closings[:, 1:]
                    continue
                assert template is not None
                if new:
                    known.append(template)
                if group is None or not len(group.rows):
                    continue
                yield group
                if len(group.rows) == len(rows):
                    break
                rest = np.ones(len(block), np.bool_)
                rest[group.rows] = False
                rest = rest[rows]
                rows, closings = rows[rest], closings[:, rest]

    def _learn(self, block: RowBlock, index: int) -> Template | None:
        """The template of a row; None if it has a fault, or more to check than its strings."""
        data = block.text(index)
        value, faults = read_row(data, block.name)
        if value is None or faults or not isinstance(value[0], dict):
            return None
        checked = self._check.check(value[0], int(block.lines[index]), count=0)
        view = checked.view
        if checked.faults or view is None or view.chat.rejected is not None:
            return None
        return make_template(data, value[0], view)

    def _without_blank(self, group: TemplateRows, text: "BlockText") -> TemplateRows:
        """Leave out rows with a text or a reference that may be blank, and those with tags elsewhere."""
        template, array = group.template, text.array
        keep = np.ones(len(group.rows), np.bool_)
        for value in (*template.images, *(() if template.id is None else (template.id,))):
            keep &= group.closes[value] > group.opens[value]
        for value in template.texts:
            begins, ends = group.opens[value], group.closes[value]
            if template.tags[value]:
                begins = _behind_tags(text, begins, ends)
            first, second = array[begins], text.next[begins]
            plain = (first > ord(" ")) & (first != _BACKSLASH) & ((first < 0x80) | is_letter(first, second))
            keep &= plain & (ends > begins)
        if self._has_tags:
            keep &= _has_same_tags(group, text)
        return group if keep.all() else _choose(group, keep)


class BlockText:
    """The bytes of a block, and which of its rows need a closer look."""

    def __init__(self, block: RowBlock) -> None:
        self.block = block
        self.data = block.data
        self.padded = block.data + PADDING
        self.words = word_view(self.padded)
        with_next: Bytes = np.frombuffer(self.padded, np.uint8, len(block.data) + 1)
        self.array = with_next[:-1]
        self.next = with_next[1:]
        self.rough = np.zeros(len(block), np.bool_)
        self.decodes = block.data.isascii() or _is_utf8(block.data)
        array = self.array
        special = (array == _QUOTE) | (array == _BACKSLASH) | (array == _BRACKET) | (array == _LESS)
        special |= array < ord(" ")
        places = np.flatnonzero(special)  # once, as it costs more than all that follows from it
        kinds = array[places]
        quotes = places[kinds == _QUOTE]
        self._quotes: Ints = quotes[array[quotes - 1] != _BACKSLASH]  # rows with escaped backslashes are rough
        self.slashes: Ints = places[kinds == _BACKSLASH]
        self.brackets: Ints = places[kinds == _BRACKET]
        self.less: Ints = places[kinds == _LESS]
        self._controls: Ints = places[kinds < ord(" ")]
        self.is_tag: Bools = (self.words[self.less] & _TAG_MASK) == _TAG_WORD
        self._counts: tuple[Ints, Ints] | None = None  # quotes and control characters of each row

    def mark(self, positions: Ints) -> None:
        """Mark the rows at these positions."""
        if len(positions):
            rows = np.searchsorted(self.block.ends, positions, side="right")
            self.rough[rows[rows < len(self.rough)]] = True

    def count(self, positions: Ints) -> Ints:
        """How many of these rising positions are in each row."""
        result: Ints = np.searchsorted(positions, self.block.ends) - np.searchsorted(positions, self.block.starts)
        return result

    def by_num_values(self) -> Iterator[tuple[Ints, Ints]]:
        """Rows that are not rough, by how many string values they have, and the quotes behind these."""
        following = self.next[self._quotes]
        behind = (following == _COMMA) | ((following | _TO_CLOSE) == _CLOSE) | (following <= ord(" "))
        closings = self._quotes[behind]
        first = np.searchsorted(closings, self.block.starts)
        counts = np.searchsorted(closings, self.block.ends) - first
        counts[self.rough] = 0
        for number in np.unique(counts).tolist():
            chosen = np.flatnonzero(counts == number)
            if number and len(chosen) >= MIN_ROWS:
                yield chosen, closings[first[chosen] + np.arange(number)[:, None]]

    def match(self, template: Template, rows: Ints, closings: Ints) -> TemplateRows:
        """The rows that have a template."""
        kept = closings[template.free]
        found, opens = template.fixed.match(self.words, self.block.starts[rows], self.block.ends[rows] - 1, kept)
        group = TemplateRows(template, rows[found], opens, kept[:, found])
        if self._counts is None:
            self._counts = self.count(self._quotes), self.count(self._controls)
        num_quotes, num_controls = self._counts
        keep = num_quotes[group.rows] == template.num_quotes
        keep &= num_controls[group.rows] == template.num_controls
        return group if keep.all() else _choose(group, keep)

    def hashes(self, opens: Ints, closes: Ints) -> Ints:
        """Hashes of spans."""
        return hash_spans(self.padded, opens, closes - opens)


def make_template(data: bytes, row: Mapping[str, Any], view: RowView) -> Template | None:
    """The template of a good row; None if a string that is to be free is not plain."""
    owners = {message.field for message in view.chat.messages}
    images = {image.field for image in view.chat.images}
    kinds: list[tuple[str, str, str]] = []  # kind, text, field
    for path, key, text in _strings(row):
        field = _name(path)
        kind = "fixed"
        if key is None:
            if field in images:
                kind = "image"
            elif path == ("id",):
                kind = "id"
            elif field in owners or _of_block(path) in owners:
                kind = "text"
            elif len(path) == 1:
                kind = "other"
        else:
            kind = "key"
        kinds.append((kind, text, field))
    found = list(_STRING.finditer(data))
    if len(found) != len(kinds):
        return None
    parts: list[bytes] = []
    free: list[int] = []
    end = number = 0
    texts, fields = [], []
    names: dict[str, list[int]] = {}
    num_quotes = 2 * len(found)
    for match, (kind, text, field) in zip(found, kinds, strict=True):
        if kind == "key":
            continue
        if kind != "fixed":
            inner = data[match.start() + 1 : match.end() - 1]
            if b"\\\\" in inner:
                return None
            names.setdefault(kind, []).append(len(free))
            free.append(number)
            parts.append(data[end : match.start() + 1])
            end = match.end() - 1
            texts.append(text)
            fields.append(field)
        number += 1
    if not free:
        return None
    parts.append(data[end:])
    return Template(
        FixedTexts.of(parts),
        np.array(free),
        next(iter(names.get("id", ())), None),
        tuple(names.get("text", ())),
        tuple(names.get("image", ())),
        tuple(fields[value] for value in names.get("image", ())),
        np.array([text.count(IMAGE) for text in texts]),
        num_quotes,
        sum(byte < ord(" ") for byte in data),
        sum(message.role == "assistant" for message in view.chat.messages),
        _FIRST_ID.match(data) is not None and names.get("id") == [0],
        view,
    )


def _strings(
    value: object, path: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], str | None, str]]:
    """(path, key, text) of every string of a JSON value in the order of the text; `key` is None for values."""
    if isinstance(value, str):
        yield path, None, value
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _strings(item, (*path, number))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield path, key, key
            yield from _strings(item, (*path, key))


def _name(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _of_block(path: tuple[str | int, ...]) -> str:
    """The field of the message that a text block belongs to; empty for other values."""
    return _name(path[:-2]) if len(path) > 2 and path[-1] == "text" else ""


def _behind_tags(text: BlockText, begins: Ints, ends: Ints) -> Ints:
    """Where texts begin behind the tags, with a line end each, that they begin with."""
    begins = begins.copy()
    for _ in range(8):
        tagged = (text.words[begins] & _TAG_MASK) == _TAG_WORD
        if not tagged.any():
            break
        begins[tagged] += len(_TAG)
        ended = tagged & ((text.words[begins] & np.uint64(0xFFFF)) == _LINE_END)
        begins[ended] += 2
    return np.minimum(begins, ends)


def _has_same_tags(group: TemplateRows, text: BlockText) -> Bools:
    """Whether each value of a row has as many tags as that of the template: as many in all, and in those with tags."""
    tags = text.less[text.is_tag]
    block = text.block
    ends, starts = block.ends[group.rows], block.starts[group.rows]
    wanted = group.template.tags
    same: Bools = np.searchsorted(tags, ends) - np.searchsorted(tags, starts) == int(wanted.sum())
    for value in np.flatnonzero(wanted).tolist():
        inside = np.searchsorted(tags, group.closes[value]) - np.searchsorted(tags, group.opens[value])
        same &= inside == wanted[value]
    return same


def _choose(group: TemplateRows, keep: Bools) -> TemplateRows:
    return TemplateRows(group.template, group.rows[keep], group.opens[:, keep], group.closes[:, keep])


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def content_start(data: bytes) -> int:
    """Where the content of a row begins: behind its id, if that comes first."""
    found = _FIRST_ID.match(data)
    return found.end() if found else 0
