"""The processor: golden ids, the official tokenizer's structure, batches, tags that do not fit, conversations."""

from itertools import groupby
from typing import Any

import numpy as np
import pytest
import torch
from golden_files import GOLDEN, golden_image, golden_json, golden_processor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from phi3v_data.tokens.phi3v_geometry import num_image_tokens
from phi3v_train.models.phi3v.image_processing_phi3_v import Phi3VImageProcessor
from phi3v_train.models.phi3v.processing_phi3_v import Phi3VProcessor
from phi3v_train.models.phi3v.prompts import ImageTagError, encode_piece, encode_prompt

OFFICIAL = golden_json("official_tokenizer_ids.json")["cases"]
TINY_MINUS_OFFICIAL = -31571
REFUSED = {"two_images_swapped_tags_nc4", "repeat_tag_nc1"}
PROCESSOR = golden_processor()
SPACE, NEWLINE = PROCESSOR.tokenizer.convert_tokens_to_ids(["▁", "<0x0A>"])


def make_image(width: int = 300, height: int = 300, value: int = 90) -> Image.Image:
    return Image.new("RGB", (width, height), (value, value, value))


def unrolled(ids: list[Any]) -> list[int]:
    """Run-length coded ids of the golden file as plain ids."""
    return [token for entry in ids for token in ([-entry["img"]] * entry["n"] if isinstance(entry, dict) else [entry])]


def skeleton(ids: list[int], space: int, newline: int, special_from: int, shift: int) -> list[Any]:
    """Common to two vocabularies: special ids, BOS, image runs, the space-newline pair behind them; text as a word."""
    marks: list[Any] = []
    index = 0
    while index < len(ids):
        token = ids[index]
        if token < 0 or token == 1 or token >= special_from:
            marks.append(token + shift if token >= special_from else token)
        elif ids[index : index + 2] == [space, newline] and marks and marks[-1] != "text":
            marks.append("newline")
            index += 1
        elif not marks or marks[-1] != "text":
            marks.append("text")
        index += 1
    return marks


@pytest.mark.parametrize("case", sorted(set(OFFICIAL) - REFUSED))
def test_structure_of_the_official_ids(case: str) -> None:
    expected = OFFICIAL[case]
    images = [golden_image(name) for name in expected["images"]]
    inputs = PROCESSOR(expected["prompt"], images or None, num_crops=expected["num_crops"], return_canvas=True)
    ids = inputs["input_ids"][0].tolist()
    official = skeleton(unrolled(expected["input_ids_rle"]), 29871, 13, 32000, TINY_MINUS_OFFICIAL)
    assert skeleton(ids, SPACE, NEWLINE, 429, 0) == official
    assert inputs["attention_mask"].tolist() == [[1] * len(ids)]


@pytest.mark.parametrize("case", sorted(golden_json("cases/index.json")))
def test_golden_ids(case: str) -> None:
    expected = golden_json("cases/index.json")[case]
    images = [golden_image(name) for name in expected["images"]]
    if case in REFUSED:
        with pytest.raises(ImageTagError, match=r"the tag <\|image_"):
            PROCESSOR(expected["prompt"], images, num_crops=expected["num_crops"])
        return
    inputs = PROCESSOR(expected["prompt"], images, num_crops=expected["num_crops"], return_canvas=True)
    ids = inputs["input_ids"][0].tolist()
    assert ids == load_file(GOLDEN / "cases" / f"{case}.safetensors")["input_ids"].tolist()
    assert inputs["image_sizes"].tolist() == expected["image_sizes"] if images else "image_sizes" not in inputs
    runs = [(-token, len(list(run))) for token, run in groupby(ids) if token < 0]
    assert runs == list(enumerate(expected["num_img_tokens"], 1))


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 900), st.integers(3, 900), st.sampled_from([1, 4, 16]))
def test_token_count_is_that_of_geometry(width: int, height: int, num_crops: int) -> None:
    inputs = PROCESSOR("a <|image_1|> b", make_image(width, height), num_crops=num_crops, return_canvas=True)
    assert int((inputs["input_ids"] == -1).sum()) == num_image_tokens(width, height, num_crops)


