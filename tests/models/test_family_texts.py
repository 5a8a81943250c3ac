"""Each family's texts and ids are those of its checkpoints' chat template and of transformers' own processor."""

from functools import cache
from hashlib import sha256
from importlib.metadata import version
from itertools import groupby
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
from family_references import (
    CONVERSATIONS,
    NAMES,
    TRL_NAMES,
    checkpoint_template,
    messages_of,
    parts,
    pixels,
    real_processor,
    renderer_of,
    training_template,
    trl_template,
    write,
)
from PIL import Image

from phi3v_data.schema import Sample, Turn
from phi3v_train.data.collate import collate_arrays
from phi3v_train.data.encode import EncodeOptions, Encoder, Provenance
from phi3v_train.models.huggingface.texts import ChatTexts, Segment, TemplateTexts
from phi3v_train.models.registry import get_family, make_renderer
from phi3v_train.models.renderer import turn_text

VERIFIED_WITH = "1.16.0"
"""Version of trl whose templates the families were verified with."""

TRL_SHA256 = {
    "gemma3": "7de1c58e208eda46e9c7f86397df37ec49883aeece39fb961e0a6b24088dd3c4",
    "gemma3_training": "959b257e7fc1603f8cae9c9890e62f43d6ded6c0f72b9b73c4106a4ceaa096fc",
    "idefics3": "0d7e56ca41705b79932de707b22bc855c3cfcefae62f1ac5e458560654883d2e",
    "idefics3_training": "b3d230222aae242eeda373f36f08c7170557dcbd4a93dfb2d2d3c718ee777654",
    "llava_next": "2c17243a977fd0643fb549a509a8e2684f45517df0f9f608d5893b719f16569f",
    "llava_next_training": "27c0b73c5de0a0f5561d748d53d2cdab4788bb83887d33cbc74bdf2a8d148bf1",
    "qwen2_5_vl": "a0bc6f6fc7a29a80017a433e8f03a1cc1236e838a944a2d034295a60c4f2fddb",
    "qwen2_5_vl_training": "31c85932a6d8826f0fe8d52b81767eba6b869128b0a7c7503d1e7baaad4e8043",
    "qwen3_5_nothink": "273d8e0e683b885071fb17e08d71e5f2a5ddfb5309756181681de4f5a1822d80",
    "qwen3_5_nothink_training": "f32fe3e21c20f59d193244181c8b4c324c73a8cd313ddf825633a9ecfd2afad2",
    "qwen3_vl": "3636d0f0bd6bef02654cdffdc447b79cb2cef8ab02cc75267345946291a489e4",
    "qwen3_vl_training": "66bd81986bf7f8abe6d7fb4a50341c8d8ae14b16637e8fb876bca7e7ef0b9c6f",
    "smolvlm": "830005085ddd94cec605b6e21b885b28ffad6e3f82ee6a212c523533e8f04f01",
    "smolvlm_training": "7bdde450db307d860832daa767452614e93297f1520a969bcdea2e11460ca893",
}

THOUGHTS = "<think>\n\n</think>\n\n"
"""Empty thoughts of Qwen3.5: here the end of every generation prompt, so they are never trained."""

FAMILIES_AND_TALKS = [(name, talk) for name in NAMES for talk in CONVERSATIONS]


@pytest.mark.parametrize("file", sorted(TRL_SHA256))
def test_the_templates_of_trl_are_those_that_the_families_were_verified_with(file: str) -> None:
    """One that fails is to be read and compared; then its line here and `VERIFIED_WITH` are changed."""
    found = sha256(trl_template(file).encode()).hexdigest()
    assert found == TRL_SHA256[file], (
        f"trl {version('trl')} ships another {file}.jinja than trl {VERIFIED_WITH}, with which the model family was "
        "verified: compare both, adapt the family's chat format if the checkpoints changed, then change this digest"
    )


def segments_of(name: str, sample: Sample) -> list[Segment]:
    """The texts under test."""
    answers = [turn.assistant for turn in sample.conversations]
    return renderer_of(name).texts(sample.conversations, answers, sample.system)  # type: ignore[attr-defined]


@cache
def whole_text(name: str, talk: str) -> str:
    return "".join(segment.prompt + (segment.answer or "") for segment in segments_of(name, CONVERSATIONS[talk]))


@pytest.mark.parametrize("name", NAMES)
def test_the_checkpoints_template_is_recognised_as_the_familys_own(name: str) -> None:
    assert isinstance(renderer_of(name).texts, ChatTexts)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "talk"), FAMILIES_AND_TALKS)
