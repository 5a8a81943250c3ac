"""axolotl 0.19.0."""

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

from phi3v_data.formats.chat import Fault
from phi3v_data.formats.consumers.base import Consumer, Effect, RowView, blocks_of, content_key, text_of

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
    }

    def judge(self, fault: Fault, view: RowView | None) -> Fault | None:
        if fault.code == "image-count" and view is not None and view.has_images:
            return None  # `check` says more
        return super().judge(fault, view)

    def check(self, view: RowView) -> Iterator[Fault]:
        key = "images" if view.row.get("images") else "image"
        column = view.row.get(key)
        if column:
            if isinstance(column, list | tuple) and len(column) > 1:
                yield Fault(
                    "image-ignored",
                    f"{key}[1]",
                    f"axolotl uses the first of the {len(column)} images of the column, with one warning",
                    "give each image its own block with 'path'",
                )
            users = [message for message in view.chat.messages if message.role == "user"]
            bare = any(_is_bare(block) for _, message in view.messages for _, block in blocks_of(message))
            if not bare and len(users) > 1:  # of one message, it is the only place; tags are named below
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


def _is_bare(block: object) -> bool:
    return isinstance(block, dict) and block.get("type") == "image" and not any(block.get(k) for k in _REFERENCES)
