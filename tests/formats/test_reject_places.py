"""A reject of an import is as precise as a finding of the linter: file, line of the element, field of that file."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from phi3v_data.importing import import_rows
from phi3v_data.lint import lint_file


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str = "Yes.") -> dict[str, str]:
    return {"from": "gpt", "value": text}


def row(*messages: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"conversations": list(messages), **more}


NO_TEXT = "the message has neither text nor images"

CASES: list[tuple[dict[str, Any], str, str, str]] = [
    (row(human(""), gpt()), "empty-text", "conversations[0].value", NO_TEXT),
    (row(human("Hi"), gpt(), human(" \n"), gpt()), "empty-text", "conversations[2].value", NO_TEXT),
    (row(human("Hi"), gpt("Y\0")), "invalid-text", "conversations[1].value", "the text has a NUL at character 1"),
    (row(human("Hi\ud83d"), gpt()), "invalid-text", "conversations[0].value",
     "the text has a lone surrogate (\\ud83d) at character 2"),
    (row({"from": "system", "value": "\0"}, human("Hi"), gpt()), "invalid-text", "conversations[0].value",
     "the text has a NUL at character 0"),
    (row(human("Hi"), gpt(), id="a\0"), "invalid-text", "id", "the text has a NUL at character 1"),
    (row(human("Hi"), gpt(), group="\0"), "invalid-text", "group", "the text has a NUL at character 0"),
    (row(human("Hi"), gpt(), answers=["a", "b\0"]), "invalid-text", "answers[1]", "the text has a NUL at character 1"),
    (row(human("Hi"), gpt(), meta={"k": "\ud800"}), "invalid-text", "meta.k",
     "the text has a lone surrogate (\\ud800) at character 0"),
    (row(human("Hi"), gpt(), meta={"k": float("inf")}), "non-finite-number", "meta.k",
     "a number is infinite, or too large; use null or leave the key out"),
    (row(human("<image>Hi"), gpt(), images=["cut.png"]), "image-unreadable", "images[0]",
     "'cut.png' is damaged or cut short: the file ends before its last chunk"),
]  # fmt: skip


def rejects(out_dir: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (out_dir / "rejects.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("layout", ["array", "lines"])
def test_a_reject_names_file_line_and_field_as_the_linter_does(layout: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    rows = [row(human("Hi"), gpt()), *(case[0] for case in CASES)]
    path = tmp_path / ("a.json" if layout == "array" else "a.jsonl")
    lines = [1]
    if layout == "array":
        path.write_text(json.dumps(rows, indent=1))
        text = path.read_text().splitlines()
        lines = [number for number, line in enumerate(text, 1) if line == " {"]
    else:
        path.write_text("".join(json.dumps(each) + "\n" for each in rows))
        lines = list(range(1, len(rows) + 1))
    import_rows("sharegpt", path, tmp_path / "out")
    found = rejects(tmp_path / "out")
    assert [(each["reason"], each["message"]) for each in found] == [
        (code, f"{path.name}, line {line}, {field}: {words}")
        for line, (_, code, field, words) in zip(lines[1:], CASES, strict=True)
    ]
    report = lint_file(path, format="sharegpt")
    errors = sorted(
        (each.line, each.code, each.field, each.message) for each in report.problems if each.severity == "error"
    )
    assert (
        errors
        == sorted(  # which have their advice apart
            (line, code, field, words.partition("; ")[0])
            for line, (_, code, field, words) in zip(lines[1:], CASES, strict=True)
        )
    )


def test_a_reject_of_a_row_that_is_not_json_has_the_linters_advice(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row(human("Hi"), gpt())) + "\n" + repr(row(human("Hi"), gpt())) + "\n")
    import_rows("sharegpt", path, tmp_path / "out")
    [found] = rejects(tmp_path / "out")
    assert found["reason"] == "json-syntax"
    assert found["message"].startswith("a.jsonl, line 2: not JSON at character 2: ")
    assert found["message"].endswith(
        "; this is Python: JSON has double quotes, null, true and false; write rows with a JSON library"
    )


def test_an_image_that_is_too_narrow_and_answers_without_weight_are_named_too(tmp_path: Path) -> None:
    Image.new("RGB", (30000, 1)).save(tmp_path / "thin.png")
    good = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]}
    narrow = {"messages": [{"role": "user", "content": "<image>Hi"}, good["messages"][1]], "images": ["thin.png"]}
    untrained = {"messages": [good["messages"][0], {"role": "assistant", "content": "Yes.", "loss": False}]}
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (good, narrow, untrained)))
    import_rows("swift", path, tmp_path / "out")
    first, second = rejects(tmp_path / "out")
    assert first["reason"] == "image-aspect"
    assert first["message"].startswith("a.jsonl, line 2, images[0]: 'thin.png': an image of 30000 x 1 pixels")
    assert (second["reason"], second["message"]) == (
        "nothing-trained",
        "a.jsonl, line 3, messages: all answers have weight 0, so that no answer of the row is trained",
    )


def test_a_blank_message_may_be_joined_to_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row(human(" "), human("Hi"), gpt())) + "\n")
    result = import_rows("sharegpt", path, tmp_path / "out", options={"merge_turns": True})
    assert (result.samples, result.rejects) == (1, 0)
