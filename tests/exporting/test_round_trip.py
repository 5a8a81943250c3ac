"""Any row that a sample can hold, written in each format and read again: the same row, or a loss that is declared."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phi3v_data.formats.registry import all_formats
from phi3v_data.formats.turns import check_turns, to_chat, to_turns
from phi3v_data.schema import Sample, Turn

SPECIAL = (
    "<image>", "<video>", "<audio>", "<bbox>", "<ref-object>", "<cot-process>", "<start-image>", "<ima", "ge>", "<",
    ">", "\n", "\n\n", " ", "\t", "\r\n", "\u2028", "\x00", "é", "漢", "\U0001f600", "assistant", "human", "{", '"',
    "\\n", "<image_1>", "< image>", "image",
)  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(SPECIAL), st.text(st.characters(exclude_categories=["Cs"]), max_size=6)))
TEXT = TEXTS.map("".join)
ANSWER = TEXT.filter(lambda text: bool(text.strip()))
SCALAR = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(-1, 1), TEXT)
RESERVED = {
    "llava": ["<image>"],
    "qwen": ["<image>", "<video>"],
    "sharegpt": ["<image>", "<video>", "<audio>"],
    "swift": ["<image>", "<video>", "<audio>", "<bbox>", "<ref-object>", "<cot-process>", "<start-image>"],
}
NO_SYSTEM = {"llava", "qwen"}
WITH_WEIGHT = {"swift", "openai", "hub", "imagefolder", "webdataset"}
NOTHING_BESIDE = {"openai"}


@st.composite
def turns(draw: st.DrawFn) -> Turn:
    user = draw(TEXT)
    offsets = sorted(draw(st.lists(st.integers(0, len(user)), max_size=3)))
    names = tuple(f"d/{draw(st.integers(0, 9))}.png" for _ in offsets)
    shown = tuple(offsets) if any(offsets) else ()
    return Turn(
        images=names, user=user, assistant=draw(ANSWER), image_offsets=shown, weight=draw(st.sampled_from([1, 1, 0]))
    )


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    return Sample(
        id=draw(TEXT.filter(bool)),
        source="s",
        conversations=tuple(draw(st.lists(turns(), min_size=1, max_size=4))),
        system=draw(st.one_of(st.just(""), TEXT)),
        answers=tuple(draw(st.lists(TEXT, max_size=2))),
        group=draw(st.one_of(st.just(""), TEXT)),
        meta=draw(st.dictionaries(TEXT, SCALAR, max_size=3)),
    )


def comparable(sample: Sample, prefix: str) -> list[dict[str, Any]]:
    return [
        {
            "user": turn.user,
            "assistant": turn.assistant,
            "images": [prefix + name for name in turn.images],
            "offsets": list(turn.image_offsets or (0,) * len(turn.images)),
            "weight": turn.weight,
        }
        for turn in sample.conversations
    ]


def texts_of(sample: Sample) -> list[str]:
    """The texts between images, and the others whole: where a placeholder could be found."""
    found = [sample.system, *(turn.assistant for turn in sample.conversations)]
    for turn in sample.conversations:
        bounds = [0, *(turn.image_offsets or (0,) * len(turn.images)), len(turn.user)]
        found += [turn.user[start:end] for start, end in pairwise(bounds)]
    return found


@pytest.mark.parametrize("name", sorted(all_formats()))
@pytest.mark.parametrize("always", [(), ("answers", "group", "id", "meta", "weight")], ids=["set", "always"])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(sample=samples())
def test_a_row_that_is_written_and_read_is_the_same_or_its_loss_is_declared(
    name: str, always: tuple[str, ...], sample: Sample
) -> None:
    style = all_formats()[name](always=always)
    prefix = "https://example.com/" if name == "openai" else "images/"
    written = style.write(to_chat(sample, lambda path: prefix + path))
    row = json.loads(json.dumps(written.row, ensure_ascii=False))
    reading = style.read(row)
    assert reading.chat is not None
    assert list(reading.faults) == []
    assert check_turns(reading.chat) == []
    system, found = to_turns(reading.chat)
    result = [
        {
            "user": turn.user,
            "assistant": turn.assistant,
            "images": [image.value for image in images],
            "offsets": list(turn.image_offsets or (0,) * len(images)),
            "weight": turn.weight,
        }
        for turn, images in found
    ]
    expected = comparable(sample, prefix)

    lost = set(written.lost)
    assert ("system-message" in lost) == (name in NO_SYSTEM and bool(sample.system))
    assert ("weight" in lost) == (name not in WITH_WEIGHT and any(turn.weight == 0 for turn in sample.conversations))
    has_placeholder = any(string in text for string in RESERVED.get(name, ()) for text in texts_of(sample))
    assert ("placeholder-in-text" in lost) == has_placeholder
    assert lost <= {"system-message", "weight", "placeholder-in-text"}
    if not lost:
        assert (system, result) == (sample.system, expected)
    # Whatever is lost, turns and images stay, and each loss changes its own part only.
    assert [turn["images"] for turn in result] == [turn["images"] for turn in expected]
    if not lost & {"system-message", "placeholder-in-text"}:
        assert [turn["user"] for turn in result] == [turn["user"] for turn in expected]
        assert [turn["offsets"] for turn in result] == [turn["offsets"] for turn in expected]
    if "weight" not in lost:
        assert [turn["weight"] for turn in result] == [turn["weight"] for turn in expected]

    chat = reading.chat
    beside = {"id": sample.id, "answers": sample.answers, "group": sample.group, "meta": dict(sample.meta)}
    if name in NOTHING_BESIDE:
        assert set(written.left_out) == {key for key, value in beside.items() if value}
        assert set(row) == {"messages"}
    else:
        assert written.left_out == ()
        assert (chat.id, chat.answers, chat.group, dict(chat.meta)) == tuple(beside.values())


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_a_system_message_is_put_before_the_first_user_text_behind_its_first_images(name: str) -> None:
    sample = Sample(
        id="a",
        source="s",
        system="Be terse.",
        conversations=(Turn(images=("a.png",), user="What is it?", assistant="A cat."),),
    )
    written = all_formats()[name]().write(to_chat(sample, str))
    assert written.lost == ("system-message",)
    assert written.row["conversations"] == [
        {"from": "human", "value": "<image>\nBe terse.\n\nWhat is it?"},
        {"from": "gpt", "value": "A cat."},
    ]


def test_placeholder_strings_get_a_space() -> None:
    sample = Sample(id="a", source="s", conversations=(Turn(user="Is <image> or <bbox> right?", assistant="<video>"),))
    swift = all_formats()["swift"]().write(to_chat(sample, str))
    assert [message["content"] for message in swift.row["messages"]] == ["Is < image> or < bbox> right?", "< video>"]
    llava = all_formats()["llava"]().write(to_chat(sample, str))
    assert [message["value"] for message in llava.row["conversations"]] == ["Is < image> or <bbox> right?", "<video>"]
    assert swift.lost == llava.lost == ("placeholder-in-text",)
    assert all_formats()["trl"]().write(to_chat(sample, str)).lost == ()
