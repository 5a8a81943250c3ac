"""Converts text with image tags to token ids, for processor, training and evaluation.

The text is split at its image tags and each piece is tokenized separately, with its own beginning-of-sequence id, as in
the released processor: id 1 is at the start and after every image, alone if nothing follows the tag. Image n becomes a
run of the id -n, with the length given by its geometry.

    "<|user|>\\n<|image_1|>\\nWhat?<|end|>\\n" with [757]  ->  1 <|user|> 29871 13, 757 times -1, 1 29871 13 ...
"""

from collections.abc import Sequence
from typing import Any

from phi3v_data.tokens.phi3v import CHAT
from phi3v_train.models.renderer import PromptError

IMAGE_TAG = CHAT.image_pattern


class ImageTagError(PromptError):
    """The image tags of a text do not fit its images."""


def image_tag(number: int) -> str:
    """The tag that stands for image `number`, counted from 1."""
    return CHAT.numbered_tag(number)


def encode_prompt(
    tokenizer: Any, text: str, num_image_tokens: Sequence[int] = (), *, first_image: int = 1, bos: bool = True
) -> list[int]:
    """Token ids of `text`, whose tags stand for images of `num_image_tokens` tokens each, in order.

    A later turn of a sequence continues the numbers: `first_image` is the number of its first tag, and `bos=False`
    omits the id at its start (those after images are kept). Raises ImageTagError if tags and images do not match.
    """
    check_image_tags(text, len(num_image_tokens), first_image=first_image)
    pieces = IMAGE_TAG.split(text)[::2]
    ids = [tokenizer.bos_token_id] if bos else []
    ids += encode_piece(tokenizer, pieces[0])
    for offset, (count, piece) in enumerate(zip(num_image_tokens, pieces[1:], strict=True)):
        ids += [-(first_image + offset)] * count
        ids.append(tokenizer.bos_token_id)
        ids += encode_piece(tokenizer, piece)
    return ids


def prompt_offsets(
    tokenizer: Any, text: str, num_image_tokens: Sequence[int] = (), *, bos: bool = True
) -> list[tuple[int, int]]:
    """The characters of `text` (begin, end) that each id of `encode_prompt` stands for; a BOS stands for none."""
    offsets = [(0, 0)] if bos else []
    begin = 0
    for count, tag in zip(num_image_tokens, IMAGE_TAG.finditer(text), strict=True):
        offsets += piece_offsets(tokenizer, text[begin : tag.start()], begin)
        offsets += [tag.span()] * count + [(tag.end(), tag.end())]
        begin = tag.end()
    return offsets + piece_offsets(tokenizer, text[begin:], begin)


def piece_offsets(tokenizer: Any, text: str, begin: int) -> list[tuple[int, int]]:
    """The characters that each id of `encode_piece` stands for, counted from `begin`."""
    if not text:
        return []
    offsets = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)["offset_mapping"]
    return [(begin + start, begin + end) for start, end in offsets]


def encode_piece(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text without images, nothing added: an answer, or a stretch between two tags."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []
    return ids


def check_image_tags(text: str, num_images: int, *, first_image: int = 1) -> None:
    """Raise ImageTagError unless the tags of `text` are `first_image`, `first_image` + 1, ... in order, one an image.

    The released processor lets tags in the wrong order through and mixes up the images, and crashes the model on a
    repeated one.
    """
    tags = [match.group() for match in IMAGE_TAG.finditer(text)]
    last = first_image + num_images - 1
    for index, tag in enumerate(tags):
        wanted = image_tag(first_image + index)
        if tag == wanted:
            if index >= num_images:
                given = f"only {num_images} given" if num_images else "none given"
                raise ImageTagError(f"the text has the tag {tag}, but there is no image for it: images are {given}")
            continue
        if tag in tags[:index]:
            raise ImageTagError(
                f"the tag {tag} appears twice in the text: each image has one tag; give the image again as "
                f"another image, or remove the second {tag}"
            )
        if wanted in tags:
            raise ImageTagError(f"the tag {tag} comes before {wanted}: tags must be in the order of the images")
        raise ImageTagError(
            f"the text has the tag {tag} where {wanted} was expected, and no {wanted} at all: number the tags "
            f"{image_tag(first_image)}, {image_tag(first_image + 1)}, ... in the order of the images"
        )
    if len(tags) < num_images:
        missing = image_tag(first_image + len(tags))
        raise ImageTagError(
            f"{num_images} image(s) given, but the text lacks the tag {missing}: put one tag in the text for each "
            f"image, up to {image_tag(last)}"
        )
