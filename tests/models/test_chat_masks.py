"""Masks of answers from the chat template: the tokens that our own encoder supervises, but for `<|endoftext|>`."""

from typing import Any

import pytest
import torch
from golden_files import golden_processor
from PIL import Image

from phi3v_data.schema import Sample, Turn
from phi3v_train.data.encode import Encoder
from phi3v_train.models.phi3v.family import PHI3V

PROCESSOR = golden_processor()
MASKED = {"return_assistant_tokens_mask": True, "tokenize": True, "return_dict": True}
PIXELS = [Image.new("RGB", size, (40, 90, 200)) for size in ((300, 200), (200, 400), (50, 50))]
ENDOFTEXT = PROCESSOR.tokenizer.convert_tokens_to_ids("<|endoftext|>")

SAMPLES = {
    "text": Sample(id="a", source="s", conversations=(Turn(user="What is it?", assistant="It is a cat."),)),
    "system": Sample(
        id="b", source="s", system="Be brief.", conversations=(Turn(user="Well?", assistant="No\nYes  two"),)
    ),
    "images": Sample(
        id="c",
        source="s",
        conversations=(
            Turn(images=("a.png", "b.png"), user="Compare.", assistant="One is red."),
            Turn(user="And now?", assistant="42"),
            Turn(images=("c.png",), image_offsets=(4,), user="And  this?", assistant="Ärger über ß"),
        ),
    ),
}


def messages_of(sample: Sample, answers: bool = True) -> list[dict[str, Any]]:
    """A sample as chat messages; images lead, or stand at their offset."""
    images = iter(PIXELS)
    messages: list[dict[str, Any]] = [{"role": "system", "content": sample.system}] if sample.system else []
    for turn in sample.conversations:
        at = turn.image_offsets[0] if turn.image_offsets else 0
        blocks: list[dict[str, Any]] = [{"type": "text", "text": turn.user[:at]}] if at else []
        blocks += [{"type": "image", "image": next(images)} for _ in turn.images]
        blocks.append({"type": "text", "text": turn.user[at:]})
        messages.append({"role": "user", "content": blocks if turn.images else turn.user})
        messages.append({"role": "assistant", "content": turn.assistant})
    return messages


def encoded(sample: Sample) -> tuple[list[int], list[int]]:
    """Ids and labels of our encoder."""
    sizes = [image.size for image in PIXELS[: len(sample.images)]]
    tokens = Encoder(PHI3V.renderer(PROCESSOR)).tokenize(sample, sizes, num_crops=1)
    return tokens.input_ids.tolist(), tokens.labels.tolist()


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_ids_and_mask_equal_the_encoders_but_for_endoftext(name: str) -> None:
    sample = SAMPLES[name]
    options = {"num_crops": 1, "add_special_tokens": False}  # as TRL asks; BOS is there all the same
    chat = PROCESSOR.apply_chat_template(messages_of(sample), **MASKED, processor_kwargs=options)
    ids, labels = encoded(sample)
    assert ids[-1] == labels[-1] == ENDOFTEXT
    assert chat["input_ids"] == [ids[:-1]]
    assert chat["assistant_masks"] == [[int(label >= 0) for label in labels[:-1]]]
    assert chat["attention_mask"] == [[1] * (len(ids) - 1)]
    if sample.images:
        assert chat["pixel_values"].shape[0] == len(sample.images)


def test_what_the_mask_covers() -> None:
    """Answers with their `<|end|>`; the newline behind it only where nothing follows."""
    chat = PROCESSOR.apply_chat_template(messages_of(SAMPLES["images"]), **MASKED, processor_kwargs={"num_crops": 1})
    spans: list[int] = []
    texts: list[list[int]] = []
    for token, kept in zip(chat["input_ids"][0], chat["assistant_masks"][0], strict=True):
        if kept and (not spans or not spans[-1]):
            texts.append([])
        spans.append(kept)
        if kept:
            texts[-1].append(token)
    assert [PROCESSOR.decode(ids) for ids in texts] == ["One is red.<|end|>", "42<|end|>", "Ärger über ß<|end|> \n"]


def test_the_one_other_difference_is_white_space_before_an_answer() -> None:
    """The encoder tokenizes answers alone; in a text, `<|assistant|>` swallows the white space behind it."""
    sample = Sample(id="d", source="s", conversations=(Turn(user="Well?", assistant="  two spaces"),))
    chat = PROCESSOR.apply_chat_template(messages_of(sample), **MASKED)
    plain = Sample(id="d", source="s", conversations=(Turn(user="Well?", assistant="two spaces"),))
    assert chat["input_ids"] == [encoded(plain)[0][:-1]]
    assert chat["assistant_masks"] == [[int(label >= 0) for label in encoded(plain)[1][:-1]]]
    assert chat["input_ids"] != [encoded(sample)[0][:-1]]


def test_batches_padding_and_tensors() -> None:
    both = [messages_of(SAMPLES["text"]), messages_of(SAMPLES["images"])]
    options = {"num_crops": 1, "padding": True}
    for side in ("left", "right"):
        chat = PROCESSOR.apply_chat_template(
            both, **MASKED, return_tensors="pt", processor_kwargs=options | {"padding_side": side}
        )
        assert isinstance(chat["assistant_masks"], torch.Tensor)
        assert chat["assistant_masks"].shape == chat["input_ids"].shape
        for row, name in enumerate(("text", "images")):
            real = chat["attention_mask"][row].bool()
            ids, labels = encoded(SAMPLES[name])
            assert chat["input_ids"][row][real].tolist() == ids[:-1]
            assert chat["assistant_masks"][row][real].tolist() == [int(label >= 0) for label in labels[:-1]]
            assert not chat["assistant_masks"][row][~real].any()
    cut = PROCESSOR.apply_chat_template(both[0], **MASKED, processor_kwargs={"truncation": True, "max_length": 10})
    assert len(cut["input_ids"][0]) == len(cut["assistant_masks"][0]) == 10


def test_a_conversation_without_an_answer_has_an_empty_mask() -> None:
    prompt = messages_of(SAMPLES["text"])[:1]
    chat = PROCESSOR.apply_chat_template(prompt, **MASKED, add_generation_prompt=True)
    assert set(chat["assistant_masks"][0]) == {0}
    with pytest.raises(ValueError, match="continue_final_message"):
        PROCESSOR.apply_chat_template(messages_of(SAMPLES["text"]), **MASKED, continue_final_message=True)


def test_characters_of_each_token() -> None:
    """`return_offsets_mapping`: an image's tokens stand for its tag, BOS for nothing."""
    text = "<|user|>\n<|image_1|>\nHi<|end|>\n"
    inputs = PROCESSOR(text, PIXELS[:1], num_crops=1, return_offsets_mapping=True, return_tensors=None)
    pairs = list(zip(inputs["input_ids"], inputs["offset_mapping"], strict=True))
    assert pairs[0] == (1, (0, 0))
    assert {text[begin:end] for token, (begin, end) in pairs if token == -1} == {"<|image_1|>"}
    # A newline behind a special token is two ids of one character.
    covered = [text[begin:end] for token, (begin, end) in pairs if token > 1]
    assert covered[:3] == ["<|user|>", "\n", "\n"]
    assert covered[3:5] == ["\n", "\n"]
    assert "".join(covered[5:]).startswith("Hi<|end|>\n")
