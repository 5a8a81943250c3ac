"""Repeated rows of a file, found by a few words of each; counts over the blocks of a file."""

import gzip
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from phi3v_data.formats.rows import RowFile
from phi3v_data.importing import import_rows
from phi3v_data.lint import lint_file, templates
from phi3v_data.lint.seen import SeenHashes
from phi3v_data.validate import validate
from phi3v_data.validate.hashes import PADDING, sample_spans

WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "dogs", "barked"]


def row(number: int, answer: str, **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": answer}]
    return {"id": f"r{number:05d}", "conversations": turns, **more}


def changed(text: str, place: int) -> str:
    """A text of the same length with another character at a place."""
    return text[:place] + "X" + text[place + 1 :]


def write(folder: Path, layout: str, rows: list[dict[str, Any]]) -> Path:
    lines = "".join(f"{json.dumps(each)}\n" for each in rows)
    if layout == "array":
        (path := folder / "rows.json").write_text(json.dumps(rows, indent=1))
    elif layout == "gzip":
        (path := folder / "rows.jsonl").write_bytes(gzip.compress(lines.encode()))
    else:
        (path := folder / "rows.jsonl").write_text(lines)
    return path


def duplicates(path: Path) -> list[str]:
    """Messages about repeated rows of a file without other faults."""
    found = lint_file(path, format="sharegpt").problems
    assert {item.code for item in found} <= {"duplicate-sample"}
    return [item.message for item in found]


@pytest.mark.parametrize("layout", ["lines", "array", "gzip"])
def test_rows_that_agree_in_a_few_words_only_are_not_the_same_sample(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RowFile.blocks, "__defaults__", (8000,))
    random = Random(5)
    rows = [row(number, " ".join(random.choices(WORDS, k=30))) for number in range(1500)]
    usual = rows[10]["conversations"][1]["value"]
    for place in range(0, len(usual), 3):  # one in each block or so
        rows[40 + 10 * place] = row(40 + 10 * place, changed(usual, place))
    rows.append(row(1500, usual))  # in a block of few rows, which are checked one by one
    line = 10 * 13 + 2 if layout == "array" else 11  # an indented row has 13 lines
    assert duplicates(write(tmp_path, layout, rows)) == [
        f"the row has the same messages and images as that of line {line}"
    ]


def test_a_file_of_rows_that_are_much_alike_has_only_its_true_duplicates(tmp_path: Path) -> None:
    text = " ".join(Random(6).choices(WORDS, k=60))
    rows = [row(place, changed(text, place)) for place in range(len(text))]
    rows.append(row(len(text), changed(text, 7)))
    said = "the row has the same messages and images as that of line 8"
    assert duplicates(write(tmp_path, "lines", rows)) == [said]


def test_rows_before_and_behind_many_that_are_alike_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RowFile.blocks, "__defaults__", (8000,))
    random = Random(7)
    rows = [row(number, " ".join(random.choices(WORDS, k=30))) for number in range(300)]
    usual = rows[3]["conversations"][1]["value"]
    rows += [row(number, changed(usual, number % len(usual))) for number in range(300, 400)]
    rows.append(row(400, rows[200]["conversations"][1]["value"]))
    said = "the row has the same messages and images as that of line 201"
    assert duplicates(write(tmp_path, "lines", rows)) == [said]


def test_rows_of_a_template_are_counted_over_all_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowFile.blocks, "__defaults__", (8000,))
    rows = [row(number, "It is." + f" {number}" * 60, score=1) for number in range(400)]
    rows[:50] = [row(number, f"{number}.", score="high") for number in range(50)]  # in one block
    (found,) = lint_file(write(tmp_path, "lines", rows), format="sharegpt").problems
    assert (found.code, found.line, found.field) == ("mixed-types", 1, "score")
    assert "a text here and a number elsewhere" in found.message


@pytest.mark.parametrize("separators", [(",", ":"), (" , ", ": ")], ids=["minified", "spaced"])
def test_rows_with_any_spaces_are_checked_by_template(
    separators: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row(n, f'It is {n}.'), separators=separators)}\n" for n in range(300)))
    calls: list[int] = []
    check = templates.RowCheck.check
    monkeypatch.setattr(templates.RowCheck, "check", lambda *args, **more: calls.append(1) or check(*args, **more))
    lint_file(path, format="sharegpt")
    assert len(calls) < 5


def test_rows_are_compared_by_their_bytes_and_after_an_import_by_what_they_say(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Où?"}, {"from": "gpt", "value": "Ici."}]
    value = {"id": "r0", "conversations": turns, "images": []}
    lines = [
        json.dumps(value),
        json.dumps({**value, "id": "r1"}),  # as line 1 behind the id
        json.dumps({**value, "id": "r2"}, ensure_ascii=False),
        json.dumps({**value, "id": "r3"}, separators=(",", ":")),
        json.dumps({"id": "r4", "images": [], "conversations": turns}),
        json.dumps({"conversations": turns, "images": [], "id": "r5"}),
        json.dumps({**value, "id": "r6", "score": 1}),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    assert [(item.line, item.message) for item in lint_file(path, format="sharegpt").problems] == [
        (2, "the row has the same messages and images as that of line 1")
    ]
    import_rows("sharegpt", path, tmp_path / "out", workers=0)
    report = validate(tmp_path / "out", use_receipt=False)
    assert [(item.code, item.line) for item in report.problems] == [("duplicate-sample", line) for line in range(2, 8)]


def test_a_hash_is_new_once() -> None:
    random = np.random.default_rng(0)
    seen, known = SeenHashes(), set()
    for _ in range(60):
        hashes = random.integers(0, 40, 30) << random.choice([0, 15, 40])  # many with the same low bits, 0 among them
        wanted = []
        for value in hashes.tolist():
            wanted.append(value not in known)
            known.add(value)
        assert seen.add(hashes).tolist() == wanted


def test_the_hash_of_a_range_depends_on_its_own_bytes_only() -> None:
    text = bytes(Random(1).randrange(256) for _ in range(80))
    for length in range(1, 81):
        hashes = {
            int(sample_spans(before + text[:length] + behind + PADDING, np.array([len(before)]), np.array([length]))[0])
            for before, behind in ((b"", b""), (b"a", b"b" * 9), (b"cd", b"e" * 90))
        }
        assert len(hashes) == 1, length
