"""Preference pairs and calls of tools: rows of format 2, from import to export."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from in_process import Cli, make_cli
from PIL import Image
from test_import import SAMPLES, rejects_of, rows_of, write_rows

import phi3v_data
from phi3v_data.dataset import Dataset
from phi3v_data.errors import UserError
from phi3v_data.exporting.request import ExportRequest
from phi3v_data.exporting.run import LossyError, export_set
from phi3v_data.formats.newer import openai_call
from phi3v_data.formats.registry import all_formats
from phi3v_data.formats.turns import check_turns, to_chat
from phi3v_data.importing import import_rows
from phi3v_data.schema import Sample, ToolStep, Turn
from phi3v_train.cli.app import main as phi3v_train_main

CALL = '{"name": "weather", "arguments": {"city": "Bonn"}}'
TOOLS = '[{"name": "weather"}]'


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return make_cli(capsys, monkeypatch)


def pair_row(number: int = 0) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": f"<image>What is it, {number}?"},
            {"role": "assistant", "content": "A cat."},
        ],
        "images": ["images/cat.jpg"],
        "rejected_response": "A dog.",
    }


def tool_row(number: int = 0) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": f"Rain in Bonn, {number}?"},
            {"role": "tool_call", "content": CALL},
            {"role": "tool_response", "content": "rain"},
            {"role": "assistant", "content": "Yes."},
        ],
        "tools": TOOLS,
    }


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """An imported set: a pair, calls of tools, and a row of format 1."""
    shutil.copytree(SAMPLES / "ms_swift/images", tmp_path / "s/images")
    plain = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]}
    write_rows(tmp_path / "s/rows.jsonl", [pair_row(), tool_row(), plain])
    import_rows("swift", tmp_path / "s", tmp_path / "set", workers=0)
    return tmp_path / "set"


def manifest_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "dataset.json").read_text())
    return found


def test_rows_that_need_it_make_the_set_format_2(mixed: Path, cli: Cli) -> None:
    assert manifest_of(mixed)["format"] == 2
    pair, tools, plain = rows_of(mixed)
    assert (pair["conversations"][0]["assistant"], pair["rejected"]) == ("A cat.", "A dog.")
    assert tools["conversations"] == [
        {
            "images": [],
            "user": "Rain in Bonn, 0?",
            "assistant": "Yes.",
            "steps": [{"calls": [CALL], "results": ["rain"]}],
        }
    ]
    assert tools["tools"] == TOOLS
    assert set(plain) == {"id", "source", "conversations", "meta"}
    assert cli("validate", mixed, "--workers", 1)[0] == 0
    sample = Dataset(mixed)["train"][1]
    assert sample.conversations[0].steps == (ToolStep(calls=(CALL,), results=("rain",)),)


def loaded(directory: Path, name: str, split: str) -> list[tuple[list[Image.Image], str, str]]:
    """Images, prompt and answer of each turn, as the loader of the Phi-3.5-vision sample reads a directory.

    It opens `NAME_SPLIT.jsonl` and the images below `images/`, and knows neither a manifest nor any other key.
    """
    turns = []
    for line in (directory / f"{name}_{split}.jsonl").read_text(encoding="utf-8").splitlines():
        for turn in json.loads(line)["conversations"]:
            images = [Image.open(directory / "images" / path).convert("RGB") for path in turn["images"]]
            tags = "".join(f"<|image_{number}|>" for number in range(1, len(images) + 1))
            turns.append((images, f"{tags}\n{turn['user']}", f"{turn['assistant']}<|end|>\n<|endoftext|>"))
    return turns


@pytest.mark.parametrize("kind", ["ms_swift", "trl"])
def test_the_loader_of_the_sample_reads_a_set_of_format_1(tmp_path: Path, kind: str) -> None:
    import_rows({"ms_swift": "swift"}.get(kind, kind), SAMPLES / kind, tmp_path / "set", workers=0)
    name = manifest_of(tmp_path / "set")["name"]
    assert manifest_of(tmp_path / "set")["format"] == 1
    turns = loaded(tmp_path / "set", name, "train")
    assert [(len(images), prompt, answer) for images, prompt, answer in turns[:2]] == [
        (1, "<|image_1|>\nWhat animal is this?", "A tabby cat.<|end|>\n<|endoftext|>"),
        (
            2,
            "<|image_1|><|image_2|>\nWhich of the two pictures shows money?",
            "The second one: it shows rows of old coins.<|end|>\n<|endoftext|>",
        ),
    ]
    names = ["cat", "cup", "coins", "cat", "rocket"]
    found = [image.tobytes() for images, _, _ in turns for image in images]
    assert found[:5] == [Image.open(SAMPLES / kind / f"images/{each}.jpg").convert("RGB").tobytes() for each in names]
    assert len(turns) == 7


def test_other_rows_stay_format_1_also_after_the_rows_of_format_2_are_gone(
    mixed: Path, cli: Cli, tmp_path: Path
) -> None:
    import_rows("llava", SAMPLES / "llava", tmp_path / "one", workers=0)
    assert manifest_of(tmp_path / "one")["format"] == 1
    assert cli("merge", mixed, tmp_path / "one", tmp_path / "both")[0] == 0
    assert manifest_of(tmp_path / "both")["format"] == 2
    assert [row["rejected"] for row in rows_of(tmp_path / "both") if "rejected" in row] == ["A dog."]
    assert cli("split", tmp_path / "both", tmp_path / "parts", "--split", "train=0.5,val=0.5")[0] == 0
    assert manifest_of(tmp_path / "parts")["format"] == 2
    file = next(mixed.glob("*_train.jsonl"))
    file.write_text(file.read_text().replace('"A dog."', '" "').replace('["rain"]', "[]"))
    assert cli("clean", mixed, tmp_path / "cleaned")[0] in (0, 1)
    assert (manifest_of(tmp_path / "cleaned")["format"], len(rows_of(tmp_path / "cleaned"))) == (1, 1)


def test_a_newer_format_is_refused_with_a_sentence(mixed: Path) -> None:
    path = mixed / "dataset.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(
        UserError, match=r"format 3 was written by a newer phi3v than this one, which reads format 2; upg"
    ):
        Dataset(mixed)


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"rejected": " "}, "empty-text", "rejected"),
        ({"rejected": 3}, "wrong-type", "rejected"),
        ({"rejected": "a <|end|>"}, "control-token", "rejected"),
        ({"tools": ["a"]}, "wrong-type", "tools"),
        (
            {"steps": [{"calls": ["a"], "results": ["b <|end|>"]}]},
            "control-token",
            "conversations[0].steps[0].results[0]",
        ),
        ({"steps": [{"calls": [], "results": ["b"]}]}, "wrong-type", "conversations[0].steps[0].calls"),
        ({"steps": [{"calls": ["a"]}]}, "missing-field", "conversations[0].steps[0].results"),
        (
            {"steps": [{"call": "a", "calls": ["a"], "results": ["b"]}]},
            "unknown-field",
            "conversations[0].steps[0].call",
        ),
    ],
)
def test_the_validator_names_what_is_wrong(
    tmp_path: Path, cli: Cli, change: dict[str, Any], code: str, field: str
) -> None:
    turn = {"images": [], "user": "a", "assistant": "b"}
    row: dict[str, Any] = {"id": "a", "source": "s", "conversations": [turn]}
    if "steps" in change:
        turn.update(change)
    else:
        row.update(change)
    write_rows(tmp_path / "d/train.jsonl", [row])
    _, said, _ = cli("validate", tmp_path / "d", "--json", "--workers", 1)
    found = [(each["code"], each["field"]) for each in json.loads(said)["problems"]]
    assert (code, field) in found


def test_rows_that_differ_in_the_rejected_answer_only_are_not_duplicates(tmp_path: Path, cli: Cli) -> None:
    turn = {"images": [], "user": "a", "assistant": "b"}
    rows = [{"id": str(n), "source": "s", "conversations": [turn], "rejected": text} for n, text in enumerate("xyx")]
    write_rows(tmp_path / "d/train.jsonl", rows)
    _, said, _ = cli("validate", tmp_path / "d", "--json", "--workers", 1)
    assert [(each["code"], each["line"]) for each in json.loads(said)["problems"]] == [("duplicate-sample", 3)]


@pytest.mark.parametrize("name", ["sharegpt", "swift", "trl"])
def test_pairs_come_back_from_every_format_that_carries_them(tmp_path: Path, name: str) -> None:
    shutil.copytree(SAMPLES / "ms_swift/images", tmp_path / "s/images")
    write_rows(tmp_path / "s/rows.jsonl", [pair_row(0), pair_row(1)])
    import_rows("swift", tmp_path / "s", tmp_path / "set", workers=0)
    export_set(name, tmp_path / "set", tmp_path / "out")
    import_rows("auto" if name != "swift" else name, tmp_path / "out", tmp_path / "again", workers=0)
    before, after = (
        [(row["conversations"], row["rejected"]) for row in rows_of(tmp_path / each)] for each in ("set", "again")
    )
    assert before == after
    if name == "sharegpt":
        entry = json.loads((tmp_path / "out/dataset_info.json").read_text())["rows_train"]
        assert (entry["ranking"], entry["columns"]["rejected"]) == (True, "rejected")


@pytest.mark.parametrize("name", ["sharegpt", "swift", "openai"])
def test_calls_of_tools_come_back_from_every_format_that_carries_them(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / "rows.jsonl", [tool_row(0), tool_row(1)])
    import_rows("swift", tmp_path / "rows.jsonl", tmp_path / "set", workers=0)
    export_set(name, tmp_path / "set", tmp_path / "out")
    import_rows(name, tmp_path / "out", tmp_path / "again", workers=0)
    for before, after in zip(rows_of(tmp_path / "set"), rows_of(tmp_path / "again"), strict=True):
        assert json.loads(after["tools"]) == json.loads(before["tools"])
        [step] = after["conversations"][0].pop("steps")
        assert before["conversations"][0].pop("steps") == [{"calls": [CALL], "results": ["rain"]}]
        assert after["conversations"] == before["conversations"]
        call = json.loads(step["calls"][0])
        if name == "openai":
            assert (call["id"], call["type"]) == ("call_0", "function")
            call = {**call["function"], "arguments": json.loads(call["function"]["arguments"])}
        assert (call, step["results"]) == (json.loads(CALL), ["rain"])


def test_what_a_format_cannot_carry_is_refused_or_dropped_and_counted(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(LossyError) as raised:
        export_set("llava", mixed, tmp_path / "out")
    assert {code: loss.rows for code, loss in raised.value.lost.items()} == {"preference-pair": 1, "tool-turn": 1}
    result = export_set("llava", mixed, tmp_path / "out", ExportRequest(lossy=True))
    assert {code: loss.rows for code, loss in result.lost.items()} == {"preference-pair": 1, "tool-turn": 1}
    assert [len(row["conversations"]) for row in json.loads((tmp_path / "out/train.json").read_text())] == [2, 2, 2]
    with pytest.raises(UserError, match="has no rejected answer and other rows have one"):
        export_set("swift", mixed, tmp_path / "pairs")
    assert not (tmp_path / "pairs").exists()


def test_parallel_calls_keep_their_order_and_ids_that_do_not_fit_are_a_reject(tmp_path: Path) -> None:
    calls = [{"id": i, "type": "function", "function": {"name": "f", "arguments": "{}"}} for i in ("x", "y")]
    results = [{"role": "tool", "tool_call_id": i, "content": i.upper()} for i in ("x", "y")]
    rows = [
        {
            "messages": [
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": None, "tool_calls": calls},
                *order,
                {"role": "assistant", "content": "Done."},
            ]
        }
        for order in (results, results[::-1])
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    import_rows("openai", tmp_path / "rows.jsonl", tmp_path / "set", workers=0)
    [row] = rows_of(tmp_path / "set")
    [step] = row["conversations"][0]["steps"]
    assert ([json.loads(call)["id"] for call in step["calls"]], step["results"]) == (["x", "y"], ["X", "Y"])
    [(code, message)] = rejects_of(tmp_path / "set")
    assert (code, "messages[2].tool_call_id" in message) == ("wrong-type", True)
    export_set("openai", tmp_path / "set", tmp_path / "out")
    assert json.loads((tmp_path / "out/train.jsonl").read_text())["messages"] == rows[0]["messages"]
    with pytest.raises(LossyError):
        export_set("sharegpt", tmp_path / "set", tmp_path / "sharegpt")


@pytest.mark.parametrize(
    ("roles", "text"),
    [
        (["user", "tool_call", "assistant"], "a call of tools has no result"),
        (["user", "tool_response", "assistant"], "does not follow a call"),
        (["tool_call", "tool_response", "assistant"], "does not follow a user message"),
        (["user", "tool_call", "tool_response", "user", "assistant"], "a call of tools has no answer"),
        (["user", "assistant", "user", "tool_call", "tool_response"], "the last message is not an answer"),
    ],
)
def test_calls_without_their_place_are_faults(roles: list[str], text: str) -> None:
    row = {"messages": [{"role": role, "content": "a"} for role in roles]}
    chat = all_formats()["swift"]().read(row).chat
    assert chat is not None
    assert text in next(fault.message for fault in check_turns(chat))


@pytest.mark.parametrize(
    ("between", "lost"),
    [("ct", ()), ("ctct", ()), ("cctt", ("tool-turn",)), ("ctt", ("tool-turn",)), ("cct", ("tool-turn",))],
)
def test_llama_factory_takes_one_result_per_call(between: str, lost: tuple[str, ...]) -> None:
    names = {"c": ("tool_call", CALL), "t": ("tool_response", "rain")}
    messages = [("user", "Rain?"), *(names[letter] for letter in between), ("assistant", "Yes.")]
    row = {"messages": [{"role": role, "content": text} for role, text in messages]}
    chat = all_formats()["swift"]().read(row).chat
    assert chat is not None
    assert check_turns(chat) == []
    assert all_formats()["sharegpt"]().write(chat).lost == lost
    assert all_formats()["swift"]().write(chat).lost == ()


def test_plain_rows_cannot_hold_them(tmp_path: Path, cli: Cli) -> None:
    write_rows(tmp_path / "rows.jsonl", [tool_row(), {"messages": pair_row()["messages"][1:] * 0 or [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}])  # fmt: skip
    code, said, _ = cli(
        "import", "swift", tmp_path / "rows.jsonl", "--out_dir", tmp_path / "o", "--plain", "--workers", 0
    )
    assert (code, "1 rejected (1 tool-turn" in said) == (1, True)
    assert manifest_of(tmp_path / "o")["format"] == 1


@pytest.mark.parametrize(("row", "text"), [(pair_row(), "is a preference pair"), (tool_row(), "has tools")])
def test_training_refuses_such_a_row_before_a_model_is_loaded(
    tmp_path: Path, cli: Cli, row: dict[str, Any], text: str
) -> None:
    pytest.importorskip("torch")
    shutil.copytree(SAMPLES / "ms_swift/images", tmp_path / "s/images")
    write_rows(tmp_path / "s/rows.jsonl", [row])
    import_rows("swift", tmp_path / "s", tmp_path / "set", workers=0)
    code, _, errors = cli(
        "run", "--data_dir", tmp_path / "set", "--output_dir", tmp_path / "run", "--model_name_or_path", "tiny",
        "--device", "cpu", main=phi3v_train_main,
    )  # fmt: skip
    assert code == 2
    assert f"the row {text}, which" in errors
    assert len(errors.splitlines()[-1]) <= 320


def test_a_draft_of_a_converter_may_have_them(tmp_path: Path) -> None:
    @phi3v_data.converter("mine")
    def mine(source: phi3v_data.Source) -> Any:
        yield phi3v_data.Draft(user="a", assistant="b", rejected="c")

    (tmp_path / "s").mkdir()
    phi3v_data.convert(mine, tmp_path / "s", tmp_path / "o", workers=0)
    [row] = rows_of(tmp_path / "o")
    assert (row["rejected"], manifest_of(tmp_path / "o")["format"]) == ("c", 2)


def test_preview_shows_them(mixed: Path, cli: Cli) -> None:
    assert "rejected A dog." in cli("preview", mixed, "--row", 0)[1]
    said = cli("preview", mixed, "--row", 1)[1]
    assert f"call     {CALL}" in said
    assert "result   rain" in said


def test_the_page_of_a_set_has_them(mixed: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("preview", mixed, "--html", tmp_path / "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert '"rejected":"A dog."' in page.replace('": ', '":')
    assert '["result","rain"]' in page.replace(", ", ",")


def test_a_sample_becomes_a_conversation_and_a_row_again() -> None:
    sample = Sample(
        id="a",
        source="s",
        conversations=(Turn(user="q", assistant="a", steps=(ToolStep(calls=("1", "2"), results=("", "r")),)),),
        rejected="no",
        tools="[]",
    )
    assert Sample.from_json(sample.to_json()) == sample
    chat = to_chat(sample, str)
    assert [message.role for message in chat.messages] == [
        "user",
        "tool_call",
        "tool_call",
        "tool",
        "tool",
        "assistant",
    ]
    assert (chat.tools, chat.rejected is not None and chat.rejected.text) == ("[]", "no")


@pytest.mark.parametrize("call", ['{"name": 3, "arguments": {}}', '{"arguments": {}}', '["f"]', "f()"])
def test_other_text_is_not_a_call_of_openai(call: str) -> None:
    assert openai_call(call, 0) is None
    assert openai_call('{"name": "f", "arguments": {"x": 1}}', 3) == {
        "id": "call_3",
        "type": "function",
        "function": {"name": "f", "arguments": '{"x": 1}'},
    }
