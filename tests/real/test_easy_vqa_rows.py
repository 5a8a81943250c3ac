"""The converter of easy-vqa: which questions a conversation has, and which images are held out."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import phi3v_data
from phi3v_data.validate import validate

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "real"))

from easy_vqa_rows import EasyVqa, conversations

TWELVE = [(f"Is it {number}?", "yes" if number % 3 else "no") for number in range(12)]


def test_half_of_the_conversations_are_short_and_none_asks_twice() -> None:
    found = list(conversations(7, TWELVE, Counter(TWELVE)))
    assert [len(turns) for turns in found] == [10, 10, 2, 1] * 5
    assert all(len(set(turns)) == len(turns) and set(turns) <= set(TWELVE) for turns in found)
    assert [len(turns) for turns in conversations(7, TWELVE[:2], Counter(TWELVE))] == [2, 2, 2, 1] * 5
    assert found == list(conversations(7, TWELVE, Counter(TWELVE)))
    assert found != list(conversations(8, TWELVE, Counter(TWELVE)))


def test_a_question_comes_first_the_more_often_the_rarer_its_answer_is() -> None:
    """With 1, 3 and 12 rows the rates are 12, 4 and 1 of 17."""
    rare, usual, common = TWELVE[:3]
    counts = Counter({rare: 1, usual: 3, common: 12})
    first = Counter(turns[0] for number in range(1000) for turns in conversations(number, TWELVE[:3], counts))
    for question, share in ((rare, 12 / 17), (usual, 4 / 17), (common, 1 / 17)):
        assert first[question] / 20_000 == pytest.approx(share, abs=0.015)


def write_source(root: Path) -> Path:
    """Two training images, one that can be held out, and one of the test split, of one colour each."""
    questions = [("what colour is it?", "red"), ("is it red?", "yes"), ("is it blue?", "no")]
    for split, numbers in (("train", (3600, 1, 0)), ("test", (5,))):
        (root / split / "images").mkdir(parents=True)
        rows = [[*question, number] for question in questions for number in numbers]
        (root / split / "questions.json").write_text(json.dumps(rows))
        for number in numbers:
            Image.new("RGB", (8, 8), (number % 256, 0, 0)).save(root / split / "images" / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("options", "train", "test"),
    [
        ({}, [("train/0", 20), ("train/1", 20), ("train/3600", 20)], [("test/5", 3)]),
        ({"held_out": True}, [("train/0", 20), ("train/1", 20)], [("train/3600", 3)]),
        ({"limit": 1}, [("train/0", 20)], [("test/5", 3)]),
    ],
)
def test_a_test_sample_is_one_question(
    tmp_path: Path, options: dict[str, Any], train: list[tuple[str, int]], test: list[tuple[str, int]]
) -> None:
    phi3v_data.convert(EasyVqa, write_source(tmp_path / "source"), tmp_path / "out", options=options)
    for split, groups in (("train", train), ("test", test)):
        lines = (tmp_path / "out" / f"easy_vqa_{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert list(Counter(row["group"] for row in rows).items()) == groups
        if split == "test":
            assert [[turn["assistant"] for turn in row["conversations"]] for row in rows] == [["red"], ["yes"], ["no"]]
            assert [turn["user"][:3] for row in rows for turn in row["conversations"]] == ["wha", "is ", "is "]
            assert all(len(row["conversations"][0]["images"]) == 1 for row in rows)
    assert validate(tmp_path / "out").ok