TWO_TEXTS = [
    "<|user|>\n<|image_1|>\nWhat?<|end|>\n<|assistant|>\n",
    "<|user|>\n<|image_1|><|image_2|>\nWhat now, then?<|end|>\n",
]
THREE_IMAGES = [make_image(300, 300), make_image(640, 210), make_image(210, 640)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("nested", [True, False])
def test_batch_equals_singles(side: str, nested: bool) -> None:
    images: Any = [THREE_IMAGES[:1], THREE_IMAGES[1:]] if nested else THREE_IMAGES
    batch = PROCESSOR(TWO_TEXTS, images, padding_side=side)
    singles = [PROCESSOR(TWO_TEXTS[0], THREE_IMAGES[:1]), PROCESSOR(TWO_TEXTS[1], THREE_IMAGES[1:])]
    for ids, mask, single in zip(batch["input_ids"], batch["attention_mask"], singles, strict=True):
        assert torch.equal(ids[mask.bool()], single["input_ids"][0])
        padding = ids[~mask.bool()]
        assert (padding == PROCESSOR.tokenizer.pad_token_id).all()
        if len(padding):
            assert mask[0 if side == "left" else -1] == 0
    for name in ("pixel_values", "image_sizes"):
        assert torch.equal(batch[name], torch.cat([single[name] for single in singles]))


def test_mask_comes_from_lengths_not_from_ids() -> None:
    """A text that ends in the padding token keeps it."""
    batch = PROCESSOR(["no<|end|>\n<|endoftext|>", "a longer text than that<|end|>\n<|endoftext|>"])
    lengths = batch["attention_mask"].sum(1).tolist()
    for row, length in zip(batch["input_ids"], lengths, strict=True):
        assert row[length - 1] == PROCESSOR.tokenizer.pad_token_id


def test_text_only_in_every_way() -> None:
    expected = PROCESSOR.tokenizer("Hello world")["input_ids"]
    for images in (None, []):
        inputs = PROCESSOR("Hello world", images)
        assert inputs["input_ids"].tolist() == [expected]
        assert set(inputs) == {"input_ids", "attention_mask"}
    for images in (None, [], [[], []], [None, None]):
        assert PROCESSOR(["Hello world"] * 2, images)["input_ids"].tolist() == [expected] * 2
    assert PROCESSOR("Hello world", return_tensors=None)["input_ids"] == expected
    assert PROCESSOR(text=["Hello world"], return_tensors=None)["input_ids"] == [expected]
    assert PROCESSOR("")["input_ids"].tolist() == [[1]]


def test_mixed_batch_of_text_and_images() -> None:
    batch = PROCESSOR(["no image here", "<|image_1|>"], [None, make_image()])
    assert (batch["input_ids"][0] >= 0).all()
    assert batch["pixel_values"].shape[0] == 1


def test_order_of_arguments_and_images_alone() -> None:
    one = PROCESSOR("<|image_1|>", make_image())
    other = PROCESSOR(make_image(), "<|image_1|>")
    assert torch.equal(one["input_ids"], other["input_ids"])
    assert set(PROCESSOR(images=[make_image()])) == {"pixel_values", "image_sizes"}
    assert set(PROCESSOR(images=[make_image()], return_canvas=True)) == {"canvases", "image_sizes"}


def test_padding_options() -> None:
    batch = PROCESSOR(["a", "b c d e"], padding="max_length", max_length=32)
    assert batch["input_ids"].shape == (2, 32)
    assert PROCESSOR(["a", "b c d e"], pad_to_multiple_of=64)["input_ids"].shape == (2, 64)
    assert [len(row) for row in PROCESSOR(["a", "b c d"], return_tensors=None)["input_ids"]] != [0, 0]
    with pytest.raises(ValueError, match="do not make one tensor"):
        PROCESSOR(["a", "b c d e"], padding=False)
    assert isinstance(PROCESSOR("a", return_tensors="np")["input_ids"], np.ndarray)


def test_truncation_never_cuts_an_image() -> None:
    text = "<|image_1|> one two three four five"
    whole = PROCESSOR(text, make_image(), num_crops=1)["input_ids"][0]
    cut = PROCESSOR(text, make_image(), num_crops=1, truncation=True, max_length=len(whole) - 3)["input_ids"][0]
    assert torch.equal(cut, whole[:-3])
    with pytest.raises(ValueError, match="the cut would go through an image"):
        PROCESSOR(text, make_image(), num_crops=1, truncation=True, max_length=200)


@pytest.mark.parametrize(
    ("text", "num_images", "tag"),
    [
        ("<|image_1|><|image_3|>", 2, "<|image_3|> where <|image_2|> was expected"),
        ("<|image_2|>", 1, "<|image_2|> where <|image_1|> was expected"),
        ("<|image_0|>", 1, "<|image_0|> where <|image_1|> was expected"),
        ("<|image_01|>", 1, "<|image_01|> where <|image_1|> was expected"),
        ("<|image_1|><|image_2|>", 1, "the tag <|image_2|>, but there is no image for it: images are only 1 given"),
        ("<|image_1|>", 2, "lacks the tag <|image_2|>"),
        ("no tag", 1, "lacks the tag <|image_1|>"),
        ("<|image|>", 1, "lacks the tag <|image_1|>"),
        ("<|image_1|>", 0, "the tag <|image_1|>, but there is no image for it: images are none given"),
        ("<|image_2|><|image_1|>", 2, "<|image_2|> comes before <|image_1|>"),
        ("<|image_1|> and <|image_1|>", 2, "<|image_1|> appears twice"),
        ("<|image_1|> and <|image_1|>", 1, "<|image_1|> appears twice"),
    ],
)
def test_tags_that_do_not_fit(text: str, num_images: int, tag: str) -> None:
    for images in ([make_image()] * num_images, [[make_image()] * num_images]):
        with pytest.raises(ImageTagError) as error:
            PROCESSOR(text, images)
        assert tag in str(error.value)
    if num_images == 0:
        with pytest.raises(ImageTagError, match="image_1"):
            PROCESSOR(text, None)
    with pytest.raises(ImageTagError, match=r"^text 2 of 2: "):
        PROCESSOR(["fine", text], [[], [make_image()] * num_images])


def test_lists_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="1 lists of images for 2 texts"):
        PROCESSOR(["<|image_1|>", "b"], [[make_image()]])
    with pytest.raises(ImageTagError, match=r"have 2 image tags such as <\|image_1\|>, but 1 images"):
        PROCESSOR(["<|image_1|>", "<|image_1|>"], [make_image()])
    with pytest.raises(ValueError, match="text must be a string or a list of strings, not int"):
        PROCESSOR(3)


