"""Rules of single tools: what each takes and does not take, beside rows that it reads."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from broken_files import PNG, url
from PIL import Image

from phi3v_data.errors import Reject, UserError
from phi3v_data.formats.drafts import make_draft
from phi3v_data.formats.images import ImagePlaces
from phi3v_data.formats.registry import get_format
from phi3v_data.formats.rows import open_rows
from phi3v_data.formats.unread import unread_columns
from phi3v_data.importing import import_rows
from phi3v_data.lint import lint_file

Row = dict[str, Any]


def chat(*messages: tuple[Any, ...], **more: Any) -> Row:
    """A row of `messages`; a third value of a message is more of its keys."""
    rows = [{"role": role, "content": text, **(rest[0] if rest else {})} for role, text, *rest in messages]
    return {"messages": rows, **more}


def talk(*turns: tuple[str, str], **more: Any) -> Row:
    """A row of `conversations`."""
    return {"conversations": [{"from": name, "value": text} for name, text in turns], **more}


def found_in(
    folder: Path, rows: list[Row], format_: str | None, name: str = "rows.jsonl", info: Row | None = None
) -> list[tuple[str, str, int | None, str | None, str]]:
    """Findings of a file with a row per line: severity, code, line, field, message."""
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    if info is not None:
        (folder / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": name, **info}}))
    report = lint_file(folder / name, format=format_)
    return [(each.severity, each.code, each.line, each.field, each.message) for each in report.problems]


ASK, SAY = ("user", "What is it?"), ("assistant", "A cat.")
HUMAN, GPT = ("human", "What is it?"), ("gpt", "A cat.")
CALL = ("function_call", '{"name": "look", "arguments": {}}')

FAULTS: dict[str, tuple[str, list[Row], list[tuple[str, str, int, str]], str]] = {
    "llava, a user": (
        "llava",
        [talk(HUMAN, GPT), talk(("user", "And it?"), GPT)],
        [("error", "role-unknown", 2, "conversations[0].from")],
        "the role 'user' is not one of human, gpt: LLaVA stops with a KeyError",
    ),
    "llava, an assistant": (
        "llava",
        [talk(HUMAN, ("assistant", "A cat.")), talk(("human", "And it?"), GPT)],
        [("error", "role-unknown", 1, "conversations[1].from")],
        "the role 'assistant' is not one of human, gpt",
    ),
    "ms-swift, a model": (
        "swift",
        [chat(ASK, SAY), chat(("user", "And it?"), ("model", "A cup."))],
        [("error", "role-unknown", 2, "messages[1].role")],
        "ms-swift deletes the row",
    ),
    "llama-factory, two names of a role": (
        "sharegpt",
        [talk(HUMAN, GPT), talk(("human", "And it?"), ("model", "A cup.")), talk(("human", "Or?"), GPT)],
        [("error", "role-unknown", 2, "conversations[1].from")],
        "the role 'gpt' is 'model' here: LLaMA-Factory reads one name",
    ),
    "ms-swift, loss a text": (
        "swift",
        [chat(ASK, (*SAY, {"loss": "false"}))],
        [("error", "wrong-type", 1, "messages[1].loss")],
        "ms-swift takes it for true, and trains the answer",
    ),
    "llama-factory, a call that is not JSON": (
        "sharegpt",
        [chat(ASK, CALL, ("observation", "1"), SAY), chat(ASK, ("function_call", "look()"), ("observation", "1"), SAY)],
        [("error", "wrong-type", 2, "messages[1].content")],
        "not JSON text with 'name' and 'arguments': LLaMA-Factory stops",
    ),
    "llama-factory, a call without a name": (
        "sharegpt",
        [chat(ASK, CALL, ("observation", "1"), SAY), chat(ASK, ("function_call", "[{}]"), ("observation", "2"), SAY)],
        [("error", "wrong-type", 2, "messages[1].content")],
        "not JSON text with 'name' and 'arguments': LLaMA-Factory stops",
    ),
    "llama-factory, tools that are not JSON": (
        "sharegpt",
        [chat(ASK, SAY, tools="[]"), chat(("user", "And it?"), SAY, tools="[{")],
        [("error", "wrong-type", 2, "tools")],
        "'tools' is '[{', not JSON text: LLaMA-Factory stops",
    ),
    "llama-factory, a video too many": (
        "sharegpt",
        [chat(("user", "<video>Hi"), SAY, videos=["a"]), chat(("user", "<video>Ho"), SAY, videos=["a", "b"])],
        [("error", "image-count", 2, "videos")],
        "the texts have 1 <video> tag for 2 videos: LLaMA-Factory stops",
    ),
    "ms-swift, an audio file too few": (
        "swift",
        [chat(("user", "<audio><audio>Hi"), SAY, audios="a.wav")],
        [("error", "image-count", 1, "audios")],
        "the texts have 2 <audio> tags for 1 audio: ms-swift keeps the surplus tags as text",
    ),
    "qwen, a video without a tag": (
        "qwen",
        [talk(HUMAN, ("gpt", "A <video>"), video=["a.mp4"])],
        [("error", "image-count", 1, "video")],
        "the texts have 0 <video> tags for 1 video: Qwen's trainer tries the row three times",
    ),
    "ms-swift, a text as history": (
        "swift",
        [{"query": "Hi", "response": "Ho", "history": [["a", "b"]]}, {"query": "A", "response": "B", "history": "[]"}],
        [("warning", "wrong-type", 2, "history")],
        "'history' is '[]', not an array of pairs: ms-swift reads the text of a Python list, others do not",
    ),
    "ms-swift, several answers": (
        "swift",
        [{"query": "Hi", "response": "Ho"}, {"query": "Hi", "response": ["Ho", "Hu"]}],
        [("error", "wrong-type", 2, "response")],
        "'response' is an array of 2, not a text",
    ),
    "llama-factory, two system messages": (
        "sharegpt",
        [talk(("system", "Be kind."), HUMAN, GPT, system="Be brief."), talk(("human", "Or?"), GPT, system="Be brief.")],
        [("warning", "key-ignored", 1, "system")],
        "LLaMA-Factory takes the message, and ignores this column",
    ),
    "ms-swift, two system messages": (
        "swift",
        [chat(("system", "Be kind."), ASK, SAY, system="Be brief.")],
        [("warning", "key-ignored", 1, "system")],
        "ms-swift takes the message, and ignores this column",
    ),
    "qwen, a blank line and a byte order mark": (
        "qwen",
        [],
        [("error", "bom", 1, ""), ("error", "blank-line", 2, "")],
        "Qwen's trainer stops",
    ),
    "trl, an image in the completion": (
        "trl",
        [{"images": ["a.png"], "prompt": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
          "completion": [{"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "Ho"}]}]}],
        [("error", "image-in-answer", 1, "completion[0].content")],
        "an answer has 1 image: TRL wants all images in the prompt",
    ),
    "trl, a text for images": (
        "trl",
        [chat(ASK, SAY, images=["a.png"]), chat(("user", "And it?"), SAY, images="a.png")],
        [("error", "wrong-type", 2, "images")],
        "TRL takes each of its characters for an image, and stops",
    ),
    "trl, an array for an image": (
        "trl",
        [chat(ASK, SAY, image="a.png"), chat(("user", "And it?"), SAY, image=["a.png"])],
        [("error", "wrong-type", 2, "image")],
        "TRL takes the whole array for an image, and stops",
    ),
    "openai, an image in the system message": (
        "openai",
        [chat(("system", [url(PNG)]), ASK, SAY)],
        [("error", "image-in-answer", 1, "messages[0].content")],
        "the system message has an image: OpenAI takes images in user messages only",
    ),
    "llava, an answer of a tag alone": (
        "llava",
        [talk(HUMAN, ("gpt", "<image>"), image="a.png")],
        [("error", "image-in-answer", 1, "conversations[1].value")],
        "an answer has 1 image",
    ),
    "axolotl, a block without an image": (
        "axolotl",
        [chat(("user", [{"type": "text", "text": "Hi"}, {"type": "image"}]), SAY)],
        [("error", "image-count", 1, "messages[0].content[1]")],
        "the messages have 1 image block for 0 images",
    ),
    "trl, a chosen answer alone": (
        "trl",
        [{"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "Ho"}]}],
        [("error", "missing-field", 1, "rejected")],
        "'rejected' is missing",
    ),
    "qwen, a tag in an answer": (
        "qwen",
        [talk(HUMAN, ("gpt", "It is <image>"), image="a.png")],
        [("error", "image-in-answer", 1, "conversations[1].value")],
        "Qwen's trainer reads no tag in an answer, has an image left, tries the row three times",
    ),
    "qwen, one more tag in an answer": (
        "qwen",
        [talk(("human", "<image>\nHi"), ("gpt", "It is <image>"), image="a.png")],
        [("warning", "image-count", 1, "image")],
        "Qwen's trainer reads those of the user, which fit, and keeps the others as text",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rules")
    Image.new("RGB", (8, 6), "red").save(folder / "a.png")
    return folder


@pytest.mark.parametrize("name", FAULTS)
def test_what_a_tool_does_not_take_is_named_and_no_other_row(name: str, folder: Path) -> None:
    format_, rows, expected, words = FAULTS[name]
    if not rows:
        lines = [json.dumps(talk(HUMAN, GPT)), "", json.dumps(talk(("human", "And it?"), GPT))]
        (folder / "rows.jsonl").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
        problems = lint_file(folder / "rows.jsonl", format=format_).problems
        found = [(each.severity, each.code, each.line, each.field, each.message) for each in problems]
    else:
        found = found_in(folder, rows, format_)
    found = [each for each in found if each[1] != "duplicate-sample"]
    assert [(severity, code, line, field or "") for severity, code, line, field, _ in found] == expected
    assert all(words in message for *_, message in found), found


GOOD: dict[str, tuple[str, Row]] = {
    "ms-swift, a result of a function": ("swift", chat(ASK, CALL, ("function_response", "1"), SAY)),
    "ms-swift, a scaled loss": ("swift", chat(ASK, (*SAY, {"loss_scale": 0.5}))),
    "ms-swift, a rejected answer as messages": (
        "swift",
        chat(ASK, SAY, rejected_response=[{"role": "assistant", "content": "A dog."}]),
    ),
    "ms-swift, an answer labelled as bad": ("swift", chat(ASK, SAY, label=False)),
    "llama-factory, an answer labelled as bad": ("sharegpt", talk(HUMAN, GPT, kto_tag=False)),
    "llama-factory, frames of a video": ("sharegpt", talk(("human", "<video>Hi"), GPT, videos=[["1.png", "2.png"]])),
    "llama-factory, a thought before a call": (
        "sharegpt",
        talk(HUMAN, (CALL[0], f"<think>Look.</think>{CALL[1]}"), ("observation", "1"), GPT),
    ),
    "llama-factory, the system message twice": (
        "sharegpt",
        talk(("system", "Be brief."), HUMAN, GPT, system="Be brief."),
    ),
    "llava, a video": ("llava", talk(("human", "<image>\nHi"), GPT, video="a.mp4")),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_a_tool_takes_is_not_blamed(name: str, folder: Path) -> None:
    format_, row = GOOD[name]
    assert [each for each in found_in(folder, [row], format_) if each[1] != "control-token"] == []


def test_two_system_messages_are_not_imported_as_one(tmp_path: Path) -> None:
    row = talk(("system", "Be kind."), HUMAN, GPT, system="Be brief.")
    places = ImagePlaces(str(tmp_path))
    with pytest.raises(Reject, match="not the system message among the messages") as found:
        make_draft(row, get_format("sharegpt")(), "rows.jsonl:1", places, key="1")
    assert found.value.code == "key-ignored"
    row["system"] = "Be kind."
    assert make_draft(row, get_format("sharegpt")(), "rows.jsonl:1", places, key="1").system == "Be kind."


@pytest.mark.parametrize("history", ["[['Hi', 'Ho']]", {"Hi": "Ho"}])
def test_earlier_turns_that_are_not_read_are_not_left_out(history: object, tmp_path: Path) -> None:
    row = {"query": "Hi", "response": "Ho", "history": history}
    with pytest.raises(Reject, match=r"rows\.jsonl:1, history: 'history' is .*, not an array of pairs") as found:
        make_draft(row, get_format("swift")(), "rows.jsonl:1", ImagePlaces(str(tmp_path)), key="1")
    assert found.value.code == "wrong-type"
    entry = {"columns": {"prompt": "query", "response": "response", "history": "history"}}
    [seen] = found_in(tmp_path, [row], None, info=entry)
    assert seen[1:4] == ("wrong-type", 1, "history")
    assert seen[4].endswith(", not an array of pairs: LLaMA-Factory ignores it")


@pytest.mark.parametrize("system", [["Be brief."], {"text": "Be brief."}, 5])
def test_a_system_message_that_is_not_a_text_is_not_left_out(system: object, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(chat(ASK, SAY, system=system)) + "\n")
    with pytest.raises(UserError, match="1 wrong-type"):
        import_rows("swift", tmp_path / "rows.jsonl", tmp_path / "out", workers=0)
    [found] = found_in(tmp_path, [chat(ASK, SAY, system=system)], "swift")
    assert found[:4] == ("error", "wrong-type", 1, "system")


def test_columns_of_another_type_than_theirs_are_named_in_the_note_of_an_import() -> None:
    rows = [chat(ASK, SAY, answers=["a"], group="g", meta={"a": 1}, id=3), chat(ASK, SAY, answers=[], meta="")]
    assert unread_columns(rows, get_format("swift")()) == ()
    rows = [chat(ASK, SAY, answers=[1]), chat(ASK, SAY, group=5, meta={"a": [1]}), chat(ASK, SAY, id=0.5)]
    assert unread_columns(rows, get_format("swift")()) == ("answers", "group", "meta", "id")


def test_rows_are_not_blamed_for_what_the_settings_of_their_file_hide(tmp_path: Path) -> None:
    columns = {"formatting": "sharegpt", "columns": {"images": "images"}}
    found = found_in(tmp_path, [chat(ASK, SAY)] * 2, None, info=columns)
    assert [each[1:4] for each in found if each[1] != "duplicate-sample"] == [
        ("settings-invalid", None, "mine.columns.messages")
    ]
    tags = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": {"role_tag": "role"}}
    found = found_in(tmp_path, [chat(ASK, SAY)], None, info=tags)
    assert {each[1] for each in found} == {"settings-invalid"}


def test_columns_that_an_entry_does_not_name_are_not_seen(folder: Path) -> None:
    rows = [talk(HUMAN, GPT, images=[]), talk(("human", "<image>Hi"), GPT, images=["a.png"], system="Be brief.")]
    (folder / "set").mkdir()
    (folder / "set/a.png").hardlink_to(folder / "a.png")
    for columns in ({}, {"columns": {"messages": "conversations"}}):
        found = found_in(folder / "set", rows, None, info={"formatting": "sharegpt", **columns})
        assert [each[:4] for each in found] == [
            ("error", "image-ignored", 2, "images"),
            ("warning", "key-ignored", 2, "system"),
        ]
        assert "do not name 'images': LLaMA-Factory does not see it" in found[0][4]
    named = {"messages": "conversations", "images": "images", "system": "system"}
    assert found_in(folder / "set", rows, None, info={"formatting": "sharegpt", "columns": named}) == []


COLUMNS: list[tuple[Row, list[Row], list[tuple[str, str]]]] = [
    ({"columns": {"messages": "messages", "tools": "tools"}}, [chat(ASK, SAY)], [("columns.tools", "'tools'")]),
    ({"columns": {"messages": "messages", "images": "photos"}}, [chat(ASK, SAY)], [("columns.images", "'photos'")]),
    ({"columns": {"messages": "messages", "tools": "tools"}}, [chat(ASK, SAY, tools=None)], []),
    ({"columns": {"messages": "messages", "kto_tag": "good"}}, [chat(ASK, SAY)], [("columns.kto_tag", "'good'")]),
    ({"columns": {"messages": "messages", "chosen": "good"}}, [chat(ASK, SAY)], []),
    ({"columns": {"messages": "messages", "system": "system"}}, [chat(("system", "Be brief."), ASK, SAY)], []),
    (
        {"columns": {"messages": "messages", "system": "system"}},
        [chat(("system", "Be brief."), ASK, SAY), chat(("user", "And it?"), SAY)],
        [("columns.system", "'system'")],
    ),
    ({"columns": {"messages": "messages", "tools": "tools"}}, [chat(ASK, SAY), chat(("user", 5), SAY)], []),
]


@pytest.mark.parametrize(("entry", "rows", "expected"), COLUMNS)
def test_columns_that_no_row_has_stop_llama_factory(
    entry: Row, rows: list[Row], expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    info = {"formatting": "sharegpt", "tags": {**tags, "system_tag": "system"}, **entry}
    found = [each for each in found_in(tmp_path, rows, None, info=info) if each[1] == "settings-invalid"]
    assert [(line, field) for _, _, line, field, _ in found] == [(None, field) for field, _ in expected]
    for (_, name), (*_, message) in zip(expected, found, strict=True):
        assert message.startswith(f"LLaMA-Factory reads {name} as '")
        assert message.endswith("' of each row, no row has it, and it stops")


def test_alpaca_rows_need_the_columns_that_llama_factory_reads_if_none_are_named(tmp_path: Path) -> None:
    row = {"instruction": "What is it?", "output": "A cat."}
    [found] = found_in(tmp_path, [row], None, info={})
    assert found[:4] == ("error", "settings-invalid", None, "columns.query")
    assert found_in(tmp_path, [row], None, info={"columns": {"prompt": "instruction", "response": "output"}}) == []
    assert found_in(tmp_path, [{**row, "input": ""}], None, info={}) == []


def test_a_label_and_videos_have_the_names_of_the_settings(tmp_path: Path) -> None:
    columns = {"messages": "messages", "kto_tag": "good", "videos": "clips"}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    rows = [chat(ASK, SAY, good=False), chat(("user", "And?"), SAY, good="no"), chat(ASK, SAY, clips=["a.mp4"])]
    info = {"formatting": "sharegpt", "columns": columns, "tags": tags}
    found = [each for each in found_in(tmp_path, rows, None, info=info) if each[1] != "mixed-types"]
    assert [each[1:] for each in found] == [
        ("wrong-type", 2, "good",
         "'good' is 'no', not true or false: LLaMA-Factory reads the row as one without it"),
        ("image-count", 3, "clips",
         "the texts have 0 <video> tags for 1 video: LLaMA-Factory stops, and names neither the file nor the line"),
    ]  # fmt: skip


def test_the_first_row_is_named_if_it_has_no_column_of_images(tmp_path: Path) -> None:
    rows = [chat(ASK, SAY), chat(("user", "And it?"), SAY, images=["a.png"])]
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    [found] = found_in(tmp_path, rows, "trl")
    assert found[1:4] == ("text-only-set", 1, "images")


def test_ms_swift_deletes_rows_without_a_rejected_answer_beside_others_with_one(tmp_path: Path) -> None:
    rows = [chat((ASK[0], f"What is {number}?"), SAY) for number in range(5)]
    rows[0]["rejected_response"] = rows[3]["rejected_response"] = "A dog."
    [found] = found_in(tmp_path, rows, "swift")
    assert found[:4] == ("error", "missing-field", 2, "rejected_response")
    assert "ms-swift deletes 3 rows without one" in found[4]
    assert found_in(tmp_path, rows[1:3], "swift") == []


KINDS: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("qwen", "rows.json", "lines", [("error", "json-syntax")]),
    ("qwen", "rows.jsonl", "array", [("error", "json-syntax")]),
    ("qwen", "rows.json", "array", []),
    ("qwen", "rows.jsonl.gz", "gzip", [("warning", "file-encoding")]),
    ("qwen", "rows.parquet", "parquet", [("error", "file-encoding")]),
    ("llava", "rows.json.gz", "gzip", [("warning", "file-encoding")]),
    ("llava", "rows.parquet", "parquet", [("error", "file-encoding")]),
    ("sharegpt", "rows.jsonl.gz", "gzip", [("warning", "file-encoding")]),
    ("sharegpt", "rows.jsonl", "gzip", []),
    ("sharegpt", "rows.ndjson", "lines", [("error", "file-encoding")]),
    ("sharegpt", "rows.parquet", "parquet", []),
    ("openai", "rows.json", "array", [("error", "json-syntax")]),
    ("openai", "rows.jsonl.gz", "gzip", [("warning", "file-encoding")]),
    ("trl", "rows.jsonl.gz", "gzip", []),
]


@pytest.mark.parametrize(("format_", "name", "kind", "expected"), KINDS)
def test_a_file_that_a_tool_does_not_open_is_named(
    format_: str, name: str, kind: str, expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    row = chat(ASK, SAY) if format_ in ("openai", "trl") else talk(HUMAN, GPT)
    path = tmp_path / name
    if kind == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        data = (json.dumps([row]) if kind == "array" else json.dumps(row)).encode()
        path.write_bytes(gzip.compress(data) if kind == "gzip" else data)
    report = lint_file(path, format=format_)
    assert [(each.severity, each.code) for each in report.problems] == expected
    assert {each.line for each in report.problems} <= {None}


def test_an_image_folder_takes_paths_below_it_only(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name in ("a.png", "set/a.png", "set/b..png"):
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    refs = ["a.png", "b..png", "../a.png", str(tmp_path / "set/a.png"), "https://example.org/a.png"]
    blocks = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    rows = [{"images_file_names": [ref], **chat(("user", blocks), SAY)} for ref in refs]
    found = [each for each in found_in(tmp_path / "set", rows, None) if each[2] is not None]
    assert [each[:4] for each in found if each[1] != "duplicate-sample"] == [
        ("error", "image-path-unsafe", 3, "images_file_names[0]"),
        ("error", "image-path-unsafe", 4, "images_file_names[0]"),
        ("error", "image-source", 5, "images_file_names[0]"),
    ]
    assert "'../a.png' is not below the folder of the file: datasets refuses it" in found[0][4]


def test_a_missing_image_is_told_what_may_be_meant(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("cat_1.png", "a b.png"):
        Image.new("RGB", (8, 6)).save(tmp_path / "images" / name)
    hints = {
        "images\\cat_1.png": "did you mean 'images/cat_1.png'?",
        "images/a%20b.png": "did you mean 'images/a b.png'?",
        "images/cat_1.pgn": "did you mean 'images/cat_1.png'?",
        "images/CAT_1.png": "did you mean 'images/cat_1.png'?",
        "dog.png": "paths start there; --images_root gives another folder",
        "/none/dog.png": "",
    }
    rows = [chat(("user", f"<image>{ref}"), SAY, images=[ref]) for ref in hints]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = lint_file(tmp_path / "rows.jsonl", format="swift").problems
    assert [each.hint for each in problems] == list(hints.values())
    assert [each.code for each in problems if each.code != "image-missing"] == ["image-name-mismatch"]


def test_objects_over_several_lines_are_told_so(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(chat(ASK, SAY), indent=1) * 2)
    with pytest.raises(Exception, match="begins with a JSON object over several lines, not rows"):
        open_rows(tmp_path / "rows.json")
