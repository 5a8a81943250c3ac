"""Rows of the usual kind in one pass, of formats whose messages are texts or blocks; the others as in `plain`."""

from collections.abc import Iterable
from typing import Any

from phi3v_data.formats.blocks import BlockFormat
from phi3v_data.formats.chat import ImageRef
from phi3v_data.formats.encoded_turns import EncodedTurns
from phi3v_data.formats.fields import as_block
from phi3v_data.formats.plain_fields import (
    MessageReader,
    PlainTurn,
    RowFields,
)
from phi3v_data.formats.texts import marker_starts, own_marker
from phi3v_data.json_text import invalid_character

READING_BLOCKS = (
    "read",
    "chat_of",
    "images_of",
    "messages_in",
    "placed",
    "parts_of",
    "image_of",
    "weight_of",
)
"""Methods that read a row; a class that overrides one says by `own_columns` which rows need it."""


class PlainBlocks(MessageReader):
    """Reads plain rows of one format: role and content in each message, a text or blocks.

    `media`: columns of what a sample cannot hold, such as videos. `model`: as `own_marker`, with the same errors.
    """

    def __init__(self, row_format: BlockFormat, media: Iterable[str], model: str = "") -> None:
        own = set(row_format.own_columns or ())
        self._encoded = EncodedTurns({"role"} - own, {"content"} - own, row_format.roles_read, marker_starts(model))
        self._message_keys = tuple(row_format.message_keys)
        self._roles = dict(row_format.roles_read)
        self._image_types = frozenset(row_format.image_types)
        self._image_of = row_format.plain_image
        self._weight_key = row_format.weight_key
        self._texts_take_images = row_format.texts_take_images
        self._fields = RowFields(
            row_format.image_columns,
            row_format.weight_key,
            row_format.own_columns or (),
            (*media, row_format.tools_key),
        )
        self._model = model

    def _read(self, row: Any) -> tuple[str, list[PlainTurn]] | None:
        if type(row) is not dict or not self._fields.is_usual(row):
            return None
        key = next((key for key in self._message_keys if key in row), None)
        messages = None if key is None else row[key]
        images = self._fields.images_of(row)
        if type(messages) is not list or images is None:
            return None
        system = ""
        turns: list[PlainTurn] = []
        question: str | None = None
        is_trained = False
        refs: list[ImageRef] = []
        offsets: list[int] = []
        rest = iter(images)
        for number, message in enumerate(messages):
            if type(message) is not dict or "role" not in message or "content" not in message:
                return None
            weight = 1
            if len(message) != 2:
                if len(message) != 3 or self._weight_key not in message:
                    return None
                weight = self._fields.weight_of(message)
            name, content = message["role"], message["content"]
            if type(name) is not str or weight < 0:
                return None
            found: list[ImageRef] = []
            places: list[int] = []
            if type(content) is str:
                text = content
                if images and self._texts_take_images and self._roles.get(name) == "user":
                    return None
            else:
                read = self._content(content, f"{key}[{number}].content", rest)
                if read is None:
                    return None
                text, found, places = read
            if own_marker(text, self._model) or "\0" in text or (not text.isascii() and invalid_character(text)):
                return None
            role = self._roles.get(name)
            if role == "user" and question is None and (found or text.strip()):
                question, refs, offsets = text, found, places
            elif found:
                return None
            elif role == "assistant" and question is not None and text.strip():
                turns.append((question, text, offsets, weight, refs))
                is_trained = is_trained or weight == 1
                question = None
            elif role == "system" and not number:
                system = text
            else:
                return None
        if question is not None or not is_trained or next(rest, None) is not None:
            return None
        return system, turns

    def _content(
        self, blocks: Any, where: str, images: "Iterable[ImageRef]"
    ) -> tuple[str, list[ImageRef], list[int]] | None:
        """The text of blocks, its images and their offsets in it; images without a reference are the next of `images`.

        None if a block needs a closer look, or there is no next image.
        """
        if type(blocks) is not list:
            return None
        text = ""
        refs: list[ImageRef] = []
        offsets: list[int] = []
        rest = iter(images)
        for number, block in enumerate(blocks):
            block = as_block(block)
            if type(block) is not dict:
                return None
            kind = block.get("type")
            if kind == "text":
                piece = block.get("text")
                if type(piece) is not str:
                    return None
                text += piece
            elif type(kind) is str and kind in self._image_types:
                found = self._image_of(block)
                if found is None:
                    return None
                value, path = found
                ref = ImageRef(value, f"{where}[{number}]{path}") if value else next(rest, None)
                if ref is None:
                    return None
                refs.append(ref)
                offsets.append(len(text))
            else:
                return None
        return text, refs, offsets
