"""Images inside texts: `<image>` tags and the parts between them.

At the start of a text each tag may be followed by one newline that belongs to the tag; elsewhere a tag is alone.
Writing always gives that newline, so that a text which itself begins with one comes back unchanged.
"""

import re
from collections.abc import Iterable, Sequence

from phi3v_data.formats.chat import Fault, ImageRef, Message, Part
from phi3v_data.messages import counted

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


def spell_out(text: str, reserved: Iterable[str]) -> str:
    """The text with a space inside each reserved string: `<image>` becomes `< image>`, which no reader replaces."""
    for string in reserved:
        text = re.sub(re.escape(string), f"{string[0]} {string[1:]}", text)
    return text
