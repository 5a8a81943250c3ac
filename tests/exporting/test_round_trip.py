"""Any row that a sample can hold, written in each format and read again: the same row, or a loss that is declared."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phi3v_data.formats.registry import all_formats
from phi3v_data.formats.turns import check_turns, to_chat, to_turns
from phi3v_data.schema import Sample, ToolStep, Turn

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


PAIRS = {"sharegpt", "swift", "trl"}
TOOLS = {"sharegpt", "swift", "openai"}
NAMES = st.text(st.sampled_from("abcxyz_"), min_size=1, max_size=6)
VALUES = st.one_of(st.integers(-9, 9), st.booleans(), st.none(), st.sampled_from(("", "é", "a b", '"', "\n")))
CALLS = st.builds(
    lambda name, arguments: json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False),
    NAMES,
    st.dictionaries(NAMES, VALUES, max_size=2),
)
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=8)
PLAIN_ANSWER = PLAIN.filter(lambda text: bool(text.strip()))
OTHER_CALLS = st.one_of(st.sampled_from(("f(x)", "{}", "[1]", '"f"', "{")), PLAIN_ANSWER)


@st.composite
def steps(draw: st.DrawFn, calls: st.SearchStrategy[str]) -> ToolStep:
    number = draw(st.sampled_from((1, 1, 1, 2)))
    return ToolStep(
        calls=tuple(draw(st.lists(calls, min_size=number, max_size=number))),
        results=tuple(draw(st.lists(PLAIN, min_size=number, max_size=number))),
    )


@st.composite
def newer_samples(draw: st.DrawFn) -> Sample:
    """Samples of which most have a rejected answer, tools, or both, with images and weights beside them."""
    calls = draw(st.sampled_from((CALLS, CALLS, OTHER_CALLS)))
    conversations = []
    for _ in range(draw(st.integers(1, 3))):
        offsets = [0] * draw(st.integers(0, 2))
        conversations.append(
            Turn(
                images=tuple(f"{number}.png" for number in range(len(offsets))),
                user=draw(PLAIN),
                assistant=draw(PLAIN_ANSWER),
                weight=draw(st.sampled_from((1, 1, 0))),
                steps=tuple(draw(st.lists(steps(calls), max_size=2))),
            )
        )
    return Sample(
        id="a",
        source="s",
        conversations=tuple(conversations),
        rejected=draw(st.one_of(st.just(""), PLAIN_ANSWER)),
        tools=draw(st.sampled_from(("", '[{"name": "f"}]'))),
    )


def as_call(text: str) -> Any:
    """A call in any spelling, without the id that OpenAI's have."""
    call = json.loads(text)
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    return function["name"], json.loads(arguments) if isinstance(arguments, str) else arguments


@pytest.mark.parametrize("name", sorted(all_formats()))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(sample=newer_samples())
def test_pairs_and_calls_of_tools_come_back_or_their_loss_is_declared(name: str, sample: Sample) -> None:
    always = ("rejected",) if sample.rejected else ()
    written = all_formats()[name](always=always).write(to_chat(sample, lambda path: f"https://example.com/{path}"))
    has_steps = any(turn.steps for turn in sample.conversations)
    lost = set(written.lost)
    assert ("preference-pair" in lost) == (bool(sample.rejected) and name not in PAIRS)
    if name not in TOOLS:
        assert ("tool-turn" in lost) == (has_steps or bool(sample.tools))
    reading = all_formats()[name]().read(json.loads(json.dumps(written.row)))
    assert reading.chat is not None
    assert [fault for fault in reading.faults if fault.severity != "warning"] == []
    assert check_turns(reading.chat) == []
    chat = reading.chat
    assert (chat.rejected.text if chat.rejected is not None else "") == (sample.rejected if name in PAIRS else "")
    _, found = to_turns(chat)
    assert [turn.user for turn, _ in found] == [turn.user for turn in sample.conversations]
    assert [turn.assistant for turn, _ in found] == [turn.assistant for turn in sample.conversations]
    assert [len(images) for _, images in found] == [len(turn.images) for turn in sample.conversations]
    if "tool-turn" in lost:
        assert (chat.tools, [turn for turn, _ in found if turn.steps]) == ("", [])
        return
    assert (json.loads(chat.tools) if chat.tools else "") == (json.loads(sample.tools) if sample.tools else "")
    for (turn, _), given_turn in zip(found, sample.conversations, strict=True):
        assert [step.results for step in turn.steps] == [step.results for step in given_turn.steps]
        for step, given_step in zip(turn.steps, given_turn.steps, strict=True):
            if name == "openai":
                assert list(map(as_call, step.calls)) == list(map(as_call, given_step.calls))
            else:
                assert step.calls == given_step.calls


@pytest.mark.parametrize("name", sorted(TOOLS))
def test_calls_that_a_format_knows_are_never_lost(name: str) -> None:
    """One call, one result, as name and arguments; LLaMA-Factory takes no two calls in a row."""
    one = ToolStep(calls=('{"name": "f", "arguments": {}}',), results=("x",))
    two = ToolStep(calls=one.calls * 2, results=("x", "y"))
    for step, expected in ((one, ()), (two, ("tool-turn",) if name == "sharegpt" else ())):
        turn = Turn(user="a", assistant="b", steps=(step,))
        sample = Sample(id="a", source="s", conversations=(turn,), tools="[]")
        assert all_formats()[name]().write(to_chat(sample, str)).lost == expected
