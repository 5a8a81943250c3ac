"""Encoding against the processor, against a second reading of the rules, and at its edges."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sample_dirs import GOLDEN, PAD, make_image, mixed_directory, processor, renderer, save_image, write_rows

from phi3v_data.errors import UserError
from phi3v_data.schema import Sample, Turn
from phi3v_data.tokens.phi3v import CHAT
from phi3v_train.data.encode import (
    EncodedSample,
    EncodeOptions,
    Encoder,
    Provenance,
    SampleError,
    check_offsets,
    choose_answer,
)
from phi3v_train.data.images import image_size, read_image
from phi3v_train.data.lengths import Lengths, check_lengths, spread
from phi3v_train.data.order import SampleRef
from phi3v_train.data.reader import Reader
from phi3v_train.data.sources import open_sources
from phi3v_train.models.renderer import NO_LABEL, turn_text

PLACE = Provenance("dir", "train", 0, "x")


def one_turn(user="What is shown?", assistant="three", images=(), **fields) -> Sample:
    return Sample(
        id="x", source="s", conversations=(Turn(images=tuple(images), user=user, assistant=assistant),), **fields
    )


def encode(sample: Sample, images=(), num_crops=4, **options) -> EncodedSample:
    return Encoder(renderer(), EncodeOptions(**options)).encode(
        sample, list(images), num_crops=num_crops, provenance=PLACE
    )


def reference(user: str, answer: str, images: list[Image.Image], num_crops: int) -> tuple[list[int], list[int]]:
    """The public fine-tuning sample's recipe for one turn: processor on the prompt, tokenizer on the answer."""
    tags = "".join(f"<|image_{n}|>" for n in range(1, len(images) + 1))
    prompt = (
        f"<|user|>\n{tags}\n{user}<|end|>\n<|assistant|>\n" if images else f"<|user|>\n{user}<|end|>\n<|assistant|>\n"
    )
    prompt_ids = processor()(prompt, images or None, num_crops=num_crops)["input_ids"][0].tolist()
    answer_ids = processor().tokenizer(f"{answer}<|end|>\n<|endoftext|>", add_special_tokens=False)["input_ids"]
    return prompt_ids + answer_ids, [NO_LABEL] * len(prompt_ids) + answer_ids


@pytest.mark.parametrize("num_crops", [1, 4])
@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("answer", ["three", " leading space", "ends in space ", "two\nlines", "größer 火"])
def test_one_turn_is_what_microsofts_processor_gives(count, answer, num_crops):
    images = [make_image(seed) for seed in range(count)]
    sample = one_turn("What is\nshown? ", answer, [f"{n}.png" for n in range(count)])
    encoded = encode(sample, images, num_crops)
    ids, labels = reference("What is\nshown? ", answer, images, num_crops)
    assert encoded.input_ids.tolist() == ids
    assert encoded.labels.tolist() == labels
    assert encoded.num_supervised == sum(label != NO_LABEL for label in labels)
    assert encoded.input_ids.dtype == encoded.labels.dtype == np.int64


def test_pixels_are_the_processors():
    images = [make_image(0), make_image(1, "L"), make_image(4)]
    encoded = encode(one_turn(images="abc"), images)
    features = processor().image_processor(images, num_crops=4, return_canvas=True)
    assert np.concatenate([image["canvases"].reshape(-1) for image in encoded.images]).tobytes() == (
        features["canvases"].numpy().tobytes()
    )
    assert [image["image_sizes"].tolist() for image in encoded.images] == features["image_sizes"].tolist()


def test_golden_multi_turn_ids():
    case = json.loads((GOLDEN / "cases" / "index.json").read_text())["multiturn_two_images_nc4"]
    images = [Image.open(GOLDEN / "images" / f"{name}.png") for name in case["images"]]
    sample = Sample(
        id="x",
        source="s",
        conversations=(
            Turn(images=("a",), user="What is this?", assistant="red square"),
            Turn(images=("b",), user="and this?", assistant="blue"),
        ),
    )
    encoded = encode(sample, images)
    official = processor()(case["prompt"], images, num_crops=4)["input_ids"][0].tolist()
    assert len(official) == case["seq_len"]
    assert encoded.input_ids.tolist() == [*official, PAD]


