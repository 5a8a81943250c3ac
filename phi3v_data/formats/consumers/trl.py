"""TRL 1.16 with transformers' chat templates."""

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

from phi3v_data.formats.chat import Fault
from phi3v_data.formats.consumers.base import Consumer, Effect, OverRows, RowView, blocks_of, content_key, text_of
from phi3v_data.formats.placeholders import IMAGE
from phi3v_data.messages import shown


class TRL(Consumer):
    """Reads messages of blocks, images in a column."""

    name = "trl"
    title = "TRL"
    formats = ("trl",)
    trains_all = True
    effects: ClassVar = {
        "last-turn-open": Effect("accepts the row, and trains nothing of it"),
        "no-turns": Effect("accepts the row, and trains nothing of it"),
        "role-unknown": Effect("stops, if the row has images"),
        "image-count": Effect("stops, and names the counts but not the row"),
        "turn-order": Effect("leaves it to the chat template, which may refuse it", "warning"),
        "system-message-place": Effect("leaves it to the chat template, which may refuse it", "warning"),
    }

    def judge(self, fault: Fault, view: RowView | None) -> Fault | None:
        if fault.code == "image-count" and view is not None and _keyed_blocks(view):
            return None  # `check` says more
        if fault.code == "image-in-answer" and view is not None and "completion" in view.row:
            return replace(fault, message=f"{fault.message}: TRL wants all images in the prompt")
        return super().judge(fault, view)

    def check(self, view: RowView) -> Iterator[Fault]:
        row = view.row
        moved = list(_moved(view)) if view.has_images else []
        yield from moved or _literal(view)
        for field in _keyed_blocks(view):
            yield Fault(
                "image-ignored",
                field,
                "TRL does not take a block with a key 'image' for the place of an image, even if it is null",
                "write {'type': 'image'} alone",
            )
        for key, kind, words in (("images", str, "each of its characters"), ("image", list | tuple, "the whole array")):
            value = row.get(key)
            if value and isinstance(value, kind):
                text = f"{shown(key)} is {shown(value)}: TRL takes {words} for an image, and stops"
                yield Fault("wrong-type", key, text, "write an array of images under 'images'")
        if row.get("tools") and (view.has_images or "images" in row):
            yield Fault("key-ignored", "tools", "TRL drops 'tools' of rows with images")

    def over_rows(self) -> OverRows:
        return _FirstRow()


class _FirstRow(OverRows):
    """TRL decides by the first row whether a set has images."""

    def __init__(self) -> None:
        self._first: tuple[int, bool] | None = None  # place of the first row, and whether it has the column
        self._found: tuple[int, str] | None = None  # the first row with images

    def row(self, view: RowView, place: int, count: int = 1) -> None:
        if self._first is None or place < self._first[0]:
            self._first = place, bool(view.row.keys() & {"image", "images"})
        if view.has_images and (self._found is None or place < self._found[0]):
            self._found = place, "images" if "images" in view.row else "image"

    def end(self, num_rows: int) -> Iterator[tuple[int | None, Fault]]:
        if self._found is not None and self._first is not None and not self._first[1]:
            field = self._found[1]
            message = f"the first row has no column {shown(field)}, which later ones have"
            message = f"{message}: TRL reads the whole set without images"
            yield self._first[0], Fault("text-only-set", field, message, f"give the first row {shown(field)}: []")


def _moved(view: RowView) -> Iterator[Fault]:
    """A fault where the images may belong elsewhere than before the first user message that is a text."""
    users = [(where, message) for where, message in view.messages if message.get("role", message.get("from")) == "user"]
    first = next((user for user in users if text_of(user[1])), None)
    is_tagged = any(IMAGE in text_of(message) for _, message in view.messages)
    if first is None or not (is_tagged or len(users) > 1):
        return
    if any(block.get("type") == "image" for _, message in view.messages for _, block in blocks_of(message)):
        return  # more places than images
    where, message = first
    literal = f"; {IMAGE} in a text stays a literal text, at which some models stop" if is_tagged else ""
    yield Fault(
        "image-moved",
        f"{where}.{content_key(message)}",
        f"TRL puts all images before the first user message that is a text{literal}",
        "write blocks: {'type': 'image'} where each image belongs",
    )


def _literal(view: RowView) -> Iterator[Fault]:
    """A warning if a text has a tag, which means nothing to TRL."""
    for where, message in view.messages:
        field = f"{where}.{content_key(message)}"
        texts: list[tuple[str, object]] = [(field, text_of(message))]
        texts += [(f"{field}[{number}].text", block.get("text")) for number, block in blocks_of(message)]
        for place, text in texts:
            if isinstance(text, str) and IMAGE in text:
                said = f"TRL keeps {IMAGE} in a text, where models with this placeholder (LLaVA, Idefics3, SmolVLM)"
                said += " look for an image and stop"
                yield Fault("placeholder-in-text", place, said, "write it with a space, as in '< image>'", "warning")
                return


def _keyed_blocks(view: RowView) -> list[str]:
    """Fields of image blocks with a key `image`, in a row with a column of images."""
    if not view.has_images:
        return []
    return [
        f"{where}.content[{number}].image"
        for where, message in view.messages
        for number, block in blocks_of(message)
        if block.get("type") == "image" and "image" in block
    ]