def test_every_prompt_is_the_templates_generation_prompt(name: str, talk: str) -> None:
    sample = CONVERSATIONS[talk]
    messages, segments = messages_of(sample), segments_of(name, sample)
    first = 1 + bool(sample.system)
    before = ""
    for index, segment in enumerate(segments):
        earlier = messages[: first + 2 * index]
        expected = write(checkpoint_template(name), earlier, generation=True).text
        if name == "qwen3_5":  # its template leaves the thoughts of earlier answers out
            pieces = expected.split("<|im_start|>assistant\n")
            expected = f"<|im_start|>assistant\n{THOUGHTS}".join([*pieces[:-1], pieces[-1].removeprefix(THOUGHTS)])
        assert before + segment.prompt == expected
        before += segment.prompt + (segment.answer or "")


@pytest.mark.parametrize(("name", "talk"), [each for each in FAMILIES_AND_TALKS if each[0] in TRL_NAMES])
def test_text_and_trained_spans_are_those_of_trls_training_template(name: str, talk: str) -> None:
    expected = write(training_template(name), messages_of(CONVERSATIONS[talk]))
    assert whole_text(name, talk) == expected.text
    spans, start = [], 0
    for segment in segments_of(name, CONVERSATIONS[talk]):
        start += len(segment.prompt)
        spans.append((start, start + segment.trained))
        start += len(segment.answer or "")
    marks = expected.marks
    if name == "qwen3_5":
        assert {expected.text[start : start + len(THOUGHTS)] for start, _ in marks} == {THOUGHTS}
        marks = [(start + len(THOUGHTS), end) for start, end in marks]
    assert spans == marks


@pytest.mark.parametrize("talk", CONVERSATIONS)
def test_llava_onevision_trains_the_marked_words_and_the_marker_after_them(talk: str) -> None:
    """The checkpoint's template marks the words alone: a model trained on these would never learn to stop."""
    expected = write(checkpoint_template("llava_onevision"), messages_of(CONVERSATIONS[talk]))
    assert whole_text("llava_onevision", talk) == expected.text
    found = [segment.answer[: segment.trained] for segment in segments_of("llava_onevision", CONVERSATIONS[talk])]  # type: ignore[index]
    assert found == [expected.text[start:end] + "<|im_end|>" for start, end in expected.marks]


LITERALS = {
    "llava_onevision": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\nWell?<|im_end|>\n<|im_start|>assistant\n",
        "No<|im_end|>",
        "<|im_start|>user\n<image>\n<image>\nSame as here?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "internvl": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<IMG_CONTEXT>\nWell?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "No<|im_end|>",
        "<|im_start|>user\n<IMG_CONTEXT>\nSame as <IMG_CONTEXT>\nhere?<|im_end|>\n<|im_start|>assistant\n",
    ),
}


@pytest.mark.parametrize("name", LITERALS)
def test_prompts_and_trained_spans_of_families_that_trl_does_not_know(name: str) -> None:
    prompt, trained, inside = LITERALS[name]
    (segment,) = segments_of(name, CONVERSATIONS["system"])
    assert (segment.prompt, (segment.answer or "")[: segment.trained]) == (prompt, trained)
    assert segments_of(name, CONVERSATIONS["first and inside"])[0].prompt == inside


@pytest.mark.parametrize("talk", CONVERSATIONS)
def test_the_whole_text_of_internvl_is_its_templates(talk: str) -> None:
    expected = write(checkpoint_template("internvl"), messages_of(CONVERSATIONS[talk]))
    assert whole_text("internvl", talk) == expected.text


@pytest.mark.parametrize("name", [name for name in NAMES if name != "qwen3_5"])
@pytest.mark.parametrize("talk", CONVERSATIONS)
def test_texts_by_the_template_itself_are_the_same(name: str, talk: str) -> None:
    """A directory whose template does not agree with the chat format is written by its template."""
    sample = CONVERSATIONS[talk]
    chat = get_family(name).tokens.chat
    by_template = TemplateTexts(parts(name).tokenizer, checkpoint_template(name), chat.end_of_turn)
    answers = [turn.assistant for turn in sample.conversations]
    found = by_template(sample.conversations, answers, sample.system)
    assert "".join(each.prompt + (each.answer or "") for each in found) == whole_text(name, talk)


