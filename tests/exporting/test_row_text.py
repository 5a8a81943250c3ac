"""Exports are spelled as Python's `json` spells them, whichever encoder writes a row."""

import json
from pathlib import Path
from typing import Any

import pytest

from phi3v_data.exporting import ExportRequest, export_set
from phi3v_data.json_text import spelled

OWN = """
from dataclasses import dataclass

from phi3v_data.formats.base import RowFormat
from phi3v_data.formats.chat import Written


@dataclass(frozen=True)
class Scored(RowFormat):
    name = "scored"
    title = "My tool"
    consumer = "mine"
    suffix = ".jsonl"

    def recognizes(self, row):
        return "score" in row

    def write(self, chat):
        return Written({"text": chat.messages[0].text, "score": float(chat.messages[1].text)})
"""


def write_set(directory: Path, turns: list[dict[str, Any]], **more: Any) -> Path:
    (directory / "images").mkdir(parents=True)
    row = {"id": "1", "source": "made", "conversations": turns, **more}
    (directory / "train.jsonl").write_text(json.dumps(row) + "\n")
    return directory


def exported(name: str, source: Path, out: Path) -> str:
    export_set(name, source, out, ExportRequest(lossy=True))
    [file] = out.glob("train.json*")
    return file.read_text(encoding="utf-8")


def test_texts_are_spelled_as_the_json_module_does(tmp_path: Path) -> None:
    text = 'a "b" \\ / \b\f\n\r\t\x01\x1f\x7f é 漢 \U0001f600 \u2028'
    turn = {"images": [], "user": text, "assistant": text}
    source = write_set(tmp_path / "set", [turn])
    assert exported("swift", source, tmp_path / "swift") == (
        '{"id": "1", "messages": [{"role": "user", "content": "a \\"b\\" \\\\ / \\b\\f\\n\\r\\t\\u0001\\u001f\x7f é 漢 '
        '\U0001f600 \u2028"}, {"role": "assistant", "content": "a \\"b\\" \\\\ / \\b\\f\\n\\r\\t\\u0001\\u001f\x7f é '
        '漢 \U0001f600 \u2028"}], "images": []}\n'
    )


def test_fractions_of_tools_are_spelled_as_the_json_module_does(tmp_path: Path) -> None:
    turn = {
        "images": [],
        "user": "Sum?",
        "assistant": "3.",
        "steps": [{"calls": ['{"name": "add", "arguments": {"a": 1E16, "b": 0.10}}'], "results": ["3"]}],
    }
    tools = '[{"type": "function", "function": {"name": "add", "most": 1E16}}]'
    text = exported("openai", write_set(tmp_path / "set", [turn], tools=tools), tmp_path / "out")
    assert '"most": 1e+16' in text
    assert "1e16" not in text


@pytest.mark.parametrize(("value", "written"), [("1e16", "1e+16"), ("0.10", "0.1")])
def test_fractions_of_a_format_of_the_users_own_are_too(tmp_path: Path, value: str, written: str) -> None:
    (tmp_path / "scored.py").write_text(OWN)
    source = write_set(tmp_path / "set", [{"images": [], "user": "Hi", "assistant": value}])
    text = exported(f"{tmp_path}/scored.py:Scored", source, tmp_path / "out")
    assert text == f'{{"text": "Hi", "score": {written}}}\n'


def test_a_value_that_cannot_be_encoded_has_no_text() -> None:
    assert spelled({"a": [1, None, "é"]}) == '{"a": [1, null, "é"]}'.encode()
    assert spelled("\ud800") == b""
    assert spelled({"a": object()}) == b""
