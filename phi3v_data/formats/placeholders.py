"""Images inside texts: `<image>` tags and the parts between them.

At the start of a text each tag may be followed by one newline that belongs to the tag; elsewhere a tag is alone.
Writing always gives that newline, so that a text which itself begins with one comes back unchanged.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from phi3v_data.formats.chat import Fault, ImageRef, Message, Part
from phi3v_data.messages import counted
from phi3v_data.suffixes import SOURCE_IMAGE_SUFFIXES

IMAGE = "<image>"


def split_at_tags(text: str, tag: str = IMAGE) -> list[str | None]:
    """The text cut at its tags: texts, and None for each tag; the newline of a tag at the start is removed."""
    pieces: list[str | None] = []
    leading = True
    for number, piece in enumerate(text.split(tag)):
        if number:
            pieces.append(None)
            if leading and piece.startswith("\n"):
                piece = piece[1:]
        if piece:
            pieces.append(piece)
            leading = False
    return pieces


@dataclass(frozen=True, slots=True)
class OtherTag:
    """Another spelling of image tags. `pattern` may have a group: the number of the image from 1, or its path."""

    name: str  # for messages
    pattern: re.Pattern[str]
    holds: str = ""  # "number", "path", or nothing: the images follow in order


OTHER_TAGS = (
    OtherTag("<Image>", re.compile("<Image>")),
    OtherTag("<ImageHere>", re.compile("<ImageHere>")),
    OtherTag("<image_1>", re.compile(r"<image_0*([1-9][0-9]{0,4})>"), "number"),
    INLINE := OtherTag(
        "<img>PATH</img>",
        re.compile(rf"<img>\s*([^<>\n]{{1,4096}}(?:{'|'.join(map(re.escape, SOURCE_IMAGE_SUFFIXES))}))\s*</img>", re.I),
        "path",
    ),
)
"""Spellings found in files of LLaVA's forks, Qwen-VL 1, InternLM-XComposer and MMMU."""


def fill_with(
    tag: OtherTag, texts: Iterable[tuple[str, str]], images: Sequence[ImageRef]
) -> list[tuple[Part, ...]] | None:
    """Parts of each text with the images at another spelling of the tags; None if tags and images do not fit."""
    if tag.holds == "path" and images:
        return None
    used: list[int] = []
    result: list[tuple[Part, ...]] = []
    for text, field in texts:
        parts: list[Part] = []
        leading = True
        at = 0
        for match in tag.pattern.finditer(text):
            _add_text(parts, text[at : match.start()], after_tag=leading and at > 0)
            leading = leading and not any(isinstance(part, str) for part in parts)
            at = match.end()
            if tag.holds == "path":
                parts.append(ImageRef(match[1], field))
                used.append(len(used))
                continue
            number = int(match[1]) - 1 if tag.holds else len(used)
            if number >= len(images):
                return None
            parts.append(images[number])
            used.append(number)
        _add_text(parts, text[at:], after_tag=leading and at > 0)
        result.append(tuple(parts))
    if not used or (tag.holds != "path" and set(used) != set(range(len(images)))):
        return None
    return result


def _add_text(parts: list[Part], text: str, *, after_tag: bool) -> None:
    """Add a text; after a tag at the start, one newline belongs to the tag."""
    text = text.removeprefix("\n") if after_tag else text
    if text:
        parts.append(text)


def fill_tags(
    texts: Iterable[tuple[str, str]], images: Sequence[ImageRef], *, tag: str = IMAGE, field: str = "images"
) -> tuple[list[tuple[Part, ...]], list[Fault]]:
    """Parts of each text, with the images at their tags in order.

    Args:
        texts: the text of each message and its field.
        images: the images of the whole row.
        field: the row's field of the images, for the fault.

    Returns:
        The parts of each text, and an `image-count` fault if there are more or fewer images than tags. Surplus tags
        are left out, surplus images are not placed.
    """
    rest = iter(images)
    num_tags = 0
    result: list[tuple[Part, ...]] = []
    for text, _ in texts:
        parts: list[Part] = []
        for piece in split_at_tags(text, tag):
            if piece is not None:
                parts.append(piece)
                continue
            num_tags += 1
            image = next(rest, None)
            if image is not None:
                parts.append(image)
        result.append(tuple(parts))
    if num_tags == len(images):
        return result, []
    return result, [
        Fault(
            "image-count",
            field,
            f"the texts have {counted(num_tags, f'{tag} tag')} for {counted(len(images), 'image')}",
            f"give one {tag} per image, where the image belongs",
        )
    ]


def text_with_tags(message: Message, tag: str = IMAGE) -> str:
    """The text of a message with a tag for each image; the inverse of `split_at_tags`."""
    pieces: list[str] = []
    leading = True
    for part in message.parts:
        if isinstance(part, str):
            pieces.append(part)
            leading = leading and not part
        else:
            pieces.append(f"{tag}\n" if leading else tag)
    return "".join(pieces)


def has_reserved(message: Message, reserved: tuple[str, ...]) -> bool:
    """Whether a text of a message has one of the reserved strings."""
    search = _any_of(reserved).search
    return any(isinstance(part, str) and search(part) for part in message.parts)


@cache
def _any_of(strings: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, strings)))


def spell_out(text: str, reserved: Iterable[str]) -> str:
    """The text with a space inside each reserved string: `<image>` becomes `< image>`, which no reader replaces."""
    for string in reserved:
        text = re.sub(re.escape(string), f"{string[0]} {string[1:]}", text)
    return text
