"""Rows of the usual kind in one pass: a user's message and an answer in turn, images at `<image>` tags.

Most rows of most files are of this kind, and may be millions. A row that is in any way unusual is left to
`TaggedFormat.read` and `check_turns`, which also say what is wrong with it.
"""

from collections.abc import Iterable
from typing import Any

from phi3v_data.formats.base import RowFormat
from phi3v_data.formats.blocks import BlockFormat
from phi3v_data.formats.chat import ImageRef
from phi3v_data.formats.encoded_turns import EncodedTurns
from phi3v_data.formats.placeholders import IMAGE, split_at_tags
from phi3v_data.formats.plain_blocks import READING_BLOCKS, PlainBlocks
from phi3v_data.formats.plain_fields import (
    MessageReader,
    PlainReader,
    PlainTurn,
    RowFields,
)
from phi3v_data.formats.tagged import TaggedFormat
from phi3v_data.formats.texts import marker_starts, own_marker
from phi3v_data.json_text import invalid_character

READING = ("read", "lines_of", "messages_of", "message_of", "weight_of", "images_of", "fill", "with_pair")
"""Methods that read a row; a class that overrides one says by `own_columns` which rows need it."""


class PlainRows(MessageReader):
    """Reads plain rows of one format.

    `media`: columns of what a sample cannot hold, such as videos. `model`: as `own_marker`, with the same errors.
    """

    def __init__(self, row_format: TaggedFormat, media: Iterable[str], model: str = "") -> None:
        names = row_format.names
        self._message_keys = tuple(names.messages)
        self._role_keys, self._content_keys = tuple(names.role), tuple(names.content)
        self._system_key = names.system
        self._roles = dict(names.roles)
        self._model = model
        self._starts = tuple({"<", *marker_starts(model)})
        own = set(row_format.own_columns or ())
        self._encoded = EncodedTurns(
            set(self._role_keys) - own, set(self._content_keys) - own, self._roles, self._starts
        )
        self._has_other_tags = bool(row_format.other_tags)
        self._fields = RowFields(
            names.images, row_format.weight_key, row_format.own_columns or (), (*media, names.tools)
        )

    def _read(self, row: Any) -> tuple[str, list[PlainTurn]] | None:
        if type(row) is not dict or not self._fields.is_usual(row):
            return None
        messages = next((value for key in self._message_keys if (value := row.get(key)) is not None), None)
        images = self._fields.images_of(row)
        if type(messages) is not list or images is None:
            return None
        system = row.get(self._system_key) if self._system_key else ""
        if not system:
            system = ""
        elif not isinstance(system, str) or self._is_special(system):
            return None
        roles = self._roles
        role_key = content_key = ""
        turns: list[PlainTurn] = []
        question: str | None = None
        is_trained = False
        refs: list[ImageRef] = []
        offsets: list[int] = []
        num_placed = 0
        may_be_system = not system
        for message in messages:
            if type(message) is not dict:
                return None
            weight = 1
            if len(message) != 2 or role_key not in message or content_key not in message:
                role_key = next((key for key in self._role_keys if key in message), "")
                content_key = next((key for key in self._content_keys if key in message), "")
                weight = self._fields.weight_of(message)
                if not role_key or not content_key or weight < 0:
                    return None
            name, text = message[role_key], message[content_key]
            if type(name) is not str or type(text) is not str:
                return None
            role = roles.get(name)
            if role == "assistant":
                if question is None or not text.strip() or self._is_special(text):
                    return None
                turns.append((question, text, offsets, weight, refs))
                is_trained = is_trained or weight == 1
                question = None
                if refs:
                    refs, offsets = [], []
            elif role == "user" and question is None:
                if IMAGE in text:
                    refs, offsets, text = _placed(text, images[num_placed:])
                    num_placed += len(offsets)
                    if len(refs) < len(offsets):
                        return None
                if (not refs and not text.strip()) or self._is_special(text):
                    return None
                question = text
            elif role == "system" and may_be_system and not self._is_special(text):
                system = text
            else:
                return None
            may_be_system = False
        if question is not None or not is_trained or num_placed != len(images):
            return None
        return system, turns

    def _is_special(self, text: str) -> bool:
        """Whether a text has tags that are left, a control token of the model, a NUL, or half a character."""
        if "\0" in text or (not text.isascii() and invalid_character(text) is not None):
            return True
        for start in self._starts:
            if start in text:
                return (
                    IMAGE in text or (self._has_other_tags and "</img>" in text) or own_marker(text, self._model) != ""
                )
        return False


def make_plain_rows(row_format: RowFormat, media: Iterable[str], model: str = "") -> PlainReader | None:
    """The reader of plain rows of a format; None if its class reads all rows in its own way. Raises as `PlainRows`."""
    cls = type(row_format)
    if not isinstance(row_format, TaggedFormat | BlockFormat) or row_format.own_columns is None:
        return None
    if isinstance(row_format, TaggedFormat):
        return PlainRows(row_format, media, model) if _declares(cls, READING) else None
    reads_images = issubclass(_defining(cls, "plain_image"), _defining(cls, "image_of"))
    return PlainBlocks(row_format, media, model) if reads_images and _declares(cls, READING_BLOCKS) else None


def _declares(cls: type, reading: Iterable[str]) -> bool:
    """Whether the columns are declared by the class itself or one below those that override how rows are read."""
    declaring = _defining(cls, "own_columns")
    return all(issubclass(declaring, _defining(cls, name)) for name in reading)


def _defining(cls: type, name: str) -> type:
    """The class that defines an attribute of a class."""
    return next(base for base in cls.__mro__ if name in vars(base))


def _placed(text: str, images: list[ImageRef]) -> tuple[list[ImageRef], list[int], str]:
    """The images at the tags of a text, the offset of each tag, and the text without tags."""
    pieces: list[str] = []
    offsets: list[int] = []
    length = 0
    for piece in split_at_tags(text):
        if piece is None:
            offsets.append(length)
        else:
            pieces.append(piece)
            length += len(piece)
    return images[: len(offsets)], offsets, "".join(pieces)