def real_ids(name: str, text: str, sample: Sample) -> list[int]:
    """Ids by transformers' processor, which adds BOS where the text has none, as `apply_chat_template` decides it."""
    real = real_processor(name, parts(name))
    given: dict[str, Any] = {"images": [pixels(sample)]} if sample.images else {}
    add = not text.startswith(real.tokenizer.bos_token)
    ids: list[int] = real(text=[text], add_special_tokens=add, return_tensors="np", **given)["input_ids"][0].tolist()
    return ids


REACHES_OVER = {"qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl"}
"""Families whose generation prompt ends in a line end, which is not stripped from the answer that follows it."""


@pytest.mark.parametrize(("name", "talk"), FAMILIES_AND_TALKS)
def test_ids_are_those_of_the_real_processor(name: str, talk: str) -> None:
    sample = CONVERSATIONS[talk]
    renderer = renderer_of(name)
    sizes = [image.size for image in pixels(sample)]
    ids = renderer.model_ids(Encoder(renderer).tokenize(sample, sizes, num_crops=None).input_ids).tolist()
    expected = real_ids(name, whole_text(name, talk), sample)
    if talk == "white space" and name in REACHES_OVER:  # one token for the line ends around a generation point
        first, second = segments_of(name, sample)
        expected = real_ids(name, first.prompt, sample)
        for text in (first.answer, second.prompt, second.answer):
            expected += renderer.text_ids(text or "")
        assert expected != real_ids(name, whole_text(name, talk), sample)
    assert ids == expected


@pytest.mark.parametrize("talk", ["one image", "two turns, two images", "white space between images"])
@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_those_of_the_real_processor(name: str, talk: str) -> None:
    sample = CONVERSATIONS[talk]
    processor = get_family(name).tiny_processor()
    if name == "internvl":
        processor.image_processor.crop_to_patches = False  # as in released files, by which its processor does not go
    renderer = make_renderer(get_family(name), processor)
    random = np.random.default_rng(0)
    shapes = [(image.height, image.width, 3) for image in pixels(sample)]
    images = [Image.fromarray(random.integers(0, 255, shape, dtype=np.uint8)) for shape in shapes]
    place = Provenance("d", "s", 0, "a")
    found = collate_arrays([Encoder(renderer).encode(sample, images, num_crops=None, provenance=place)], renderer)
    real = real_processor(name, processor)
    text = [processor.tokenizer.decode([real.image_token_id]) if name != "gemma3" else "<start_of_image>"]
    expected = real(text=[text[0] * len(images)], images=[images], return_tensors="np")
    names = expected.keys() - {"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"}
    assert "pixel_values" in names
    assert found.keys() >= names
    for each in names:
        np.testing.assert_array_equal(found[each], expected[each])


@pytest.mark.parametrize("talk", ["one image", "text alone", "two turns, two images"])
@pytest.mark.parametrize(("name", "key"), [("gemma3", "token_type_ids"), ("qwen3_vl", "mm_token_type_ids")])
def test_kinds_of_tokens_are_those_of_the_real_processor(name: str, key: str, talk: str) -> None:
    sample, renderer = CONVERSATIONS[talk], renderer_of(name)
    place = Provenance("d", "s", 0, "a")
    found = Encoder(renderer).encode(sample, pixels(sample), num_crops=None, provenance=place)
    make = renderer.token_inputs if name == "gemma3" else renderer.prompt_inputs
    given: dict[str, Any] = {"images": [pixels(sample)]} if sample.images else {}
    real = real_processor(name, parts(name))(
        text=[whole_text(name, talk)], add_special_tokens=False, return_mm_token_type_ids=True, **given
    )
    assert make(found.input_ids, found.images)[key].tolist() == list(real[key][0])


@pytest.mark.parametrize(("name", "talk"), FAMILIES_AND_TALKS)
def test_the_validator_counts_as_many_tokens_as_are_trained(name: str, talk: str) -> None:
    sample = CONVERSATIONS[talk]
    renderer = renderer_of(name)
    sizes = [image.size for image in pixels(sample)]
    pieces, count = renderer.tokens.sequence_pieces(
        [turn_text(turn) for turn in sample.conversations], system=sample.system
    )
    count += sum(len(renderer.text_ids(piece)) for piece in pieces)
    several = len(sizes) > 1
    counted = renderer.tokens.several_image_tokens if several else renderer.tokens.image_tokens
    count += sum(counted(width, height, None) for width, height in sizes)
    assert count == len(Encoder(renderer).tokenize(sample, sizes, num_crops=None).input_ids)


def runs(labels: np.ndarray) -> list[list[int]]:
    """Supervised ids, one list for each answer."""
    grouped = [(kept, list(ids)) for kept, ids in groupby(labels.tolist(), key=lambda each: each >= 0)]
    return [ids for kept, ids in grouped if kept]


