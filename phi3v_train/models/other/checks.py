"""Checks that the processor of any model of transformers must pass.

Nothing about the model is known here. The processor itself says what an image becomes in the text, and its own encoding
of two conversations is compared with ours, id by id, before anything is trained.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from phi3v_data.errors import UserError
from phi3v_data.tokens.chat import ChatFormat
from phi3v_data.tokens.other import OTHER
from phi3v_train.models.huggingface.checks import ONE_IMAGE, TWO_TURNS, stop_ids, vocabulary_size
from phi3v_train.models.huggingface.processor import load_parts
from phi3v_train.models.huggingface.texts import TemplateTexts
from phi3v_train.models.other.processor import OtherProcessor, blank, make_whole
from phi3v_train.models.other.renderer import UNUSED, OtherRenderer
from phi3v_train.models.renderer import PromptError

TEXT_INPUTS = ("input_ids", "attention_mask")
TYPE_INPUTS = ("mm_token_type_ids", "token_type_ids")
"""Inputs with a value for each token, 1 at image tokens."""


def load_other(directory: Path) -> OtherProcessor:
    """The processor of a directory, checked.

    Raises:
        UserError: a check that it does not pass, or a package that it needs.
    """
    try:
        parts = load_parts(directory)
        whole = make_whole(directory, parts)
    except (ImportError, ValueError, TypeError, AttributeError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:140]
        needs = " (it needs torchvision)" if "torchvision" in str(error).lower() else ""
        raise UserError(f"{directory}: the model's processor cannot be made{needs}: {reason}") from None
    found = OtherProcessor(parts.tokenizer, parts.image_processor, parts.chat_template, parts.settings, directory)
    found.whole = whole
    check(found, directory)
    return found


def check(processor: OtherProcessor, directory: Path) -> None:
    """Compare our encoding of two conversations with the processor's own, and set what it shows.

    Raises:
        UserError: the check that fails.
    """
    refused = f"{directory}: this model is not among the verified families (`phi3v-train models`), and "
    if not processor.chat_template:
        raise UserError(f"{refused}it has no chat template, so its prompts are not known")
    token = getattr(processor.whole, "image_token", None)
    if not isinstance(token, str):
        raise UserError(f"{refused}its processor names no image token")
    write = TemplateTexts(processor.tokenizer, processor.chat_template)
    try:
        (one,) = write(ONE_IMAGE, [turn.assistant for turn in ONE_IMAGE])
        both = write(TWO_TURNS, [turn.assistant for turn in TWO_TURNS])
    except PromptError as error:
        raise UserError(f"{refused}{error}") from None
    vocabulary = vocabulary_size(directory)
    known = processor.tokenizer.get_vocab().get(token)
    if known is None or (vocabulary is not None and known >= vocabulary):
        raise UserError(f"{refused}its tokenizer has no {token} that the model has an embedding for")
    tags = [tag for tag in (token, getattr(processor.whole, "boi_token", None)) if tag and one.prompt.count(tag) == 1]
    if not tags:
        raise UserError(f"{refused}its chat template does not write {token} once for one image")
    if not (one.answer or "").strip().startswith(ONE_IMAGE[0].assistant):
        raise UserError(f"{refused}its chat template gives no span of the answer to train on")
    answer = processor.tokenizer(one.answer or "", add_special_tokens=False)["input_ids"]
    if not set(answer) & stop_ids(processor, directory):
        raise UserError(
            f"{refused}its chat template ends an answer with none of the tokens at which the model stops, so that a "
            "tuned model would never stop"
        )
    chat = ChatFormat("", "", "", "", tags[0], image_token=token, plain_roles=True)
    processor.tokens = replace(OTHER, chat=chat)
    for segments, turns in (([one], ONE_IMAGE), (both, TWO_TURNS)):
        text = "".join(segment.prompt + (segment.answer or "") for segment in segments)
        images = [blank(90, 60), blank(50, 120)][: len(turns)]
        try:
            expected = processor.whole(text=[text], images=[images], return_tensors="np", add_special_tokens=False)
        except Exception as error:  # a processor can raise anything
            raise UserError(f"{refused}its processor fails: {' '.join(str(error).split())[:120]}") from None
        compare(processor, expected, turns, images, refused)


def compare(processor: OtherProcessor, expected: Any, turns: Any, images: list[Image.Image], refused: str) -> None:
    """Compare the processor's encoding with ours.

    Raises:
        UserError: they differ, or an input is not known.
    """
    ids = np.asarray(expected["input_ids"])[0]
    is_image = ids == processor.tokenizer.convert_tokens_to_ids(processor.whole.image_token)
    image_inputs = processor.image_processor(images=images[:1], return_tensors="np")
    processor.type_inputs = tuple(name for name in TYPE_INPUTS if name in expected)
    for name in processor.type_inputs:
        if not np.array_equal(np.asarray(expected[name])[0] != 0, is_image):
            raise UserError(f"{refused}its {name} are not 1 at image tokens alone")
    unknown = set(expected) - {*TEXT_INPUTS, *TYPE_INPUTS, *UNUSED} - set(image_inputs)
    if unknown:
        raise UserError(f"{refused}its model takes the unknown input {sorted(unknown)[0]}")
    renderer = OtherRenderer(processor)
    layouts = renderer.layouts([image.size for image in images], None)
    made = renderer.conversation(turns, [turn.assistant for turn in turns], layouts)
    ours = np.array([each for turn in made for each in (*turn.prompt, *(turn.answer.ids if turn.answer else ()))])
    start = renderer.start_ids
    found = renderer.model_ids(ours)
    if not (np.array_equal(found, ids) or np.array_equal(found, [*start, *ids])):  # a template may write them itself
        raise UserError(f"{refused}its processor encodes a conversation otherwise than its chat template says")
