"""Rows that are checked a block at a time have the findings that they have one by one."""

import base64
import io
import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from phi3v_data.formats.chat import Fault
from phi3v_data.formats.consumers.llama_factory import LlamaFactory
from phi3v_data.formats.consumers.registry import all_consumers
from phi3v_data.formats.rows import RowFile, open_rows
from phi3v_data.lint import lint_file, templates
from phi3v_data.media import integrity
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


ODD_IDS = [0, -3, 10**17, 10**18, 10**25, 1.5, True, "7", "", None]


def rows(random: Random, format_: str) -> list[dict[str, Any]]:
    """Many rows of a few shapes, the texts of some of them odd; ids are texts, or numbers, or there are few."""
    result = []
    kind = random.randrange(3)
    for number in range(80):
        row: dict[str, Any] = {"id": f"r{number}" if kind else number * 7} if kind != 2 or number % 3 else {}
        if random.random() < 0.1:
            row["id"] = random.choice(ODD_IDS)
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


def numbered(row_id: str, number: int, question: str = "What is it?") -> str:
    """A line with an id as it is written."""
    images = ["no.png"] if "<image>" in question else []
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": f"It is {number}."}]
    rest = json.dumps({"conversations": turns, "images": images}, ensure_ascii=False)
    return f'{{"id": {row_id}, {rest[1:]}\n'