@pytest.mark.parametrize(("name", "talk"), FAMILIES_AND_TALKS)
def test_labels_are_the_trained_spans(name: str, talk: str) -> None:
    sample = CONVERSATIONS[talk]
    renderer = renderer_of(name)
    tokens = Encoder(renderer).tokenize(sample, [image.size for image in pixels(sample)], num_crops=None)
    spans = [(segment.answer or "")[: segment.trained] for segment in segments_of(name, sample)]
    found = [renderer.tokenizer.decode(ids) for ids in runs(tokens.labels)]
    # transformers' tokenizer of Qwen3.5 composes characters before it cuts a text.
    assert [normalize("NFC", text) for text in found] == [normalize("NFC", text) for text in spans]
    trained = tokens.labels >= 0
    assert (tokens.labels[trained] == tokens.input_ids[trained]).all()


@pytest.mark.parametrize(("name", "talk"), FAMILIES_AND_TALKS)
def test_every_prompt_begins_as_the_training_sample_does(name: str, talk: str) -> None:
    """But for LLaVA-OneVision where the prompt has one of several images, and that one is cut into tiles."""
    sample = CONVERSATIONS[talk]
    sizes = [image.size for image in pixels(sample)]
    encoder = Encoder(renderer_of(name))
    whole = encoder.tokenize(sample, sizes, num_crops=None)
    start = 0
    for turn in range(len(sample.conversations)):
        ids, layouts = encoder.tokenize_prompt(sample, sizes, num_crops=None, turn=turn)
        same_tiles = [each.num_tiles for each in layouts] == [each.num_tiles for each in whole.images[: len(layouts)]]
        assert same_tiles or (name == "llava_onevision" and len(layouts) == 1 < len(sizes))
        if same_tiles:
            assert ids.tolist() == whole.input_ids[: len(ids)].tolist()
            if turn == 0:
                assert (whole.labels[: len(ids)] < 0).all()
            assert len(ids) > start
            start = len(ids)


@pytest.mark.parametrize("name", NAMES)
def test_only_qwen3_5_says_that_its_template_writes_several_turns_in_another_way(name: str) -> None:
    reason = get_family(name).templates  # type: ignore[attr-defined]
    assert reason == (
        "the chat template of Qwen3.5 writes an empty block of thoughts only into the last answer; in training every "
        "answer of a conversation has one, as its generation prompt has"
        if name == "qwen3_5"
        else ""
    )


def test_a_prompt_whose_tokens_an_answer_would_change_is_tokenized_apart() -> None:
    """GPT-2's tokenizer takes the last of two line ends before a word by itself, but both as one at the end."""
    from tokenizers import pre_tokenizers

    processor = get_family("qwen3_5").tiny_processor()
    processor.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    sample = CONVERSATIONS["two turns, two images"]
    sizes = [image.size for image in pixels(sample)]
    encoder = Encoder(make_renderer(get_family("qwen3_5"), processor))
    whole = encoder.tokenize(sample, sizes, num_crops=None).input_ids.tolist()
    two_line_ends = processor.tokenizer.convert_tokens_to_ids("\u010a\u010a")
    for turn in (0, 1):
        prompt = encoder.tokenize_prompt(sample, sizes, num_crops=None, turn=turn)[0].tolist()
        assert prompt[-1] == two_line_ends
        assert prompt == whole[: len(prompt)]


def test_a_sample_that_is_cut_to_one_image_is_as_if_it_had_one_only() -> None:
    """LLaVA-OneVision cuts an image into tiles only where it is the sample's only one."""
    first = Turn(images=("a.png",), user="What is it?", assistant="A bird.")
    second = Turn(images=("b.png",), user="And here? " * 40, assistant="No.")
    sample = Sample(id="a", source="s", conversations=(first, second))
    renderer = renderer_of("llava_onevision")
    sizes = [(600, 900), (40, 40)]
    alone = Encoder(renderer).tokenize(sample.model_copy(update={"conversations": (first,)}), sizes[:1], num_crops=None)
    whole = Encoder(renderer).tokenize(sample, sizes, num_crops=None)
    limit = len(whole.input_ids) - 1
    cut = Encoder(renderer, EncodeOptions(max_length=limit, truncate="turns")).tokenize(sample, sizes, num_crops=None)
    assert (cut.num_turns, cut.dropped_turns) == (1, 1)
    assert cut.input_ids.tolist() == alone.input_ids.tolist()
    assert cut.labels.tolist() == alone.labels.tolist()
