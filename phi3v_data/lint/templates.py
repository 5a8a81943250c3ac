"""Rows that differ from a good one in nothing but plain strings, verified a whole block at a time without parsing each.

One row is checked the long way. If it has no fault, the text between its ids, texts, paths of images and other free
strings is a template: a row with the same text around plain strings is valid, too, and has the same roles, keys and
numbers of images and tags. A plain string is valid UTF-8 without a control character or the start of a marker; its
escapes are of line ends, tabs, quotes and characters beyond ASCII. An id may be a whole number instead. All other rows
go the long way, and so do those of which more is checked: rows of a format of the user's own, and rows with images if
the consumer looks at these.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from phi3v_data.formats.consumers.base import RowView
from phi3v_data.formats.placeholders import IMAGE
from phi3v_data.formats.row_block import RowBlock, read_row
from phi3v_data.jsonl import BOM
from phi3v_data.lint.block_text import MAX_DIGITS, BlockText, Template, TemplateRows, without_blank
from phi3v_data.lint.row_check import RowCheck
from phi3v_data.validate.control import ControlTokens
from phi3v_data.validate.templates import MIN_ROWS, FixedTexts, KnownTemplates

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

_U = ord("u")
_MAX_SHAPES = 16  # with the same number of values, and rows that turned out to be like few others
_PLAIN_ESCAPES = np.zeros(256, np.bool_)
_PLAIN_ESCAPES[list(b'nrt"')] = True
_HEX = np.full(256, 16, np.int64)  # 16 for what is not a digit
for _digit in b"0123456789abcdefABCDEF":
    _HEX[_digit] = int(chr(_digit), 16)
_FIRST_ID = re.compile(rb'\{\s*"id"\s*:\s*(?:"(?:[^"\\]|\\.)*"|[^",}\]\s]*)')
_NUMBER = re.compile(rb"\s*:\s*(0|[1-9]\d{0,%d})(?!\d)" % (MAX_DIGITS - 1))
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


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
        self._is_known_format = type(check.format).__module__.startswith("phi3v_data.formats.")
        self._special = np.array(sorted(special), np.int64)
        self._known: KnownTemplates[Template, TemplateRows] = KnownTemplates(_MAX_SHAPES)

    def sort(self, block: RowBlock) -> tuple[BlockText, list[TemplateRows], Ints]:
        """The text of a block, its rows by template, and the numbers of the rows that are left."""
        text = BlockText(block)
        if len(block) < MIN_ROWS or not text.decodes or not self._is_known_format:
            return text, [], np.arange(len(block))
        self._mark(text)
        groups = [without_blank(group, text) for group in self._groups(text, block)]
        groups = text.without_more(groups, self._markers, with_tags=self._has_tags)
        left = np.ones(len(block), np.bool_)
        for group in groups:
            left[group.rows] = False
        return text, groups, np.flatnonzero(left)

    def _mark(self, text: BlockText) -> None:
        """Mark the rows that may have a marker, or that the consumer has to look at."""
        data = text.padded
        text.mark(np.array(self._candidates(text), np.int64))
        text.mark(text.slashes[~self._are_plain(text)])
        suspect = self._check.consumer.suspect
        if suspect is not None:
            text.mark(np.array([match.start() for match in suspect.finditer(data)], np.int64))

    def _are_plain(self, text: BlockText) -> Bools:
        """Which escapes are plain: of a line end, tab or quote, or of a character beyond ASCII that is in no marker."""
        following = text.next[text.slashes]
        plain: Bools = _PLAIN_ESCAPES[following]
        if plain.all():
            return plain
        spelled = np.flatnonzero(following == _U)
        spelled = spelled[text.slashes[spelled] + 6 <= len(text.array)]
        digits = _HEX[text.array[text.slashes[spelled][:, None] + np.arange(2, 6)]]
        codes = digits @ np.array([4096, 256, 16, 1])
        is_half = (codes >= 0xD800) & (codes <= 0xDFFF)
        plain[spelled] = (digits < 16).all(axis=1) & (codes >= 0x80) & ~is_half & ~np.isin(codes, self._special)
        return plain

    def _candidates(self, text: BlockText) -> list[int]:
        """Where a marker may begin; those with `<` are looked for at the few that are not tags."""
        found: list[int] = []
        for first, pattern in self._markers.candidates:
            if first != b"<":
                found += [match.start() for match in pattern.finditer(text.padded)] if first in text.padded else []
                continue
            places = text.less[~text.is_tag] if self._has_tags else text.less
            found += [place for place in places.tolist() if pattern.match(text.padded, place)]
        return found

    def _groups(self, text: BlockText, block: RowBlock) -> Iterator[TemplateRows]:
        return self._known.groups(text.by_num_values(), lambda row: self._learn(block, row), text.match)

    def _learn(self, block: RowBlock, index: int) -> Template | None:
        """The template of a row; None if it has a fault, or more to check than whether its strings are plain."""
        data = block.text(index)
        value, faults = read_row(data, block.name)
        if value is None or faults or not isinstance(value[0], dict):
            return None
        checked = self._check.check(value[0], index, count=0)
        view = checked.view
        if checked.faults or view is None or view.chat.rejected is not None:
            return None
        if self._check.consumer.checks_images and view.chat.images:
            return None
        return make_template(data, value[0], view)


def as_single_rows(block: RowBlock) -> tuple[BlockText, list[TemplateRows], Ints]:
    """A block of which every row is to be parsed, as `Templates.sort` gives it."""
    return BlockText(block), [], np.arange(len(block))


def make_template(data: bytes, row: Mapping[str, Any], view: RowView) -> Template | None:
    """The template of a good row; None if a free value is not plain, or an image is not a string of its own."""
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
            elif len(path) == 1 and text:  # an empty one may count as left out
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
    texts: list[str] = []
    fields: list[str] = []
    names: dict[str, list[int]] = {}
    num_quotes = 2 * len(found)
    has_number = type(row.get("id")) is int
    for match, (kind, text, field) in zip(found, kinds, strict=True):
        if kind == "key":
            if has_number and text == "id" and not field:
                digits = _NUMBER.match(data, match.end())
                if digits is None:
                    return None
                names["id"] = [len(texts)]
                parts.append(data[end : digits.start(1)])
                end = digits.end(1)
                texts.append("")
                fields.append("")
            continue
        if kind != "fixed":
            inner = data[match.start() + 1 : match.end() - 1]
            if b"\\\\" in inner:
                return None
            names.setdefault(kind, []).append(len(texts))
            free.append(number)
            parts.append(data[end : match.start() + 1])
            end = match.end() - 1
            texts.append(text)
            fields.append(field)
        number += 1
    if not free or len(names.get("image", ())) != len(view.chat.images):
        return None
    parts.append(data[end:])
    return Template(
        FixedTexts(tuple(parts)),
        np.array(free),
        row_id := next(iter(names.get("id", ())), None),
        row_id if has_number else None,
        tuple(names.get("text", ())),
        tuple(names.get("image", ())),
        tuple(names.get("other", ())),
        tuple(fields[value] for value in names.get("image", ())),
        np.array([text.count(IMAGE) for text in texts]),
        number,
        num_quotes,
        sum(part.count(b"[") for part in parts),
        sum(data.count(byte) for byte in range(ord(" "))),
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


def content_start(data: bytes) -> int:
    """Where the content of a row begins: behind a byte order mark, and behind its id if that comes first."""
    start = len(BOM) if data.startswith(BOM) else 0
    found = _FIRST_ID.match(data, start)
    return found.end() if found else start
