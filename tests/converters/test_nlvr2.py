"""NLVR2: pairs, groups for consistency, labels that are strings, images that are not what they are called."""

from pathlib import Path
from typing import Any

import pytest
from converter_sources import (
    NLVR2,
    cauldron,
    embedded,
    encoded,
    findings,
    images,
    json_lines,
    nlvr2_official,
    pair_of,
    put,
    rows,
    run,
    statement,
    turn,
    write_parquet,
)
from hypothesis import given
from hypothesis import strategies as st

import phi3v_data
from phi3v_data.converters.nlvr2 import Identifier
from phi3v_data.testing import check_converter


def test_official_folder(tmp_path: Path) -> None:
    result = run("nlvr2", nlvr2_official(tmp_path / "s"), tmp_path / "o")
    assert {name: split.rows for name, split in result.manifest.splits.items()} == {"train": 4, "dev": 3, "test1": 1}
    assert result.manifest.metrics == ("accuracy", "consistency")
    assert result.rejects == 0
    first, second, third, _ = rows(tmp_path / "o", "nlvr2_train.jsonl")
    prompt = 'For the images displayed, is the sentence "There is "one" in 0." factually correct?\nAnswer yes or no.'
    assert turn(first) == (prompt, "Yes")
    assert turn(second)[1] == "No"
    assert images(first) == ["train/train-7-0-img0.png", "train/train-7-0-img1.png"]
    assert first["meta"] == {"source_id": "train-7-0-0", "sentence_id": "train-7-0"}
    assert second["meta"]["sentence_id"] == "train-7-0", "the same sentence on another pair"
    assert third["meta"]["sentence_id"] == "train-7-1"
    assert {row["group"] for row in (first, second, third)} == {"train-7"}


def test_a_jpeg_called_png_keeps_its_bytes_and_gets_its_ending(tmp_path: Path) -> None:
    source = nlvr2_official(tmp_path / "s")
    result = run("nlvr2", source, tmp_path / "o")
    assert result.manifest.notes == {"image-suffix-mended": 1}
    row = rows(tmp_path / "o", "nlvr2_dev.jsonl")[0]
    assert images(row) == ["dev/dev-5-0-img0.png", "dev/dev-5-0-img1.jpg"]
    assert (tmp_path / "o/images/dev/dev-5-0-img1.jpg").read_bytes() == (source / "dev/dev-5-0-img1.png").read_bytes()
    assert findings(tmp_path / "o") == {}


def test_all_images_in_one_folder(tmp_path: Path) -> None:
    run("nlvr2", nlvr2_official(tmp_path / "s"), tmp_path / "o")
    run("nlvr2", nlvr2_official(tmp_path / "flat", flat=True), tmp_path / "f")
    for name in ("nlvr2_train.jsonl", "nlvr2_dev.jsonl", "nlvr2_test1.jsonl"):
        assert (tmp_path / "o" / name).read_bytes() == (tmp_path / "f" / name).read_bytes()


def test_the_official_dev_counts(tmp_path: Path) -> None:
    """6,982 rows in 2,018 groups, as the official file has them; identifiers and images made up."""
    identifiers = official_like_dev()
    assert len(identifiers) == len(set(identifiers)) == 6982
    put(tmp_path / "s" / "dev.json", json_lines(statement(identifier) for identifier in identifiers))
    image = put(tmp_path / "s" / "pool" / "one", encoded(1))
    for pair in {pair_of(identifier) for identifier in identifiers}:
        for side in (0, 1):
            (tmp_path / "s" / "pool" / f"{pair}-img{side}.png").hardlink_to(image)
    result = run("nlvr2", tmp_path / "s", tmp_path / "o")
    made = rows(tmp_path / "o", "nlvr2_dev.jsonl")
    assert (result.samples, result.rejects) == (6982, 0)
    assert [row["meta"]["source_id"] for row in made] == identifiers
    assert len({row["meta"]["sentence_id"] for row in made}) == 2018


def official_like_dev() -> list[str]:
    """Sets of two sentences on up to four pairs each, some with fewer."""
    found = []
    left = 6982
    for number in range(2018):
        pairs = min(4, left - (2017 - number))
        found += [f"dev-{number // 2}-{pair}-{number % 2}" for pair in range(pairs)]
        left -= pairs
    return found


def test_what_is_missing_or_wrong_is_counted(tmp_path: Path) -> None:
    source = nlvr2_official(tmp_path / "s")
    with (source / "dev.json").open("a") as file:
        file.write(json_lines([statement("dev-77-0-0"), statement("nonsense"), statement("dev-5-0-3", "Perhaps")]))
        file.write("{broken\n")
    result = run("nlvr2", source, tmp_path / "o")
    assert result.manifest.rejects == {"image-missing": 1, "row-invalid": 3}
    assert all("There is" not in reject["message"] for reject in rows(tmp_path / "o", "rejects.jsonl"))


