"""Rows that are checked a block at a time have the findings that they have one by one."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from phi3v_data.formats import rows as row_files
from phi3v_data.lint import lint_file, templates
from phi3v_data.schema import Report

PIECES = [
    *(
        "a",
        " ",
        "\n",
        '"',
        "\\",
        "é",
        "<image>",
        "<image>\n",
        "<video>",
        "[INST]",
        "</s>",
        "<|end|>",
        "\t",
        "\x00",
        "]",
    ),
    *("\u4e2d", "\u2003", "\u3000", "\uff5c", "<\uff5cend\u2581of\u2581sentence\uff5c>", "\u017f"),
    *("{", ",", "\u00a0", "\U0001f600", "assistant", "<", "\r", "\x01", '}"', "/"),
]


def odd_text(random: Random) -> str:
    """A text of pieces that need a closer look."""
    return "".join(random.choices(PIECES, k=random.randrange(5)))


def rows(random: Random, format_: str) -> list[dict[str, Any]]:
    """Many rows of a few shapes, the texts of some of them odd."""
    result = []
    for number in range(80):
        row: dict[str, Any] = {"id": f"r{number}"} if random.random() < 0.7 else {}
        images = number % 2
        odd = random.random() < 0.15
        user = odd_text(random) if odd else "<image>\n" * images + f"What is {number}?"
        answer = odd_text(random) if random.random() < 0.1 else f"It is {number}."
        if format_ in ("llava", "sharegpt", "qwen"):
            row["conversations"] = [{"from": "human", "value": user}, {"from": "gpt", "value": answer}]
        elif format_ == "swift":
            row["messages"] = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        else:
            blocks = [*[{"type": "image"}] * images, text(user.replace("<image>", ""))]
            row["messages"] = [{"role": "user", "content": blocks}, {"role": "assistant", "content": [text(answer)]}]
        row |= {"image": "a.png"} if images and format_ in ("llava", "qwen") else {}
        row |= {"images": ["a.png"] * images} if format_ not in ("llava", "qwen") else {}
        result.append(row)
        if odd:
            result.append(dict(row))
    return result


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def findings(report: Report) -> list[str]:
    return sorted(f"{item.line} {item.code} {item.id} {item.field} {item.message}" for item in report.problems)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("format_", ["llava", "qwen", "sharegpt", "swift", "trl"])
def test_templates_find_what_the_checks_of_single_rows_find(
    format_: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = Random(f"{format_} {seed}")
    values = rows(random, format_)
    path = tmp_path / "rows.json"
    ascii_only = seed % 2 == 0
    if seed < 2:
        path.write_text("".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in values))
    else:
        path.write_text(json.dumps(values, indent=[None, 1][seed % 2], ensure_ascii=ascii_only))
    together = lint_file(path, format=format_)
    monkeypatch.setattr(templates, "MIN_ROWS", 10**6)
    single = lint_file(path, format=format_)
    assert findings(together) == findings(single)
    assert together.summary == single.summary
    assert together.stats == single.stats


def test_rows_of_one_template_are_not_checked_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [
        {"id": f"r{n}", "conversations": [{"from": "human", "value": f'Is "{n}"\nodd?'}, {"from": "gpt", "value": "é"}]}
        for n in range(500)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines))
    calls = []
    check = templates.RowCheck.check
    monkeypatch.setattr(templates.RowCheck, "check", lambda *args, **more: calls.append(1) or check(*args, **more))
    report = lint_file(path, format="sharegpt")
    assert (report.summary.samples, report.summary.turns, report.ok) == (500, 500, True)
    assert len(calls) < 5


ODD = {
    "a raw tab": (lambda line: line.replace("What", "Wh\tat"), "json-syntax"),
    "a raw quote": (lambda line: line.replace("What", 'Wh"at'), "json-syntax"),
    "a marker with a bracket": (lambda line: line.replace("What", "[INST] What"), "control-token"),
    "a tag at the end": (lambda line: line.replace("?", "?<image>"), "image-count"),
    "an escape that JSON has not": (lambda line: line.replace("What", "Wh\\qat"), "json-syntax"),
    "a quote behind an escaped backslash": (lambda line: line.replace("What", 'Wh\\\\"at'), "json-syntax"),
    "an escape without its digits": (lambda line: line.replace("What", "Wh\\u12gat"), "json-syntax"),
    "half a character": (lambda line: line.replace("What", "Wh\\ud83dat"), "invalid-text"),
    "a NUL": (lambda line: line.replace("What", "Wh\\u0000at"), "invalid-text"),
    "the tag in the answer": (
        lambda line: line.replace("<image>", "").replace('"It is', '"<image>It is'),
        "image-in-answer",
    ),
    "a byte that is not UTF-8": (lambda line: line.replace("What", "Wh\udcffat"), "invalid-utf8"),
    "a blank answer": (lambda line: line.replace('"It is', '" \\n", "was": "It is'), "empty-text"),
    "a key twice": (lambda line: line.replace('"id"', '"images": [], "id"'), "duplicate-key"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_row_among_rows_of_one_template_is_seen(name: str, tmp_path: Path) -> None:
    change, code = ODD[name]
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    lines = []
    for number in range(40):
        turns = [{"from": "human", "value": f"<image>What is {number}?"}, {"from": "gpt", "value": f"It is {number}."}]
        lines.append(json.dumps({"id": f"r{number}", "conversations": turns, "images": ["a.png"]}))
    lines[20] = change(lines[20])
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines), errors="surrogateescape")
    found = {(item.code, item.line) for item in lint_file(path, format="sharegpt").problems}
    assert (code, 21) in found
    assert {line for _, line in found} == {21}


def test_images_are_checked_once_over_all_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "_BLOCK_BYTES", 4000)
    for number in range(5):
        Image.new("RGB", (8, 6 + number)).save(tmp_path / f"{number}.png")
    lines = []
    for number in range(300):
        turns = [{"from": "human", "value": f"<image>What is {number}?"}, {"from": "gpt", "value": "It."}]
        lines.append(json.dumps({"conversations": turns, "images": [f"{number // 60}.png"]}))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    report = lint_file(path, format="sharegpt")
    assert (report.summary.images, report.ok, report.problems) == (5, True, ())
