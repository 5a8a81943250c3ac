"""Rows as they are found in files: every spelling is read into the same conversation, what is wrong has its field."""

from typing import Any

import pytest

from phi3v_data.formats.base import RowFormat
from phi3v_data.formats.chat import ImageRef, Message
from phi3v_data.formats.dataset_info import read_dataset_info
from phi3v_data.formats.registry import all_formats
from phi3v_data.formats.sharegpt import ShareGPT


def told(messages: tuple[Message, ...]) -> list[tuple[Any, ...]]:
    """Role, then texts and images in order, an image in brackets; and the weight if it is 0."""
    return [
        (
            message.role,
            *(f"[{part.value!s}]" if isinstance(part, ImageRef) else part for part in message.parts),
            *(() if message.weight else (0,)),
        )
        for message in messages
    ]


def read(row_format: str | RowFormat, row: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The conversation of a row without errors."""
    style = all_formats()[row_format]() if isinstance(row_format, str) else row_format
    reading = style.read(row)
    assert [fault for fault in reading.faults if fault.severity != "warning"] == []
    assert reading.chat is not None
    return told(reading.chat.messages)


def llava(value: str, **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": "A cat."}], **more}


ANSWER = ("assistant", "A cat.")


@pytest.mark.parametrize(
    ("row", "user"),
    [
        (llava("What?"), ("user", "What?")),
        (llava("What?", image=None), ("user", "What?")),
        (llava("What?", image=""), ("user", "What?")),
        (llava("What?", image=[]), ("user", "What?")),
        (llava("<image>\nWhat?", image="a.jpg"), ("user", "[a.jpg]", "What?")),
        (llava("What?\n<image>", image="a.jpg"), ("user", "What?\n", "[a.jpg]")),
        (llava("<image>", image=["a.jpg"]), ("user", "[a.jpg]")),
        (llava("<image>\n<image>\nWhat?", images=["a.jpg", "b.jpg"]), ("user", "[a.jpg]", "[b.jpg]", "What?")),
        (llava("<Image>\nWhat?", image="a.jpg"), ("user", "[a.jpg]", "What?")),
        (llava("<ImageHere>What?", image=["a.jpg"]), ("user", "[a.jpg]", "What?")),
        (
            llava("<image_2> or <image_1>?", image=["a.jpg", "b.jpg"]),
            ("user", "[b.jpg]", " or ", "[a.jpg]", "?"),
        ),
        (llava("Picture 1: <img>d/a.jpg</img>\nWhat?"), ("user", "Picture 1: ", "[d/a.jpg]", "\nWhat?")),
    ],
)
def test_images_of_llava_in_every_spelling(row: dict[str, Any], user: tuple[str, ...]) -> None:
    assert read("llava", row) == [user, ANSWER]


@pytest.mark.parametrize("assistant", ["gpt", "assistant", "bot", "chatgpt", "model"])
@pytest.mark.parametrize("user", ["human", "user"])
@pytest.mark.parametrize("keys", [("from", "value"), ("role", "content")])
def test_roles_in_every_spelling(keys: tuple[str, str], user: str, assistant: str) -> None:
    messages = [dict(zip(keys, each, strict=True)) for each in ((user, "What?"), (assistant, "A cat."))]
    assert read("llava", {"conversations": messages}) == [("user", "What?"), ANSWER]


@pytest.mark.parametrize("tag", ["<Image>", "<image_1>", "<ImageHere>"])
def test_another_tag_is_a_warning_for_llava_and_an_error_where_its_reader_needs_the_usual_one(tag: str) -> None:
    row = llava(f"{tag}\nWhat?", image="a.jpg")
    [fault] = all_formats()["llava"]().read(row).faults
    assert (fault.code, fault.severity, fault.field) == ("image-count", "warning", "image")
    [fault] = all_formats()["sharegpt"]().read(row).faults
    assert (fault.code, fault.severity, fault.field) == ("image-count", None, "image")


@pytest.mark.parametrize(
    ("value", "images"),
    [
        ("<image_1> <image_3>", ["a", "b"]),
        ("<image_1>", ["a", "b"]),
        ("<image>", ["a", "b"]),
        ("<Image><Image>", ["a"]),
    ],
)
def test_tags_and_images_that_do_not_fit_are_one_fault(value: str, images: list[str]) -> None:
    [fault] = all_formats()["llava"]().read(llava(value, image=images)).faults
    assert (fault.code, fault.severity) == ("image-count", None)


def test_ms_swift_rows_of_a_query_and_a_response() -> None:
    row = {"query": "<image>And now?", "response": "A dog.", "images": ["a.jpg"], "system": "Be terse.",
           "history": [["What?", "A cat."]]}  # fmt: skip
    assert read("swift", row) == [
        ("system", "Be terse."),
        ("user", "What?"),
        ANSWER,
        ("user", "[a.jpg]", "And now?"),
        ("assistant", "A dog."),
    ]
    assert read("swift", {"instruction": "Translate.", "input": "Katze", "output": "cat"}) == [
        ("user", "Translate.\nKatze"),
        ("assistant", "cat"),
    ]


def test_weights_of_ms_swift_and_openai() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "loss": False},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", "loss_scale": 0.0},
        {"role": "user", "content": "e"},
        {"role": "assistant", "content": "f", "loss": True, "weight": 0},
    ]
    assert [line[2:] for line in read("swift", {"messages": messages}) if line[0] == "assistant"] == [(0,), (0,), ()]
    assert [line[2:] for line in read("openai", {"messages": messages}) if line[0] == "assistant"] == [(), (), (0,)]


def test_a_loss_scale_that_no_weight_can_hold_is_a_fault() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "loss_scale": 0.5}]
    [fault] = all_formats()["swift"]().read({"messages": messages}).faults
    assert (fault.code, fault.field) == ("wrong-type", "messages[1].loss_scale")


def test_an_entry_of_dataset_info_gives_columns_and_roles_other_names() -> None:
    text = """{"demo": {"file_name": "d.json", "formatting": "sharegpt",
        "columns": {"messages": "talk", "images": "pics", "system": "rule", "tools": "functions"},
        "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "H", "assistant_tag": "A"}}}"""
    style = ShareGPT(entry=read_dataset_info(text)["demo"])
    row = {"talk": [{"who": "H", "what": "<image>What?"}, {"who": "A", "what": "A cat."}], "pics": ["a.jpg"],
           "rule": "Be terse."}  # fmt: skip
    assert read(style, row) == [("system", "Be terse."), ("user", "[a.jpg]", "What?"), ANSWER]
    [fault] = style.read({**row, "talk": [{"who": "human", "what": "What?"}], "pics": None}).faults
    assert (fault.code, fault.field) == ("role-unknown", "talk[0].who")
    [fault] = style.read({"conversations": []}).faults
    assert (fault.code, fault.field) == ("missing-field", "talk")


def test_an_entry_without_formatting_is_alpaca() -> None:
    text = """{"demo": {"file_name": "d.json", "columns": {"prompt": "q", "response": "a", "history": "before"}}}"""
    style = ShareGPT(entry=read_dataset_info(text)["demo"])
    row = {"q": "What?", "a": "A cat.", "before": [["Hello.", "Hi."]], "instruction": "no", "input": "no"}
    assert read(style, row) == [("user", "Hello."), ("assistant", "Hi."), ("user", "What?"), ANSWER]


def test_preference_pairs() -> None:
    good, bad = {"from": "gpt", "value": "A cat."}, {"from": "gpt", "value": "A dog."}
    question = {"role": "user", "content": "What?"}
    rows: list[tuple[str, dict[str, Any]]] = [
        ("sharegpt", {"conversations": [{"from": "human", "value": "What?"}], "chosen": good, "rejected": bad}),
        ("swift", {"messages": [question, {"role": "assistant", "content": "A cat."}], "rejected_response": "A dog."}),
        ("trl", {"prompt": "What?", "chosen": "A cat.", "rejected": "A dog."}),
        (
            "trl",
            {
                "chosen": [question, {"role": "assistant", "content": "A cat."}],
                "rejected": [question, {"role": "assistant", "content": "A dog."}],
            },
        ),
        ("trl", {"prompt": [question], "chosen": [{"role": "assistant", "content": "A cat."}], "rejected": "A dog."}),
    ]
    for name, row in rows:
        chat = all_formats()[name]().read(row).chat
        assert chat is not None
        assert chat.rejected is not None, row
        assert told(chat.messages) == [("user", "What?"), ANSWER]
        assert told((chat.rejected,)) == [("assistant", "A dog.")]


@pytest.mark.parametrize(
    ("name", "row", "field"),
    [
        ("swift", {"messages": [], "label": False}, "label"),
        ("sharegpt", {"conversations": [], "kto_tag": False}, "kto_tag"),
    ],
)
def test_an_answer_that_is_labelled_bad_is_a_fault(name: str, row: dict[str, Any], field: str) -> None:
    [fault] = all_formats()[name]().read(row).faults
    assert (fault.code, fault.field) == ("nothing-trained", field)


def test_trl_places_images_at_their_blocks_and_those_of_strings_before_the_first_user_text() -> None:
    blocks = [{"type": "text", "text": "See "}, {"type": "image"}, {"type": "text", "text": "?"}]
    row = {"images": ["a.jpg"], "prompt": [{"role": "user", "content": blocks}],
           "completion": [{"role": "assistant", "content": "A cat."}]}  # fmt: skip
    assert read("trl", row) == [("user", "See ", "[a.jpg]", "?"), ANSWER]
    strings = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "What?"},
               {"role": "assistant", "content": "A cat."}]  # fmt: skip
    assert read("trl", {"images": ["a.jpg", "b.jpg"], "messages": strings})[1] == (
        "user",
        "[a.jpg]",
        "[b.jpg]",
        "What?",
    )


def test_blocks_that_datasets_stored_as_json_text_or_with_nulls() -> None:
    blocks = ['{"type": "image"}', '{"type": "text", "text": "What?"}']
    answer = [{"type": "text", "text": "A cat.", "image": None}]
    row = {"images": [{"bytes": b"x", "path": "a.jpg"}],
           "messages": [{"role": "user", "content": blocks}, {"role": "assistant", "content": answer}]}  # fmt: skip
    assert read("trl", row) == [("user", "[b'x']", "What?"), ANSWER]


def test_axolotl_takes_the_image_of_a_column_behind_the_first_user_text() -> None:
    messages = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]
    assert read("axolotl", {"conversations": messages, "images": ["a.jpg"]})[0] == ("user", "What?", "[a.jpg]")
    bare = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    assert read("axolotl", {"messages": bare, "images": ["a.jpg"]}) == [("user", "[a.jpg]", "What?")]
    [fault] = all_formats()["axolotl"]().read({"messages": bare, "images": ["a.jpg", "b.jpg"]}).faults
    assert (fault.code, fault.field) == ("image-count", "images")


@pytest.mark.parametrize(
    ("details", "kept"),
    [([None, None], {}), (["low", "low"], {"detail": "low"}), (["low", None], {"detail": "low,auto"})],
)
def test_the_detail_of_openai_is_kept_in_meta(details: list[str | None], kept: dict[str, str]) -> None:
    blocks = [
        {"type": "image_url", "image_url": {"url": "a.jpg", **({"detail": detail} if detail else {})}}
        for detail in details
    ]
    chat = all_formats()["openai"]().read({"messages": [{"role": "user", "content": blocks}]}).chat
    assert chat is not None
    assert chat.meta == kept


def test_tool_calls_of_openai_are_messages_of_their_own() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    row = {
        "tools": [{"type": "function"}],
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "Rain."},
            {"role": "assistant", "content": "It rains."},
        ],
    }
    chat = all_formats()["openai"]().read(row).chat
    assert chat is not None
    assert [message.role for message in chat.messages] == ["user", "tool_call", "tool", "assistant"]
    assert '"weather"' in chat.messages[1].text
    assert chat.tools == '[{"type": "function"}]'
