"""The bytes of a block of rows: which rows have a template, and which of these need a closer look."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from phi3v_data.formats.consumers.base import RowView
from phi3v_data.formats.placeholders import IMAGE
from phi3v_data.formats.row_block import RowBlock, rare_positions
from phi3v_data.validate.control import ControlTokens
from phi3v_data.validate.hashes import PADDING, hash_spans, hash_texts, word_view
from phi3v_data.validate.templates import MIN_ROWS, FixedTexts, is_letter

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

MAX_DIGITS = 18
"""Of a number that differs between rows of a template."""

_QUOTE, _BACKSLASH, _COMMA, _CLOSE, _BRACKET, _LESS, _ZERO = b'"\\,}[<0'
_TO_CLOSE = 0x20  # set in "]", it makes "}"
_CLASS = 0x9F  # the bits that "\\" and "<" have in common
_TAG = IMAGE.encode()
_TAG_WORD = np.uint64(int.from_bytes(_TAG, "little"))
_TAG_MASK = np.uint64((1 << 56) - 1)
_LINE_END = np.uint64(int.from_bytes(b"\\n", "little"))
_SPACED = re.compile(rb'"\s+[,}\]]')


@dataclass(frozen=True, slots=True)
class Template:
    """A good row. Values are its free strings, and its id if that is a number, by their place among these."""

    fixed: FixedTexts
    free: Ints  # which of all string values of the row are free
    id: int | None
    number: int | None  # the same, if it is a number
    texts: tuple[int, ...]
    images: tuple[int, ...]
    others: tuple[int, ...]  # not empty in any row
    image_fields: tuple[str, ...]
    tags: Ints  # number of image tags in each value
    num_values: int
    num_quotes: int
    num_brackets: int  # outside of free strings
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


class BlockText:
    """The bytes of a block, and which of its rows need a closer look."""

    def __init__(self, block: RowBlock) -> None:
        self.block = block
        self.size = block.size
        self.padded = block.data
        if len(self.padded) < block.size + len(PADDING):
            self.padded = block.data[: block.size] + PADDING
        self.words = word_view(self.padded)
        with_next: Bytes = np.frombuffer(self.padded, np.uint8, block.size + 1)
        self.array = with_next[:-1]
        self.next = with_next[1:]
        self.rough = np.zeros(len(block), np.bool_)
        self.decodes = _is_utf8(self.array, block.beyond)
        rare = rare_positions((self.array & _CLASS) == _BACKSLASH & _CLASS)
        found = self.array[rare]
        self.slashes = rare[found == _BACKSLASH]
        self.less = rare[found == _LESS]
        self._is_quote: Bools = self.array == _QUOTE  # of a string's begin or end, but in rows with escaped backslashes
        self._is_quote[self.slashes[self.next[self.slashes] == _QUOTE] + 1] = False
        self.is_tag: Bools = (self.words[self.less] & _TAG_MASK) == _TAG_WORD
        self._slashes_of: tuple[Ints, Ints] | None = None

    def mark(self, positions: Ints) -> None:
        """Mark the rows at these positions."""
        if len(positions):
            rows = np.searchsorted(self.block.ends, positions, side="right")
            self.rough[rows[rows < len(self.rough)]] = True

    def by_num_values(self) -> Iterator[tuple[Ints, Ints]]:
        """Rows that are not rough, by how many string values they have, and the quotes behind these."""
        folded = self.next | _TO_CLOSE
        behind = folded == _CLOSE
        behind |= np.equal(self.next, _COMMA, out=folded.view(np.bool_))
        if len(self.block) and _SPACED.search(self.padded, int(self.block.starts[0]), int(self.block.ends[0])):
            behind |= self.next <= ord(" ")
        behind &= self._is_quote
        closings = rare_positions(behind)
        last = np.searchsorted(closings, self.block.ends)
        if self.block.is_plain:
            first = np.concatenate(([0], last[:-1]))
        else:
            first = np.searchsorted(closings, self.block.starts)
        counts = last - first
        counts[self.rough] = 0
        for number in np.flatnonzero(np.bincount(counts) >= MIN_ROWS).tolist():
            if number:
                chosen = np.flatnonzero(counts == number)
                yield chosen, closings[first[chosen] + np.arange(number)[:, None]]

    def match(self, template: Template, rows: Ints, closings: Ints) -> tuple[Ints, TemplateRows]:
        """Which of these rows have a template, or more quotes, brackets or control characters; the group of them."""
        if template.num_values != len(closings):
            return rows[:0], TemplateRows(template, rows[:0], closings[:, :0], closings[:, :0])
        kept = closings[template.free]
        starts, ends = self.block.starts[rows], self.block.ends[rows] - 1
        if template.number is not None:
            kept = self._with_number(template.fixed.parts[template.number], template.number, starts, kept)
        found, opens = template.fixed.match(self.padded, starts, ends, kept)
        if template.others and len(found):
            others = list(template.others)
            filled = (kept[others][:, found] > opens[others]).all(axis=0)
            found, opens = found[filled], opens[:, filled]
        if len(found) == len(rows):
            return found, TemplateRows(template, rows, opens, kept)
        return found, TemplateRows(template, rows[found], opens, kept[:, found])

    def _with_number(self, before: bytes, value: int, starts: Ints, closings: Ints) -> Ints:
        """The ends of values, with those of the whole numbers behind a fixed text as row `value`.

        The end of what is not such a number is before its begin, which no template has.
        """
        opens = (closings[value - 1] if value else starts) + len(before)
        array = np.frombuffer(self.padded, np.uint8)
        count = np.zeros(len(opens), np.int64)
        is_digit = np.ones(len(opens), np.bool_)
        for place in range(MAX_DIGITS + 1):
            is_digit &= array[np.minimum(opens + place, self.size)] - np.uint8(_ZERO) <= 9
            if not is_digit.any():
                break
            count += is_digit
        first = array[np.minimum(opens, self.size)]
        is_number = (count > 0) & (count <= MAX_DIGITS) & ((first != _ZERO) | (count == 1))
        ends = np.where(is_number, opens + count, opens - 1)
        return np.concatenate((closings[:value], ends[None], closings[value:]))

    def without_more(
        self, groups: Sequence[TemplateRows], markers: ControlTokens, *, with_tags: bool
    ) -> list[TemplateRows]:
        """Leave out rows with more quotes, brackets, control characters or tags than their template has.

        No row has fewer, so that none has more if all rows together have the number that is expected of them.
        """
        block = self.block
        left = np.ones(len(block), np.bool_)
        for group in groups:
            left[group.rows] = False
        others = np.flatnonzero(left)
        spans = list(map(slice, block.starts[others].tolist(), block.ends[others].tolist()))
        few = len(spans) <= len(block) >> 3

        def as_expected(mask: Bools, expected: Callable[[Template], int]) -> bool:
            """Whether all rows of the groups together have what their templates have."""
            if not few:
                return False
            elsewhere = sum(int(np.count_nonzero(mask[span])) for span in spans)
            total = sum(len(group.rows) * expected(group.template) for group in groups)
            return int(np.count_nonzero(mask)) - elsewhere == total

        keep = np.ones(len(block), np.bool_)

        def compare(positions: Ints, expected: Callable[[Template], int]) -> None:
            """Keep the rows that have as many of these rising positions as their templates."""
            counts = np.searchsorted(positions, block.ends) - np.searchsorted(positions, block.starts)
            for group in groups:
                keep[group.rows] &= counts[group.rows] == expected(group.template)

        if not as_expected(self._is_quote, lambda template: template.num_quotes):
            compare(np.flatnonzero(self._is_quote), lambda template: template.num_quotes)
        controls = block.controls
        if block.in_lines and np.array_equal(controls, block.ends):
            controls = controls[:0]
        if len(controls) or any(group.template.num_controls for group in groups):
            compare(controls, lambda template: template.num_controls)
        is_bracket = self.array == _BRACKET
        if not as_expected(is_bracket, lambda template: template.num_brackets):
            brackets = rare_positions(is_bracket)
            marked = brackets[markers.may_follow_bracket(self.next[brackets])]
            rows = np.searchsorted(block.ends, marked, side="right")
            keep[rows[rows < len(keep)]] = False
        if with_tags:
            elsewhere = sum(self.padded.count(_TAG, span.start, span.stop) for span in spans) if few else 0
            total = sum(len(group.rows) * int(group.template.tags.sum()) for group in groups)
            if not few or int(np.count_nonzero(self.is_tag)) - elsewhere != total:
                for group in groups:
                    keep[group.rows] &= _has_same_tags(group, self)
        if not keep.all():
            groups = [_choose(group, keep[group.rows]) for group in groups]
        return [group for group in groups if len(group.rows)]

    def hashes(self, group: TemplateRows, values: int | Sequence[int]) -> Ints:
        """Hashes of one or more values of each row, those of a row together.

        They are equal to those of the texts that a parser reads.
        """
        values = list(values) if isinstance(values, Sequence) else [values]
        opens, closes = group.opens[values].T.reshape(-1), group.closes[values].T.reshape(-1)
        hashes = hash_spans(self.padded, opens, closes - opens)
        if len(self.slashes):
            first, last = self._outer_slashes()
            rows = group.rows if len(values) == 1 else np.repeat(group.rows, len(values))
            maybe = np.flatnonzero((first[rows] < closes) & (last[rows] >= opens))
            if len(maybe):
                opens, closes = opens[maybe], closes[maybe]
                has = np.searchsorted(self.slashes, closes) > np.searchsorted(self.slashes, opens)
                spans = zip(opens[has].tolist(), closes[has].tolist(), strict=True)
                if len(texts := [self.string(start, end) for start, end in spans]):
                    hashes[maybe[has]] = hash_texts(texts)
        return hashes

    def _outer_slashes(self) -> tuple[Ints, Ints]:
        """The first and the last backslash of each row; of a row without, that of another one."""
        if self._slashes_of is None:
            bounds = np.searchsorted(self.slashes, self.block.ends)
            slashes = np.append(self.slashes, len(self.padded))
            if self.block.is_plain:
                first = np.concatenate(([0], bounds[:-1]))
            else:
                first = np.searchsorted(self.slashes, self.block.starts)
            self._slashes_of = slashes[first], slashes[bounds - 1]
        return self._slashes_of

    def string(self, start: int, end: int) -> str:
        """The text of the string between two quotes."""
        return str(msgspec.json.decode(self.padded[start - 1 : end + 1]))

    def id_of(self, group: TemplateRows, column: int) -> str:
        """The id of one row of a group; empty if it has none."""
        value = group.template.id
        if value is None:
            return ""
        start, end = int(group.opens[value, column]), int(group.closes[value, column])
        return self.string(start, end) if group.template.number is None else self.padded[start:end].decode()


def without_blank(group: TemplateRows, text: BlockText) -> TemplateRows:
    """Leave out rows with a text or a reference that may be blank, and those with a tag too few."""
    template, array = group.template, text.array
    needed = [*template.texts, *template.images, *(() if template.id is None else (template.id,))]
    keep: Bools = np.all(group.closes[needed] > group.opens[needed], axis=0)
    if template.texts:
        begins = group.opens[list(template.texts)]
        leads = True
        for number, value in enumerate(template.texts):
            wanted = int(template.tags[value])
            if wanted:
                begins[number], found = _behind_tags(text, begins[number], group.closes[value])
                leads = leads and bool((found == wanted).all())
        first = array[begins]
        plain = (first > ord(" ")) & (first != _BACKSLASH)
        if not first[plain].max(initial=0) < 0x80:
            plain &= (first < 0x80) | is_letter(first, text.next[begins])
        keep &= plain.all(axis=0) & (group.closes[list(template.texts)] > begins).all(axis=0)
        if not leads:
            keep &= _has_same_tags(group, text)
    return group if keep.all() else _choose(group, keep)


def _behind_tags(text: BlockText, begins: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """Where texts begin behind the tags, with a line end each, that they begin with; how many tags these are."""
    begins, count = begins.copy(), np.zeros(len(begins), np.int64)
    for _ in range(8):
        tagged = (text.words[begins] & _TAG_MASK) == _TAG_WORD
        if not tagged.any():
            break
        begins += tagged * len(_TAG)
        ended = tagged & ((text.words[begins] & np.uint64(0xFFFF)) == _LINE_END)
        begins += ended * 2
        count += tagged
    return np.minimum(begins, ends), count


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


def _is_utf8(array: Bytes, beyond: Ints | None) -> bool:
    """Whether bytes are UTF-8. If it is known where some are beyond ASCII, only these are decoded."""
    found = array
    if beyond is not None:
        found = array[beyond]
        follows = np.flatnonzero((found & 0xC0) == 0x80)  # not the first byte of a character
        if len(follows) and (follows[0] == 0 or (beyond[follows] - beyond[follows - 1] != 1).any()):
            return False
    try:
        found.tobytes().decode()
    except UnicodeDecodeError:
        return False
    return True
