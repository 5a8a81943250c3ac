"""Rows of text alone that the plan of an import makes: the lines that their drafts become."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3v_data.formats import row_items
from phi3v_data.formats.drafts import make_draft
from phi3v_data.formats.images import ImagePlaces
from phi3v_data.formats.import_options import ImportSettings
from phi3v_data.formats.importing import ImportRows
from phi3v_data.formats.made_rows import MAX_BYTES, make_row
from phi3v_data.formats.openai import OpenAI
from phi3v_data.formats.plain import make_plain_rows
from phi3v_data.formats.plain_fields import PlainReader
from phi3v_data.formats.sharegpt import ShareGPT
from phi3v_data.formats.swift import Swift
from phi3v_data.importing import import_rows
from phi3v_data.sources.source import Source
from phi3v_data.writing import rows
from phi3v_data.writing.rows import RowSettings, Slot

FORMATS = {"sharegpt": ShareGPT(), "swift": Swift(), "openai": OpenAI()}
KEYS = {"sharegpt": ("from", "value", "human", "gpt"), "swift": ("role", "content", "user", "assistant")}
KEYS["openai"] = KEYS["swift"]
PLACES = ImagePlaces("")

TEXTS = st.lists(
    st.sampled_from(
        ["What?", "a", " ", "\n", "\t", '"', "\\", "\\\\", '\\"', "é", "漢字", "\U0001f600", "\x7f", "\x1f", "\0",
         "\ud800", "<", "<|end|>", "<image>", "\u3000", "\\u0000", '"},{"from":"gpt","value":"',
         '"},{"from":"human","value":"', '"},{"role":"assistant","content":"', '"}]', '[{"from":"human"', "}"]
    ),
    max_size=4,
).map("".join)  # fmt: skip
VISIBLE = TEXTS.map(lambda text: f"A{text}")


@st.composite
def text_rows(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Questions and answers in turn, of any text, with up to two things that are not usual."""
    role, content, user, assistant = KEYS[name]
    texts = draw(st.sampled_from([VISIBLE, TEXTS]))
    messages: list[Any] = []
    for _ in range(draw(st.integers(1, 3))):
        messages += [{role: user, content: draw(texts)}, {role: assistant, content: draw(texts)}]
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        at = draw(st.integers(0, len(messages) - 1))
        message = messages[at] if isinstance(messages[at], dict) else {}
        match draw(st.sampled_from(["key", "role", "reversed", "system", "gone", "weight", "other"])):
            case "key":
                message["name"] = draw(TEXTS)
            case "role":
                message[role] = draw(st.sampled_from([user, assistant, "system", "nobody", 3, None]))
            case "reversed":
                messages[at] = dict(reversed(message.items()))
            case "system":
                messages.insert(0, {role: "system", content: draw(TEXTS)})
            case "gone":
                messages.pop(at)
                if not messages:
                    messages.append({})
            case "weight":
                message["loss" if name == "swift" else "weight"] = draw(st.sampled_from([0, 1, True, False, None, 0.5]))
            case "other":
                messages[at] = draw(st.sampled_from([None, "ab", [], ["from", "value"], {}, {role: [], content: {}}]))
    row: dict[str, Any] = {draw(st.sampled_from(["conversations", "messages"])): messages}
    more: dict[str, Any] = {
        "id": st.one_of(TEXTS, st.sampled_from([7, True, None, 1.5])),
        "system": TEXTS,
        "group": st.one_of(TEXTS, st.just(3)),
        "answers": st.sampled_from([["x"], [], ["\ud800"], "x", [3]]),
        "meta": st.sampled_from(
            [{}, {"a": 1}, {"a": 0.1}, {"source_id": "é"}, {"a\0": None}, '{"a": true}', {"a": [1]}]
        ),
        "tools": st.sampled_from(["", "[]"]),
        "conversations": st.none(),
    }
    for column in draw(st.lists(st.sampled_from([*more]), max_size=3, unique=True)):
        row.setdefault(column, draw(more[column]))
    return row if draw(st.booleans()) else dict(reversed(row.items()))


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_row_that_the_plan_makes_is_the_line_of_its_draft(name: str, data: st.DataObject) -> None:
    row = data.draw(text_rows(name))
    plain = make_plain_rows(FORMATS[name], ("video",))
    assert plain is not None
    found = make_row(row, "rows.json[0]", plain)
    if found:
        draft = make_draft(row, FORMATS[name], "rows.json, line 1", PLACES, key="rows.json[0]")
        line, images, notes = rows.make_row(Slot(7, "train", "rows.json[0]"), draft, RowSettings("made"))
        assert line == '{"id": "train-0000000007", "source": "made", ' + found.decode()
        assert (dict(images), notes) == ({}, ())