def test_splits_without_labels(tmp_path: Path) -> None:
    source = nlvr2_official(tmp_path / "s")
    put(source / "test1.json", json_lines([statement("test1-2-0-0", None)]))
    assert run("nlvr2", source, tmp_path / "o").manifest.rejects == {"empty-text": 1}
    labelled = run("nlvr2", source, tmp_path / "p", unlabelled=True).manifest.splits
    assert {name: split.labelled for name, split in labelled.items()} == {"train": True, "dev": True, "test1": False}


def test_balanced_subsets(tmp_path: Path) -> None:
    source = nlvr2_official(tmp_path / "s")
    put(source / "balanced" / "balanced_dev.json", json_lines(NLVR2["dev"][:2]))
    assert run("nlvr2", source, tmp_path / "o").manifest.splits["dev"].rows == 3
    result = run("nlvr2", source, tmp_path / "b", options={"subset": "balanced"})
    assert {name: split.rows for name, split in result.manifest.splits.items()} == {"dev": 2}
    for file in source.glob("*.json"):
        file.unlink()
    with pytest.raises(phi3v_data.NotFoundError, match=r"balanced_dev.json', which needs --subset"):
        run("nlvr2", source, tmp_path / "n")


@pytest.mark.parametrize(
    ("identifier", "sentence", "label", "left", "right"),
    [
        ("identifier", "sentence", "label", "left_image", "right_image"),
        ("question_id", "question", "answer", "image0", "image1"),
    ],
)
def test_tables(tmp_path: Path, identifier: str, sentence: str, label: str, left: str, right: str) -> None:
    table = [
        {
            identifier: row["identifier"],
            sentence: row["sentence"],
            label: row["label"],
            left: embedded(n),
            right: embedded(n + 50),
        }
        for n, row in enumerate(NLVR2["dev"])
    ]
    write_parquet(tmp_path / "s/data/dev-00000-of-00001.parquet", table)
    write_parquet(tmp_path / "s/data/balanced_dev-00000-of-00001.parquet", table[:1])
    result = run("nlvr2", tmp_path / "s", tmp_path / "o")
    assert {name: split.rows for name, split in result.manifest.splits.items()} == {"dev": 3}
    made = rows(tmp_path / "o", "nlvr2_dev.jsonl")
    run("nlvr2", nlvr2_official(tmp_path / "official"), tmp_path / "p")
    assert [(turn(row), row["meta"]) for row in made] == [
        (turn(row), row["meta"]) for row in rows(tmp_path / "p", "nlvr2_dev.jsonl")
    ]
    assert [(tmp_path / "o/images" / name).read_bytes() for name in images(made[1])] == [encoded(1), encoded(51)]
    balanced = run("nlvr2", tmp_path / "s", tmp_path / "b", options={"subset": "balanced"})
    assert list(balanced.manifest.splits) == ["balanced_dev"]


def test_images_as_one_column(tmp_path: Path) -> None:
    table: list[dict[str, Any]] = [
        {"identifier": "dev-1-0-0", "sentence": "x", "label": True, "images": [embedded(1), embedded(2)]},
        {"identifier": "dev-1-1-0", "sentence": "x", "label": False, "images": [embedded(1)]},
    ]
    write_parquet(tmp_path / "s/dev.parquet", table)
    result = run("nlvr2", tmp_path / "s", tmp_path / "o")
    assert (result.samples, result.manifest.rejects) == (1, {"image-missing": 1})


def test_the_cauldron(tmp_path: Path) -> None:
    result = run("nlvr2", cauldron(tmp_path / "s"), tmp_path / "o")
    assert (result.manifest.name, result.samples, result.manifest.metrics) == ("nlvr2", 9, ("accuracy",))


@given(st.from_regex(r"(train|dev|test1|test2)-[0-9]{1,5}-[0-3]-[01]", fullmatch=True))
def test_identifiers(text: str) -> None:
    split, number, pair, sentence = text.split("-")
    identifier = Identifier(text)
    assert identifier.pair_id == f"{split}-{number}-{pair}"
    assert identifier.sentence_id == f"{split}-{number}-{sentence}"
    assert identifier.set_id == f"{split}-{number}"


@given(st.text())
def test_an_invalid_identifier_is_a_reject(text: str) -> None:
    if text.count("-") != 3:
        with pytest.raises(phi3v_data.Reject):
            _ = Identifier(text).sentence_id


def test_check_converter(tmp_path: Path) -> None:
    check_converter("nlvr2", nlvr2_official(tmp_path / "s"))