def test_labels_of_several_turns():
    turns = [Turn(user=f"q{n}", assistant=answer) for n, answer in enumerate(("one", " two", "three"))]
    encoded = encode(Sample(id="x", source="s", conversations=tuple(turns), system="Be brief."))
    tokenizer = processor().tokenizer

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    expected_ids = [tokenizer.bos_token_id, *ids("<|system|>\nBe brief.<|end|>\n")]
    expected = [NO_LABEL] * len(expected_ids)
    for n, answer in enumerate(("one", " two", "three")):
        prompt = ids(f"<|user|>\nq{n}<|end|>\n<|assistant|>\n")
        supervised = ids(f"{answer}<|end|>")
        rest = ids("<|end|>\n")[1:]
        expected_ids += prompt + supervised + rest
        expected += [NO_LABEL] * len(prompt) + supervised + (rest if n == 2 else [NO_LABEL] * len(rest))
    assert encoded.input_ids.tolist() == [*expected_ids, PAD]
    assert encoded.labels.tolist() == [*expected, PAD]
    assert encoded.input_ids.tolist().count(tokenizer.bos_token_id) == 1


def test_tags_are_numbered_through_the_conversation():
    turns = (
        Turn(images=("a", "b"), user="u", assistant="v"),
        Turn(user="no image", assistant="w"),
        Turn(images=("c",), user="u", assistant="v"),
    )
    encoded = encode(Sample(id="x", source="s", conversations=turns), [make_image(n) for n in range(3)])
    runs = [token for token in encoded.input_ids.tolist() if token < 0]
    assert list(dict.fromkeys(runs)) == [-1, -2, -3]
    sizes = [(height // 336, width // 336) for height, width in (image["image_sizes"] for image in encoded.images)]
    assert Counter(runs) == {-n - 1: (h * w + 1) * 144 + 1 + (h + 1) * 12 for n, (h, w) in enumerate(sizes)}
    assert (encoded.labels[encoded.input_ids < 0] == NO_LABEL).all()


@pytest.mark.parametrize(
    ("offsets", "text"),
    [
        ((), "<|image_3|><|image_4|>\nleft or right"),
        ((0, 0), "<|image_3|><|image_4|>\nleft or right"),
        ((0, 4), "<|image_3|>\nleft<|image_4|> or right"),
        ((5, 8), "left <|image_3|>or <|image_4|>right"),
        ((13, 13), "left or right<|image_3|><|image_4|>"),
    ],
)
def test_image_offsets(offsets, text):
    turn = Turn(images=("a", "b"), user="left or right", assistant="x", image_offsets=offsets)
    prompt = CHAT.turn_prompt(turn_text(turn), first_image=3)
    assert prompt == f"<|user|>\n{text}<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize("offsets", [(1,), (3, 1), (0, 99)])
def test_impossible_offsets_are_refused(offsets):
    turn = Turn(images=("a", "b"), user="left or right", assistant="x", image_offsets=offsets)
    with pytest.raises(SampleError, match="image_offsets"):
        check_offsets(turn)


def test_a_tag_in_the_text_is_refused():
    with pytest.raises(SampleError, match=r"conversations\[0\].user.*image_1"):
        encode(one_turn("what is <|image_1|>?"))


def test_too_narrow_and_missing_answer_are_refused():
    with pytest.raises(SampleError, match=r"conversations\[0\].images.*too narrow"):
        encode(one_turn(images="a"), [Image.new("RGB", (5000, 1))])
    with pytest.raises(SampleError, match=r"conversations\[0\].assistant is empty"):
        encode(one_turn(assistant=""))


# Answer choice


def test_random_answer_depends_on_seed_epoch_and_id_only():
    sample = one_turn(answers=("a", "b", "c", "a"))

    def draw(seed, epoch):
        return choose_answer(sample, EncodeOptions(answer_choice="random", seed=seed), epoch)

    drawn = [draw(0, epoch) for epoch in range(400)]
    assert drawn == [draw(0, epoch) for epoch in range(400)] != [draw(1, epoch) for epoch in range(400)]
    counts = Counter(drawn)
    assert 150 < counts["a"] < 250
    assert 60 < counts["b"] < 140
    assert choose_answer(sample, EncodeOptions(seed=3), 5) == "three"
    assert choose_answer(one_turn(), EncodeOptions(answer_choice="random"), 5) == "three"


# Length


def three_turns() -> Sample:
    turns = (
        Turn(images=("a",), user="first", assistant="one"),
        Turn(images=("b",), user="second", assistant="two"),
        Turn(user="third", assistant="three"),
    )
    return Sample(id="x", source="s", conversations=turns, answers=("three", "3"))


def test_cut_at_a_turn_border_is_the_shorter_conversation():
    images = [make_image(0), make_image(1)]
    whole = three_turns()
    lengths = {}
    for kept in (1, 2, 3):
        part = whole.model_copy(update={"conversations": whole.conversations[:kept], "answers": ()})
        expected = encode(part, images[:kept])
        lengths[kept] = len(expected.input_ids)
        for limit in (lengths[kept], lengths[kept] + 3):
            cut = encode(whole, images, max_length=limit, truncate="turns")
            assert cut.input_ids.tolist() == expected.input_ids.tolist()
            assert cut.labels.tolist() == expected.labels.tolist()
            assert len(cut.images) == min(kept, 2)
            assert cut.dropped_turns == 3 - kept
    with pytest.raises(
        SampleError, match=f"first turn alone has {lengths[1]} tokens, over --max_length {lengths[1] - 1}"
    ):
        encode(whole, images, max_length=lengths[1] - 1, truncate="turns")
    with pytest.raises(SampleError, match=f"it has {lengths[3]} tokens, over --max_length {lengths[3] - 1}"):
        encode(whole, images, max_length=lengths[3] - 1)
    with pytest.raises(SampleError, match=f"it has {lengths[3]} tokens, over --max_length 20"):
        encode(whole, images, max_length=20)
    assert encode(whole, images, max_length=lengths[3]).dropped_turns == 0


words = st.text(st.characters(codec="utf-8", exclude_characters="<|>\0"), min_size=1, max_size=12)
turns = st.lists(st.tuples(words, words, st.integers(0, 2)), min_size=1, max_size=4)


@given(turns, st.booleans(), st.integers(20, 1600), st.data())
def test_any_conversation_keeps_the_rules(parts, with_system, limit, data):
    conversations, sizes = [], []
    for user, assistant, count in parts:
        offsets = sorted(data.draw(st.integers(0, len(user))) for _ in range(count))
        conversations.append(Turn(images=("p",) * count, user=user, assistant=assistant, image_offsets=tuple(offsets)))
        sizes += [data.draw(st.sampled_from([(40, 30), (336, 336), (30, 200)])) for _ in range(count)]
    sample = Sample(id="x", source="s", conversations=tuple(conversations), system="Be brief." if with_system else "")
    encoder = Encoder(renderer())
    tokens = encoder.tokenize(sample, sizes, num_crops=1)
    ids, labels = tokens.input_ids, tokens.labels
    assert len(ids) == len(labels)
    assert ((labels == NO_LABEL) | (labels == ids)).all()
    assert labels[0] == NO_LABEL
    assert (ids[:1] == 1).all()
    assert (labels[-1], ids[-1]) == (PAD, PAD)
    assert (labels == 436).sum() == len(parts)  # each answer's <|end|>
    assert set(np.flatnonzero(ids == 1)[1:]) == {
        place + 1 for place in np.flatnonzero(ids < 0) if ids[place + 1] != ids[place]
    }
    cutter = Encoder(renderer(), EncodeOptions(max_length=limit, truncate="turns"))
    try:
        cut = cutter.tokenize(sample, sizes, num_crops=1)
    except SampleError:
        return
    assert len(cut.input_ids) <= limit
    assert cut.num_turns + cut.dropped_turns == len(parts)
    assert (cut.labels == 436).sum() == cut.num_turns
    assert cut.input_ids[:-1].tolist() == ids[: len(cut.input_ids) - 1].tolist()


# Prompts


def test_prompts_are_what_precedes_each_answer():
    sample, images = three_turns(), [make_image(0), make_image(1)]
    encoder = Encoder(renderer())
    trained = encoder.encode(sample, images, num_crops=4, provenance=PLACE)
    prompts = encoder.encode_prompts(sample, images, num_crops=4, provenance=PLACE, turns="all")
    assert [prompt.turn for prompt in prompts] == [0, 1, 2]
    assert [prompt.answers for prompt in prompts] == [("one",), ("two",), ("three", "3")]
    starts = [
        place
        for place in range(1, len(trained.labels))
        if trained.labels[place] != NO_LABEL and trained.labels[place - 1] == NO_LABEL
    ]
    for prompt, start in zip(prompts, starts, strict=True):
        assert prompt.input_ids.tolist() == trained.input_ids[:start].tolist()
    assert [len(prompt.images) for prompt in prompts] == [1, 2, 2]
    for turns, index in (("first", 0), ("last", 2)):
        (prompt,) = encoder.encode_prompts(sample, images, num_crops=4, provenance=PLACE, turns=turns)
        assert prompt.turn == index
        assert prompt.input_ids.tolist() == prompts[index].input_ids.tolist()
        assert [image["image_sizes"].tolist() for image in prompt.images] == [
            image["image_sizes"].tolist() for image in prompts[index].images
        ]


def test_an_unlabelled_row_can_be_predicted():
    (prompt,) = Encoder(renderer()).encode_prompts(
        one_turn(assistant="", images="a"), [make_image(2)], num_crops=4, provenance=PLACE
    )
    expected = processor()("<|user|>\n<|image_1|>\nWhat is shown?<|end|>\n<|assistant|>\n", [make_image(2)])
    assert prompt.input_ids.tolist() == expected["input_ids"][0].tolist()
    assert prompt.answers == ()


# Images


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:4:4"}, {"quality": 20}])
def test_jpeg_pixels_are_pillows(tmp_path, mode, options):
    for seed in range(6):
        name = save_image(tmp_path, f"{seed}.jpg", seed, mode, **options)
        path = tmp_path / "images" / name
        with Image.open(path) as expected:
            assert read_image(path).convert("RGB").tobytes() == expected.convert("RGB").tobytes()
        assert image_size(path) == read_image(path).size


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_grey_image_gives_the_canvas_of_its_rgb_copy(tmp_path, ending):
    for seed in range(6):
        path = tmp_path / "images" / save_image(tmp_path, f"{seed}.{ending}", seed, "L")
        grey = read_image(path)
        assert grey.mode == "L"
        for num_crops in (1, 4, 16):
            canvases = [processor().image_processor.make_canvas(one, num_crops) for one in (grey, grey.convert("RGB"))]
            assert np.array_equal(*canvases)


def test_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "images" / save_image(tmp_path, "a.jpg", 0, exif=exif)
    assert read_image(path).size == image_size(path) == (640, 480)


@pytest.mark.parametrize(("mode", "name"), [("P", "a.png"), ("RGBA", "a.png"), ("L", "a.png"), ("RGB", "a.webp")])
def test_other_formats(tmp_path, mode, name):
    path = tmp_path / "images" / save_image(tmp_path, name, 0, mode)
    with Image.open(path) as expected:
        assert read_image(path).convert("RGB").tobytes() == expected.convert("RGB").tobytes()


# Rows of a directory


def test_every_row_of_a_directory(tmp_path):
    sources = open_sources([mixed_directory(tmp_path / "d")], "train", num_crops=4)
    reader = Reader(sources, Encoder(renderer()))
    for row in range(12):
        encoded = reader.encode(SampleRef(0, row, 0))
        measure = reader.measure(SampleRef(0, row, 0))
        assert measure.cost.tokens == len(encoded.input_ids)
        assert measure.num_supervised == encoded.num_supervised > 0
        assert measure.num_images == len(encoded.images) == row % 4
        assert measure.cost.tiles == sum(image["canvases"].size // (336 * 336 * 3) + 1 for image in encoded.images)
        assert encoded.provenance == Provenance(str(tmp_path / "d"), "train", row, f"train-{row:010d}")


def test_errors_name_file_line_and_id(tmp_path):
    directory = mixed_directory(tmp_path / "d", 6)
    sources = open_sources([directory], "train", num_crops=4)
    reader = Reader(sources, Encoder(renderer(), EncodeOptions(max_length=30)))
    with pytest.raises(UserError, match=r"set_train\.jsonl:3 \(id 'train-0000000002'\): it has .* tokens, over"):
        reader.encode(SampleRef(0, 2, 0))
    reader = Reader(sources, Encoder(renderer()))
    (directory / "images" / "1" / "p1_0.jpg").unlink()
    for ask in (reader.encode, reader.measure, reader.prompts):
        with pytest.raises(UserError, match=r"set_train\.jsonl:2 \(id 'train-0000000001'\).*p1_0\.jpg.*validate"):
            ask(SampleRef(0, 1, 0))
    (directory / "images" / "1" / "p1_0.jpg").write_bytes(b"\xff\xd8\xff nothing")
    with pytest.raises(UserError, match=r"set_train\.jsonl:2 \(id 'train-0000000001'\): an image cannot be read"):
        reader.encode(SampleRef(0, 1, 0))
    path = directory / "images" / "1" / "p1_0.jpg"
    path.unlink()
    os.mkfifo(path)
    for ask in (reader.encode, reader.measure, reader.prompts):
        with pytest.raises(UserError, match=r"set_train\.jsonl:2 .*cannot be read: .*p1_0\.jpg is a named pipe"):
            ask(SampleRef(0, 1, 0))
    path = directory / "images" / "2" / "p2_0.png"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"set_train\.jsonl:3 .*an image cannot be read"):
        reader.encode(SampleRef(0, 2, 0))


def test_long_conversations_are_fine(tmp_path):
    turns = tuple(Turn(user=f"question {n} " * 20, assistant="answer " * 30) for n in range(60))
    directory = write_rows(Path(tmp_path), [Sample(id="long", source="s", conversations=turns)])
    reader = Reader(open_sources([directory], "train"), Encoder(renderer()))
    encoded = reader.encode(SampleRef(0, 0, 0))
    assert len(encoded.input_ids) > 4096
    assert encoded.num_supervised > 60 * 30


# Lengths before a run


def test_lengths_are_checked_before_a_run(tmp_path):
    sources = open_sources([mixed_directory(tmp_path / "a"), mixed_directory(tmp_path / "b", 5)], "train", num_crops=1)
    free = Reader(sources, Encoder(renderer()))
    lengths = [free.measure(SampleRef(s, r, 0)).cost.tokens for s, size in enumerate((12, 5)) for r in range(size)]
    assert check_lengths(free) == Lengths(17, 0, max(lengths))
    strict = Reader(sources, Encoder(renderer(), EncodeOptions(max_length=700)))
    count = sum(length > 700 for length in lengths)
    with pytest.raises(
        UserError, match=rf"{count} of 17 samples .* longest has {max(lengths)} .*set_train.jsonl:3 with"
    ):
        check_lengths(strict)
    with pytest.raises(UserError, match=r"set_train.jsonl:4 .* first turn alone has \d+ tokens"):
        check_lengths(Reader(sources, Encoder(renderer(), EncodeOptions(max_length=700, truncate="turns"))))
    cutting = Reader(sources, Encoder(renderer(), EncodeOptions(max_length=1000, truncate="turns")))
    count = sum(length > 1000 for length in lengths)
    assert check_lengths(cutting) == Lengths(17, count, max(lengths))
    assert count > 0


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 60))
def test_rows_are_spread_over_all_sources(sizes, max_rows):
    refs = spread(tuple(sizes), max_rows)
    assert len(refs) == len(set(refs)) == min(sum(sizes), max_rows)
    assert all(ref.row < sizes[ref.source] for ref in refs)
    assert refs == sorted(refs, key=lambda ref: (ref.source, ref.row))