def text_row(number: int) -> dict[str, Any]:
    turns = [("human", f'Question "{number}"?'), ("gpt", "Yes.\nNo."), ("human", "\n\\ b"), ("gpt", " A < b")]
    messages = [{"from": who, "value": text} for who, text in (turns if number % 3 else turns[:2])]
    row: dict[str, Any] = {"id": f"r{number}", "conversations": messages}
    if number % 5 == 0:
        row |= {"system": "Short.", "meta": {"a": 1}, "answers": ["Yes."], "group": "é"}
    if number % 7 == 0:
        messages[1]["value"] = " "
    return row


def test_both_ways_write_the_same_directory_and_the_same_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s" / "rows.json"
    path.parent.mkdir()
    path.write_text(json.dumps([text_row(number) for number in range(300)]))
    import_rows("sharegpt", path, tmp_path / "made", workers=1)
    import_rows("sharegpt", path, tmp_path / "plain", workers=0, plain=True, lossy=True)
    monkeypatch.setattr(row_items, "make_row", lambda *args: b"")
    import_rows("sharegpt", path, tmp_path / "drafts", workers=0)
    names = ["dataset.json", "rejects.jsonl", "rows_train.jsonl", ".phi3v/convert/complete.json"]
    for name in names:
        assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "drafts" / name).read_bytes(), name
    assert import_rows("sharegpt", path, tmp_path / "made", workers=0).already_complete
    lines = (tmp_path / "plain/rows_train.jsonl").read_text().splitlines()
    assert len(lines) == 257  # without every seventh, from row 0
    assert all(set(json.loads(line)) == {"id", "source", "conversations"} for line in lines)


def test_the_plan_makes_rows_of_text_alone(tmp_path: Path) -> None:
    def row(text: str, **more: Any) -> dict[str, Any]:
        return {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "Yes."}], **more}

    path = tmp_path / "rows.json"
    path.write_text(
        json.dumps(
            [
                row("What?", id="a"),
                row(" é < ü\n", system="Short."),
                row("<image>What?", images=["cat.jpg"]),
                row("x" * MAX_BYTES),
                row("<|end|>"),
                row("a\0b"),
                row("What?", id="\ud800"),
                row("What?", tools="[]"),
                row("What?", id="a\0", meta={"source_id": "b"}),
                row("What?", id="b"),
            ]
        )
    )
    items = list(ImportRows().plan(Source.open(path), ImportSettings(format="sharegpt")))
    assert [bool(item.made) for item in items] == [True, True, *[False] * 7, True]
    assert items[0].made == (
        b'"conversations": [{"images": [], "user": "What?", "assistant": "Yes."}], "meta": {"source_id": "a"}}'
    )


def test_a_further_text_of_a_message_does_not_become_part_of_the_answer(tmp_path: Path) -> None:
    """Behind the answer, and before the next question, as in exports of other tools."""
    messages = [
        {"from": "human", "value": "What?"},
        {"from": "gpt", "value": "Yes.", "note": "sure"},
        {"from": "human", "value": "And?", "note": "asked"},
        {"from": "gpt", "value": "No.", "note": "sure"},
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"id": "a", "conversations": messages}]))
    (item,) = ImportRows().plan(Source.open(path), ImportSettings(format="sharegpt"))
    assert item.made == (
        b'"conversations": [{"images": [], "user": "What?", "assistant": "Yes."}, '
        b'{"images": [], "user": "And?", "assistant": "No."}], "meta": {"source_id": "a"}}'
    )


def test_a_format_of_the_users_own_that_raises_is_left_to_the_conversion() -> None:
    class Raises(PlainReader):
        def rewrite(self, row: Any) -> bytes | None:
            raise KeyError("nope")

    assert make_row({"messages": []}, "key", Raises.__new__(Raises)) == b""


def test_metadata_of_endless_depth_costs_the_metadata_alone(tmp_path: Path) -> None:
    """Among the first rows, whose columns are described, and behind them."""
    rows = [text_row(number) for number in range(1, 300)]
    for number in (1, 250):
        rows[number]["meta"] = "[" * 200_000
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    result = import_rows("sharegpt", path, tmp_path / "out", workers=0)
    assert result.manifest.rejects == {"empty-text": 42}
