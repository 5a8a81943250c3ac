"""axolotl 0.19.0."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from phi3v_data.formats.chat import Fault
from phi3v_data.formats.consumers.base import Consumer, Effect, RowView, blocks_of, content_key, text_of
from phi3v_data.messages import shown

_REFERENCES = ("image", "url", "path", "base64")


class Axolotl(Consumer):
    """Reads messages of blocks, each image in its block."""

    name = "axolotl"
    title = "axolotl"
    formats = ("axolotl",)
    trains_all = True
    effects: ClassVar = {
        "turn-order": Effect("leaves it to the chat template, which may refuse it", "warning"),
        "system-message-place": Effect("leaves it to the chat template, which may refuse it", "warning"),
        "last-turn-open": Effect("trains the answers before it"),
        "role-unknown": Effect("leaves it to the chat template, which may refuse it"),
        "image-missing": Effect("stops"),
        "no-turns": Effect("stops if there is no message at all, and else trains nothing of the row"),
    }

    def judge(self, fault: Fault, view: RowView | None) -> Fault | None:
        if fault.code == "image-count" and view is not None:
            if view.has_images and _num_bare(view) <= 1:
                return None  # `check` says more
            if view.has_images or _num_own(view):
                return replace(fault, message=f"{fault.message}: axolotl stops")
            return replace(fault, message=f"{fault.message}: axolotl keeps the place of an image, and reads none")
        if fault.code in ("wrong-type", "missing-field") and fault.field.endswith(".content"):
            words = f"{fault.message}: axolotl leaves the message out without a word"
            return replace(fault, message=words)
        return super().judge(fault, view)

    def check(self, view: RowView) -> Iterator[Fault]:
        key = "images" if "images" in view.row else "image"
        column = view.row.get(key)
        if column in ("", [], ()):
            words = f"{shown(key)} is empty: axolotl takes its first image, and stops"
            yield Fault("wrong-type", key, words, "write null, or leave the key out")
        elif isinstance(column, str):
            words = "axolotl takes the first character of a text for an image, and stops"
            yield Fault("wrong-type", key, words, "write an array of one path")
        elif column:
            if isinstance(column, list | tuple) and len(column) > 1:
                yield Fault(
                    "image-ignored",
                    f"{key}[1]",
                    f"axolotl uses the first of the {len(column)} images of the column, with one warning",
                    "give each image its own block with 'path'",
                )
            users = [message for message in view.chat.messages if message.role == "user"]
            is_only_place = len(users) < 2 and not _num_own(view)  # tags in its text are named below
            if not _num_bare(view) and not is_only_place:
                yield Fault(
                    "image-moved",
                    key,
                    "axolotl puts the image of the column after the first user text",
                    "give the image a block with 'path' where it belongs",
                    "warning",
                )
        for answer in view.chat.messages:
            if answer.role == "assistant" and answer.text.startswith("\n"):
                yield Fault(
                    "answer-newline",
                    answer.field,
                    "axolotl does not train an answer that begins with a newline, which changes the tokens before it",
                    "remove the newline",
                )
        for where, message in view.messages:
            if "<image>" in text_of(message):
                found = Fault("image-ignored", f"{where}.{content_key(message)}", "axolotl keeps <image> as a text")
                yield replace(found, hint="write a block with 'path' in its place")


def _num_bare(view: RowView) -> int:
    """The image blocks without a reference."""
    return len(_image_blocks(view)) - _num_own(view)


def _num_own(view: RowView) -> int:
    """The image blocks with a reference."""
    return sum(any(block.get(key) for key in _REFERENCES) for block in _image_blocks(view))


def _image_blocks(view: RowView) -> list[Mapping[str, Any]]:
    """The image blocks of all messages."""
    return [block for _, message in view.messages for _, block in blocks_of(message) if block.get("type") == "image"]
