"""NaN, NaT and infinity in a row are absent values, not the words nan and inf; how numbers and dates are written."""

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from converter_sources import embedded, encoded, json_lines, put, rows, run, turn, write_parquet

NAN = float("nan")
INF = float("inf")
MAP = {
    "user": "{q}",
    "assistant": "{answer}",
    "answers": "answer",
    "meta": ["m"],
    "group": "g",
    "id": "i",
    "images": "p",
}
WHOLE = {"q": "Which?", "answer": 3.0, "m": 0.5, "g": 7.0, "i": 9.0, "p": None}


def write(kind: str, root: Path, cells: list[dict[str, Any]]) -> Path:
    if kind == "parquet":
        return write_parquet(root / "train.parquet", cells)
    if kind == "json":
        return put(root / "train.json", json.dumps(cells))
    return put(root / "train.jsonl", json_lines(cells))


@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl"])
@pytest.mark.parametrize("absent", [NAN, INF, -INF, None])
def test_an_absent_answer_is_a_reject(tmp_path: Path, kind: str, absent: float | None) -> None:
    source = write(kind, tmp_path / "s", [WHOLE, {**WHOLE, "answer": absent}])
    result = run("table", source, tmp_path / "o", options={"map": {**MAP, "name": "t"}})
    assert result.manifest.rejects == {"empty-text": 1}
    [row] = rows(tmp_path / "o", "t_train.jsonl")
    assert turn(row) == ("Which?", "3")
    assert (row["answers"], row["group"], row["meta"]) == (["3"], "7", {"source_id": "9", "m": 0.5})


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_every_other_cell_may_be_absent(tmp_path: Path, kind: str) -> None:
    cells = {"q": NAN, "answer": "x", "also": NAN, "m": INF, "g": NAN, "i": NAN, "p": NAN, "s": NAN}
    first = {"q": 1.5, "answer": "x", "also": 2.0, "m": 0.5, "g": 1.0, "i": 1.0, "p": NAN, "s": NAN}
    mapping = {**MAP, "name": "t", "answers": ["answer", "also"], "split": "s", "user": "Say {q}", "system": "{q}"}
    result = run("table", write(kind, tmp_path / "s", [first, cells]), tmp_path / "o", options={"map": mapping})
    assert result.manifest.notes == {"image-cell-empty": 2, "question-cell-empty": 1}
    one, two = rows(tmp_path / "o", "t_train.jsonl")
    assert (turn(one), one["answers"]) == (("Say 1.5", "x"), ["x", "2"])
    assert two == {
        "id": "train-0000000001",
        "source": "t",
        "conversations": [{"images": [], "user": "Say ", "assistant": "x"}],
        "answers": ["x"],
        "meta": {"source_id": "", "m": None},
    }


def test_dates_booleans_and_decimals_are_text(tmp_path: Path) -> None:
    cells = [
        {"q": "When?", "answer": datetime.date(2024, 2, 29), "m": datetime.datetime(2024, 1, 2, 3, 4, 5)},
        {"q": "When?", "answer": None, "m": None},
    ]
    mapping = {"user": "{q}", "assistant": "{answer}", "meta": "m"}
    source = write_parquet(tmp_path / "s" / "train.parquet", cells)
    result = run("table", source, tmp_path / "o", options={"map": mapping})
    assert result.manifest.rejects == {"empty-text": 1}
    [row] = rows(tmp_path / "o", "table_train.jsonl")
    assert (turn(row)[1], row["meta"]["m"]) == ("2024-02-29", "2024-01-02T03:04:05")
    cells = [{"q": True, "answer": Decimal("1.50")}, {"q": False, "answer": Decimal("2.00")}]
    mapping = {"user": "{q}", "assistant": "{answer}", "values": {"q": {"True": "Yes"}, "answer": {"2.00": "two"}}}
    run("table", write_parquet(tmp_path / "d" / "train.parquet", cells), tmp_path / "p", options={"map": mapping})
    assert [turn(row) for row in rows(tmp_path / "p", "table_train.jsonl")] == [("Yes", "1.50"), ("false", "two")]


def test_a_map_may_name_a_whole_float_either_way(tmp_path: Path) -> None:
    cells = [{"q": "?", "answer": value} for value in (1.0, 2.0, NAN, 1e300)]
    mapping = {"user": "{q}", "assistant": "{answer}", "values": {"answer": {"1": "one", "2.0": "two"}}}
    result = run("table", write("parquet", tmp_path / "s", cells), tmp_path / "o", options={"map": mapping})
    assert [turn(row)[1] for row in rows(tmp_path / "o", "table_train.jsonl")] == ["one", "two", "1e+300"]
    assert result.manifest.rejects == {"empty-text": 1}


def test_hateful_memes(tmp_path: Path) -> None:
    memes = [
        {"id": 1235.0, "img": NAN, "label": 1.0, "text": "a"},
        {"id": 1236.0, "img": NAN, "label": NAN, "text": "b"},
        {"id": 1237.0, "img": "img/01237.png", "label": 0, "text": NAN},
    ]
    put(tmp_path / "s" / "train.jsonl", json_lines(memes))
    for number in (1235, 1236, 1237):
        put(tmp_path / "s" / "img" / f"0{number}.png", encoded(number))
    result = run("hateful_memes", tmp_path / "s", tmp_path / "o", options={"prompt": "<{text}>"})
    made = rows(tmp_path / "o", "hateful_memes_train.jsonl")
    assert [turn(row) for row in made] == [("<a>", "Yes"), ("<>", "No")]
    assert result.manifest.rejects == {"empty-text": 1}


def test_nlvr2(tmp_path: Path) -> None:
    common = {"left_image": embedded(1), "right_image": embedded(2), "sentence": "s", "identifier": "train-1-0-0"}
    source = write_parquet(tmp_path / "s" / "train.parquet", [{**common, "label": 1.0}, {**common, "label": NAN}])
    result = run("nlvr2", source, tmp_path / "o")
    assert [turn(row)[1] for row in rows(tmp_path / "o", "nlvr2_train.jsonl")] == ["Yes"]
    assert result.manifest.rejects == {"empty-text": 1}


def test_docvqa(tmp_path: Path) -> None:
    pages = [
        {"questionId": 1.0, "question": "Q", "answers": [NAN, 7.0], "image": embedded(1)},
        {"questionId": 2.0, "question": "Q", "answers": [NAN], "image": embedded(2)},
    ]
    result = run("docvqa", write_parquet(tmp_path / "s" / "train.parquet", pages), tmp_path / "o")
    [row] = rows(tmp_path / "o", "docvqa_train.jsonl")
    assert (turn(row)[1], row["answers"], row["meta"]["source_id"]) == ("7", ["7"], "1")
    assert result.manifest.rejects == {"empty-text": 1}


def test_the_cauldron(tmp_path: Path) -> None:
    table = [{"images": [embedded(1)], "texts": [{"user": "Q", "assistant": value}]} for value in (4.0, NAN)]
    result = run("cauldron", write_parquet(tmp_path / "s" / "train.parquet", table), tmp_path / "o")
    [row] = rows(tmp_path / "o", "cauldron_train.jsonl")
    assert turn(row)[1] == "4"
    assert result.manifest.rejects == {"empty-text": 1}
