"""Rows of shards as exports write them, made lines of a conversations directory without an object per message.

Most rows of most shards are of this kind, and may be millions: messages of blocks, an answer to each question, an image
block for each image. A row that is in any way unusual is left to the formats and `check_turns`, which also say what is
wrong with it. So all that is written here must be what `rows.line_of` would have written.
"""

import json
import re
from collections.abc import Iterator, Mapping
from json.encoder import encode_basestring
from typing import Any

from phi3v_data.formats.fields import extras
from phi3v_data.media.export_pack import PackedImage
from phi3v_data.shards.rows import ShardRow

_COLUMNS = frozenset({"id", "images", "messages", "answers", "group", "meta"})
_IMAGES = ({"type": "image"}, {"type": "image", "text": None}, '{"type": "image"}')
"""Image blocks: of JSON, of a column of objects that have all fields of all blocks, and as JSON text."""

_text_block = re.compile(
    r'\{"type": "text", "text": "([^"\\\x00-\x1f]*+(?:\\["\\bfnrt][^"\\\x00-\x1f]*+)*+)"\}'
).fullmatch
"""Matches a text block as JSON text, whose text `json.dumps` spells in the same way: it is written again unread."""

_VISIBLE = frozenset(map(chr, range(0x21, 0x7F))) - {"\\"}


def plain_line(row: ShardRow, source: str, number: str) -> tuple[bytes, list[PackedImage], int] | None:
    """As `rows.line_of`; None if the row needs a closer look."""
    value = row.value
    name = value.get("id")
    if name is None or name == "":
        name = number
    if type(name) is not str or not _COLUMNS.issuperset(value):
        return None
    images = _images_of(value.get("images"), row.images)
    others = _others_of(value)
    if images is None or others is None:
        return None
    rest = iter(images)
    turns = _turns_of(value.get("messages"), rest)
    if turns is None or next(rest, None) is not None:
        return None
    if len(images) > 1:
        images = list({image.name: image for image in images}.values())
    try:
        return (
            f'{{"id": {encode_basestring(name)}, "source": {encode_basestring(source)}, {turns}{others}}}\n'.encode(),
            images,
            1,
        )
    except UnicodeEncodeError:  # half a character
        return None


def _images_of(value: Any, known: Mapping[str, PackedImage]) -> list[PackedImage] | None:
    """The images that a row refers to, in order; None if one is not in the shard."""
    if type(value) is not list:
        return None
    images = []
    for reference in value:
        found = known.get(reference) if type(reference) is str else None
        if found is None:
            return None
        images.append(found)
    return images


def _others_of(value: Mapping[str, Any]) -> str | None:
    """The text of what comes with the conversation; None if a value is not of the usual type."""
    text = ""
    answers, group, meta = value.get("answers"), value.get("group"), value.get("meta")
    if answers:
        if type(answers) is not list or not all(type(answer) is str for answer in answers):
            return None
        text = f', "answers": [{", ".join(map(encode_basestring, answers))}]'
    if group:
        if type(group) is not str:
            return None
        text += f', "group": {encode_basestring(group)}'
    if meta:
        found = extras({"meta": meta}).get("meta")
        if found:
            text += f', "meta": {json.dumps(found, ensure_ascii=False)}'
    return text


def _turns_of(messages: Any, images: Iterator[PackedImage]) -> str | None:
    """`conversations` and `system`; None if a message needs a closer look, or there are too few images.

    Args:
        images: those of the image blocks, in order; the rest is left.
    """
    if type(messages) is not list:
        return None
    turns = []
    system = ""
    question = None
    for place, message in enumerate(messages):
        if type(message) is not dict or len(message) != 2 + ("weight" in message):
            return None
        content = _content_of(message.get("content"), images)
        if content is None:
            return None
        text, names, offsets = content
        role, weight = message.get("role"), message.get("weight")
        if weight is not None and (type(weight) is not int or weight not in (0, 1)):
            return None
        if role == "user" and question is None:
            placed = f', "image_offsets": {offsets}' if any(offsets) else ""
            question = f'{{"images": [{", ".join(names)}], "user": "{text}"', placed
        elif names or type(role) is not str:
            return None
        elif role == "assistant" and question is not None and not _is_blank(text):
            asked, placed = question
            unweighted = ', "weight": 0' if weight == 0 else ""
            turns.append(f'{asked}, "assistant": "{text}"{placed}{unweighted}}}')
            question = None
        elif role == "system" and not place:
            system = f', "system": "{text}"' if text else ""
        else:
            return None
    if question is not None or not turns:
        return None
    return f'"conversations": [{", ".join(turns)}]{system}'


def _content_of(blocks: Any, images: Iterator[PackedImage]) -> tuple[str, list[str], list[int]] | None:
    """The text of blocks as it is spelled inside quotes, the names of its images as JSON texts, and their offsets."""
    if type(blocks) is not list:
        return None
    text = ""
    names: list[str] = []
    offsets: list[int] = []
    for block in blocks:
        if type(block) is str and (match := _text_block(block)) is not None:
            text += match[1]
        elif block in _IMAGES:
            image = next(images, None)
            if image is None:
                return None
            names.append(encode_basestring(image.name))
            offsets.append(len(_unspelled(text)))
        elif type(block) is dict and len(block) == 2 and block.get("type") == "text":
            piece = block.get("text")
            if type(piece) is not str:
                return None
            text += encode_basestring(piece)[1:-1]
        else:
            return None
    return text, names, offsets


def _is_blank(text: str) -> bool:
    """Whether a text, spelled as inside quotes, has nothing but white space."""
    return text[:1] not in _VISIBLE and not _unspelled(text).strip()


def _unspelled(text: str) -> str:
    """A text of its spelling inside quotes."""
    return str(json.loads(f'"{text}"')) if "\\" in text else text