def test_encoding_turn_by_turn_equals_the_whole() -> None:
    """As in training: prompts and answers encoded apart and joined are the ids of the joined text."""
    tokenizer = PROCESSOR.tokenizer
    first, second = (
        "<|user|>\n<|image_1|>\nWhat is this?<|end|>\n<|assistant|>\n",
        "<|user|>\n<|image_2|>\nand this?<|end|>\n<|assistant|>\n",
    )
    ids = encode_prompt(tokenizer, first, [313])
    ids += encode_piece(tokenizer, "red square") + encode_piece(tokenizer, "<|end|>\n")
    ids += encode_prompt(tokenizer, second, [313], first_image=2, bos=False)
    ids += encode_piece(tokenizer, "blue") + encode_piece(tokenizer, "<|end|>\n")
    whole = f"{first}red square<|end|>\n{second}blue<|end|>\n"
    assert ids == encode_prompt(tokenizer, whole, [313, 313])
    with pytest.raises(ImageTagError, match=r"lacks the tag <\|image_2\|>"):
        encode_prompt(tokenizer, "none", [313], first_image=2)


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Compare."}]},
    {"role": "assistant", "content": [{"type": "text", "text": "One is red."}]},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "And "},
            {"type": "image"},
            {"type": "text", "text": " with "},
            {"type": "image"},
            {"type": "text", "text": "?"},
        ],
    },
]


