"""The Cauldron: configurations, conversations, single texts, the Phi-3.5-vision sample's hold-out without leaks."""

from pathlib import Path

import pytest
from converter_sources import (
    CAULDRON,
    cauldron,
    cauldron_row,
    encoded,
    findings,
    images,
    rows,
    run,
    stored,
    turn,
    write_parquet,
)

import phi3v_data
from phi3v_data.testing import check_converter


def test_a_row_is_one_conversation(tmp_path: Path) -> None:
    result = run("cauldron", cauldron(tmp_path / "s"), tmp_path / "o", options={"config": "nlvr2"})
    assert (result.samples, result.manifest.name) == (6, "cauldron_nlvr2")
    first, _, third, again, *_ = rows(tmp_path / "o", "cauldron_nlvr2_train.jsonl")
    assert [turn(third, n) for n in range(3)] == [(f"Question {n} of 5?", f"Answer {n}.") for n in range(3)]
    assert [len(each["images"]) for each in third["conversations"]] == [2, 0, 0]
    assert third["meta"] == {"source_id": "nlvr2/2", "origin": "SRC"}
    assert first["group"] == again["group"] != third["group"]
    assert len(stored(tmp_path / "o")) == 10
    assert (tmp_path / "o/images" / images(first)[0]).read_bytes() == encoded(1, "jpeg")
    assert findings(tmp_path / "o") == {}


@pytest.mark.parametrize(("texts", "samples"), [("all", 6), ("first", 6), ("each", 9)])
def test_texts(tmp_path: Path, texts: str, samples: int) -> None:
    source = cauldron(tmp_path / "s", ["docvqa"])
    result = run("cauldron", source, tmp_path / "o", options={"texts": texts})
    assert result.samples == samples
    assert result.manifest.metrics == ("anls",)
    made = rows(tmp_path / "o", "cauldron_docvqa_train.jsonl")
    assert sum(len(row["conversations"]) for row in made) == {"all": 9, "first": 6, "each": 9}[texts]
    assert len({row["meta"]["source_id"] for row in made}) == samples


def test_the_hold_out_is_found_by_first_texts_and_keeps_its_images(tmp_path: Path) -> None:
    source = cauldron(tmp_path / "s", ["nlvr2"])
    result = run("cauldron", source, tmp_path / "o", options={"holdout": 2})
    assert {name: split.rows for name, split in result.manifest.splits.items()} == {"train": 3, "val": 2}
    assert result.manifest.rejects == {"image-in-holdout": 1}, "row 3 has the images of row 0"
    held = rows(tmp_path / "o", "cauldron_nlvr2_val.jsonl")
    assert [turn(row) for row in held] == [("Question 0 of 1?", "Answer 0."), ("Question 0 of 3?", "Answer 0.")]
    assert all(len(row["conversations"]) == 1 for row in held)
    assert findings(tmp_path / "o") == {}


def test_own_splits_keep_equal_images_in_one_split(tmp_path: Path) -> None:
    table = [cauldron_row([n % 10], 1) for n in range(40)]
    write_parquet(tmp_path / "s" / "vqav2" / "train-00000-of-00001.parquet", table)
    run("cauldron", tmp_path / "s", tmp_path / "o", split="train=0.6,val=0.4")
    groups = [{row["group"] for row in rows(tmp_path / "o", f"cauldron_vqav2_{s}.jsonl")} for s in ("train", "val")]
    assert all(groups)
    assert not groups[0] & groups[1]


def test_grouping_by_row_does_not_look_at_images(tmp_path: Path) -> None:
    source = cauldron(tmp_path / "s", ["nlvr2"])
    result = run("cauldron", source, tmp_path / "o", options={"holdout": 2, "group_by": "row"})
    assert result.rejects == 0
    assert rows(tmp_path / "o", "cauldron_nlvr2_train.jsonl")[0]["group"] == "nlvr2/2"


def test_which_configuration(tmp_path: Path) -> None:
    source = cauldron(tmp_path / "s")
    with pytest.raises(phi3v_data.UserError, match="choose one with --config: docvqa, nlvr2"):
        run("cauldron", source, tmp_path / "o")
    with pytest.raises(phi3v_data.NotFoundError, match="no configuration 'x'; it has docvqa, nlvr2"):
        run("cauldron", source, tmp_path / "o", options={"config": "x"})
    alone = run("cauldron", source / "nlvr2", tmp_path / "o", options={"config": "nlvr2"})
    assert alone.manifest.name == "cauldron_nlvr2"


def test_rows_without_texts_or_images_are_rejects(tmp_path: Path) -> None:
    table = [*CAULDRON[:2], {"images": [{"bytes": None, "path": None}], "texts": CAULDRON[0]["texts"]}]
    table.append({"images": CAULDRON[0]["images"], "texts": []})
    write_parquet(tmp_path / "s" / "ai2d" / "train.parquet", table)
    result = run("cauldron", tmp_path / "s", tmp_path / "o")
    assert (result.samples, result.manifest.rejects) == (2, {"image-missing": 1, "no-turns": 1})


def test_save_to_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "texts": datasets.List({name: datasets.Value("string") for name in ("user", "assistant", "source")}),
        }
    )
    datasets.Dataset.from_list(CAULDRON, features=features).save_to_disk(str(tmp_path / "d"))
    result = run("cauldron", tmp_path / "d", tmp_path / "o", options={"config": "nlvr2"})
    run("cauldron", cauldron(tmp_path / "s", ["nlvr2"]), tmp_path / "p")
    assert result.samples == 6
    name = "cauldron_nlvr2_train.jsonl"
    assert (tmp_path / "o" / name).read_bytes() == (tmp_path / "p" / name).read_bytes()


def test_another_table_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "s" / "train.parquet", [{"images": [], "text": "x"}])
    with pytest.raises(phi3v_data.UserError, match=r"is not a configuration of the_cauldron: .* no column 'texts'"):
        run("cauldron", tmp_path / "s", tmp_path / "o")


def test_check_converter(tmp_path: Path) -> None:
    check_converter("cauldron", cauldron(tmp_path / "s", ["nlvr2"]), {"texts": "each", "holdout": 1})