@pytest.mark.parametrize("is_last", [False, True])
def test_rows_with_numbers_as_ids_are_not_checked_one_by_one(
    is_last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [numbered(str(number * 97), number) for number in range(300)]
    if is_last:
        lines = [json.dumps({**(row := json.loads(line)), "id": row.pop("id")}) + "\n" for line in lines]
    lines[200] = lines[200].replace(str(200 * 97), str(150 * 97))
    path.write_text("".join(lines))
    calls: list[int] = []
    check = templates.RowCheck.check
    monkeypatch.setattr(templates.RowCheck, "check", lambda *args, **more: calls.append(1) or check(*args, **more))
    found = [(item.code, item.line, item.message) for item in lint_file(path, format="sharegpt").problems]
    assert found == [("duplicate-id", 201, "the id is also that of line 151")]
    assert len(calls) < 5


@pytest.mark.parametrize("row_id", ["012", "00", "1 2", "1a", "", "+1", "1.", "0x1", "9" * 30 + "a"])
def test_an_id_that_json_has_not_is_seen_among_numbers(row_id: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    ids = [str(number) for number in range(40)]
    ids[20] = row_id
    path.write_text("".join(numbered(each, number) for number, each in enumerate(ids)))
    assert [(item.code, item.line) for item in lint_file(path, format="sharegpt").problems] == [("json-syntax", 21)]


def test_a_number_and_a_text_are_one_id_and_a_finding_about_an_image_names_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [numbered(str(number), number, "<image>What?") for number in range(40)]
    path.write_text("".join([*lines, numbered('"7"', 40)]))
    found = [(item.code, item.line, item.id) for item in lint_file(path, format="sharegpt").problems]
    assert ("duplicate-id", 41, None) in found
    assert [each for each in found if each[0] == "image-missing"] == [
        ("image-missing", number + 1, str(number)) for number in range(40)
    ]


@pytest.mark.parametrize("text", [b"\xc3a\xa9", b"\xa9", b"\xc3", b"\xe4\xb8", b"\xed\xa0\xbd", b"\xc0\xaf"])
@pytest.mark.parametrize("filler", ["a", "\u4e2d"])
def test_bytes_that_are_not_utf8_are_seen_in_a_block(text: bytes, filler: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [numbered(str(number), number, filler * 40 + "\u00e9?").encode() for number in range(40)]
    lines[20] = lines[20].replace(b"?", text + b"?", 1)
    path.write_bytes(b"".join(lines))
    assert [(item.code, item.line) for item in lint_file(path, format="sharegpt").problems] == [("invalid-utf8", 21)]


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
    monkeypatch.setattr(RowFile.blocks, "__defaults__", (4000,))
    looked: list[str] = []
    check = integrity.check_image
    monkeypatch.setattr(integrity, "check_image", lambda path, **more: looked.append(path) or check(path, **more))
    for number in range(5):
        Image.new("RGB", (8, 6 + number)).save(tmp_path / f"{number}.png")
    lines = []
    for number in range(300):
        turns = [{"from": "human", "value": f"<image>What is {number}?"}, {"from": "gpt", "value": "It."}]
        lines.append(json.dumps({"conversations": turns, "images": [f"{number // 60}.png"]}))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    assert sum(1 for _ in open_rows(path).blocks()) > 5
    report = lint_file(path, format="sharegpt")
    assert (report.summary.images, report.ok, report.problems) == (5, True, ())
    assert [Path(each).name for each in looked] == ["0.png", "1.png", "2.png", "3.png", "4.png"]


def data_url(kind: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def row_with(format_: str, number: int, image: Any) -> dict[str, Any]:
    """A good row of a format with one image; without one if that is None."""
    question, answer = f"What is {number}?", f"It is {number}."
    if format_ in ("llava", "qwen", "sharegpt", "swift"):
        tagged = question if image is None else f"<image>{question}"
        columns = {} if image is None else {"image": image} if format_ in ("llava", "qwen") else {"images": [image]}
        if format_ == "swift":
            turns = [{"role": "user", "content": tagged}, {"role": "assistant", "content": answer}]
            return {"messages": turns, **columns}
        return {"conversations": [{"from": "human", "value": tagged}, {"from": "gpt", "value": answer}], **columns}
    block = {
        "openai": {"type": "image_url", "image_url": {"url": image}},
        "axolotl": {"type": "image", "path": image},
        "trl": {"type": "image"},
    }[format_]
    content = [*([] if image is None else [block]), text(question)]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": [text(answer)]}]
    return {"messages": turns, **({} if format_ != "trl" else {"images": [] if image is None else [image]})}


def as_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("consumer", all_consumers())
def test_each_consumer_finds_in_templates_what_it_finds_in_single_rows(
    consumer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "\u00fc"):
        Image.new("RGB", (8, 6)).save(tmp_path / f"{name}.png")
    random = Random(consumer)
    format_ = all_consumers()[consumer].formats[0]
    usual = data_url("PNG") if format_ == "openai" else "a.png"
    odd = ["a.png", "\u00fc.png", "none.png", data_url("PNG"), data_url("GIF"), "https://a.example/b.png", None]
    odd += [] if format_ in ("openai", "axolotl") else [{"path": "a.png"}, {"path": "none.png", "bytes": None}]
    path = tmp_path / "rows.jsonl"
    lines = []
    for number in range(240):
        row = row_with(format_, number % 210, usual if random.random() < 0.5 else random.choice(odd))
        row_id = random.choice([f"\u00fc{number % 90}", f"r{number % 90}", number % 3])
        row = {**({"id": row_id} if random.random() < 0.8 else {}), **row}
        row |= {random.choice(["image", "images", "more"]): random.choice(["", "a.png"])} if number % 12 == 0 else {}
        lines.append(json.dumps(row, ensure_ascii=random.random() < 0.5) + "\n")
    path.write_text("".join(lines))
    together = lint_file(path, format=format_, consumer=consumer)
    monkeypatch.setattr(templates, "MIN_ROWS", 10**6)
    single = lint_file(path, format=format_, consumer=consumer)
    assert findings(together) == findings(single)
    assert together.summary == single.summary


@pytest.mark.parametrize("consumer", ["openai", "azure", "together", "fireworks"])
@pytest.mark.parametrize("format_", ["openai", "axolotl"])
def test_services_look_at_the_images_of_each_row(format_: str, consumer: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    images = [data_url("PNG")] * 100
    images[9::10] = ["a.png"] * 10
    images[55] = images[66] = data_url("GIF")
    path = tmp_path / "rows.jsonl"
    path.write_text(as_lines([row_with(format_, number, image) for number, image in enumerate(images)]))
    problems = lint_file(path, format=format_, consumer=consumer).problems
    gifs = {} if consumer == "openai" else {"over-limit": 2}
    assert Counter(item.code for item in problems) == {"image-source": 10, **gifs}
    assert {item.line for item in problems if item.code == "over-limit"} == ({56, 67} if gifs else set())


def test_ids_and_images_are_compared_as_they_are_read(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "\u00fc.png")
    values = [{"id": f"\u00fc{n}", **row_with("sharegpt", n, "\u00fc.png")} for n in range(60)]
    values[50] = {"id": "\u00fc10", **row_with("sharegpt", 50, "\u00fc.png"), "more": 1}
    values[52]["id"] = "\u00fc12"
    lines = [json.dumps(row, ensure_ascii=number != 52) + "\n" for number, row in enumerate(values)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(lines))
    report = lint_file(path, format="sharegpt")
    assert [(item.code, item.line) for item in report.problems] == [("duplicate-id", 51), ("duplicate-id", 53)]
    assert report.summary.images == 1


def test_ids_that_are_numbers_are_compared(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(as_lines([{"id": 5, **row_with("sharegpt", number, None)} for number in range(60)]))
    assert lint_file(path, format="sharegpt").summary.problems == {"duplicate-id": 59}


def test_images_given_as_objects_are_checked_in_each_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(as_lines([row_with("sharegpt", number, {"path": "none.png"}) for number in range(60)]))
    report = lint_file(path, format="sharegpt")
    assert (report.summary.images, report.summary.problems) == (1, {"image-missing": 60})


@pytest.mark.parametrize(("usual", "odd"), [("", "a.png"), ("a.png", "")])
def test_an_empty_column_of_images_is_not_like_a_filled_one(usual: str, odd: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    values = [{**row_with("sharegpt", number, usual or None), "images": usual} for number in range(60)]
    values[40]["images"] = odd
    path = tmp_path / "rows.jsonl"
    path.write_text(as_lines(values))
    problems = lint_file(path, format="sharegpt").problems
    empty = [number for number, row in enumerate(values, 1) if not row["images"]]
    assert [item.line for item in problems if item.code == "image-count"] == [41]
    assert [item.line for item in problems if item.code == "wrong-type"] == empty  # LLaMA-Factory looks for an image


@pytest.mark.parametrize(("usual", "odd"), [("", "some"), ("some", "")])
def test_a_consumer_sees_each_row_in_which_another_column_is_empty(
    usual: str, odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fault("wrong-type", "more", "the column is not as in other rows")
    monkeypatch.setattr(LlamaFactory, "check", lambda self, view: [fault] * (bool(view.row["more"]) is bool(odd)))
    values = [{**row_with("sharegpt", number, None), "more": usual} for number in range(60)]
    values[40]["more"] = odd
    path = tmp_path / "rows.jsonl"
    path.write_text(as_lines(values))
    assert [item.line for item in lint_file(path, format="sharegpt").problems] == [41]


OWN = """
from dataclasses import replace
from phi3v_data.formats.chat import Fault
from phi3v_data.formats.sharegpt import ShareGPT

class Own(ShareGPT):
    name = "own"

    def read(self, row):
        reading = super().read(row)
        odd = "?" not in row["conversations"][0]["value"]
        faults = [Fault("wrong-type", "conversations[0].value", "a question has no '?'")] if odd else []
        return replace(reading, faults=[*reading.faults, *faults])
"""


def test_a_format_of_the_users_own_reads_every_row(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    values = [row_with("sharegpt", number, None) for number in range(60)]
    values[40]["conversations"][0]["value"] = "Tell me."
    path = tmp_path / "rows.jsonl"
    path.write_text(as_lines(values))
    problems = lint_file(path, format=f"{tmp_path / 'own.py'}:Own").problems
    assert [(item.code, item.line) for item in problems] == [("wrong-type", 41)]