def test_chat_template() -> None:
    expected = (
        "<|system|>\nBe brief.<|end|>\n<|user|>\n<|image_1|><|image_2|>\nCompare.<|end|>\n"
        "<|assistant|>\nOne is red.<|end|>\n<|user|>\nAnd <|image_3|> with <|image_4|>?<|end|>\n"
    )
    assert PROCESSOR.apply_chat_template(CONVERSATION) == expected
    prompt = PROCESSOR.apply_chat_template(CONVERSATION, add_generation_prompt=True)
    assert prompt == expected + "<|assistant|>\n"
    # No generation prompt after an answer, as in the original; the tokenizer alone gives the same text.
    answered = CONVERSATION[:3]
    assert PROCESSOR.apply_chat_template(answered, add_generation_prompt=True).endswith("One is red.<|end|>\n")
    assert PROCESSOR.tokenizer.apply_chat_template(CONVERSATION, tokenize=False) == expected
    alone = [{"role": "user", "content": [{"type": "image"}]}]
    assert PROCESSOR.apply_chat_template(alone) == "<|user|>\n<|image_1|>\n<|end|>\n"


def test_chat_template_batch_numbers_each_conversation() -> None:
    texts = PROCESSOR.apply_chat_template([CONVERSATION[1:2], CONVERSATION[1:2]])
    assert texts == ["<|user|>\n<|image_1|><|image_2|>\nCompare.<|end|>\n"] * 2


def test_chat_template_tokenized_with_images() -> None:
    content = [{"type": "image", "image": THREE_IMAGES[0]}, {"type": "text", "text": "What?"}]
    conversation = [{"role": "user", "content": content}]
    inputs = PROCESSOR.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    direct = PROCESSOR(TWO_TEXTS[0], THREE_IMAGES[:1])
    assert set(inputs) == set(direct)
    assert all(torch.equal(inputs[name], direct[name]) for name in direct)


def test_chat_template_refuses_other_blocks() -> None:
    with pytest.raises(Exception, match="a content block has the type 'audio'"):
        PROCESSOR.apply_chat_template([{"role": "user", "content": [{"type": "audio"}]}])


def test_chat_template_without_the_images_is_refused() -> None:
    with pytest.raises(ImageTagError, match=r"<\|image_1\|>, but there is no image for it"):
        PROCESSOR.apply_chat_template(CONVERSATION, tokenize=True)


def test_decoding_survives_negative_ids() -> None:
    inputs = PROCESSOR(["<|image_1|>", "what is this?"], [[make_image()], []], num_crops=1)
    texts = PROCESSOR.batch_decode(inputs["input_ids"], skip_special_tokens=True)
    assert texts == ["", "what is this?"]
    assert PROCESSOR.decode(inputs["input_ids"][1], skip_special_tokens=True) == "what is this?"
    assert PROCESSOR.decode(-100) == ""
    labels = [-100, -100, *PROCESSOR.tokenizer("no", add_special_tokens=False)["input_ids"]]
    for value in (labels, torch.tensor(labels), np.array(labels)):
        assert PROCESSOR.decode(value) == PROCESSOR.tokenizer.decode(value) == "no"


def test_wrong_parts_are_refused() -> None:
    with pytest.raises(TypeError, match="image_processor"):
        Phi3VProcessor(PROCESSOR.tokenizer, Phi3VImageProcessor())
