"""split, merge, clean and preview carry the weights of turns as they are, also in rows that are written again."""

import json
from pathlib import Path
from typing import Any

from set_builders import png, read_rows, row, write_set

from phi3v_data.dataset import Dataset
from phi3v_data.sets.clean import clean_set
from phi3v_data.sets.merge import merge_sets
from phi3v_data.sets.preview import describe_row
from phi3v_data.sets.split import split_set
from phi3v_data.sets.stats import set_stats
from phi3v_data.validate import validate

WEIGHTS: list[list[dict[str, int]]] = [[{"weight": 0}, {}], [{"weight": 1}, {"weight": 0}], [{}, {}]]


def weighted(n: int, image: str) -> dict[str, Any]:
    value = row(f"r{n}", image)
    first = value["conversations"][0]
    value["conversations"] = [{**first, "user": f"{first['user']} {k}", **WEIGHTS[n][k]} for k in range(2)]
    value["conversations"][1]["images"] = []
    return value


def weights_of(directory: Path) -> list[list[dict[str, int]]]:
    """The weight of every turn as written, in the order of the ids."""
    found = [value for values in read_rows(directory).values() for value in values]
    return [
        [{key: turn[key] for key in ("weight",) if key in turn} for turn in value["conversations"]]
        for value in sorted(found, key=lambda value: value["conversations"][0]["user"])
    ]


def test_sets_made_from_a_set_have_its_weights(tmp_path: Path) -> None:
    images = {f"{n}.png": png(n) for n in range(3)}
    rows = [weighted(n, f"{n}.PNG" if n == 1 else f"{n}.png") for n in range(3)]  # the fix rewrites a row of weight 0
    source = write_set(tmp_path / "in", {"s_train.jsonl": rows}, images)
    assert validate(source).summary.problems == {"image-name-mismatch": 1, "image-orphan": 1}

    clean_set(source, tmp_path / "clean", fix=True)
    assert weights_of(tmp_path / "clean") == WEIGHTS
    assert validate(tmp_path / "clean").summary.problems == {}

    split_set(tmp_path / "clean", tmp_path / "split", "train=0.5,val=0.5")
    assert weights_of(tmp_path / "split") == WEIGHTS

    other = [{**weighted(n, f"x{n}.png"), "source": "other"} for n in range(3)]
    other[0]["conversations"][0]["user"] = "Z"
    images = {f"x{n}.png": png(10 + n) for n in range(3)}
    write_set(tmp_path / "other", {"s_train.jsonl": other}, images)
    merge_sets([tmp_path / "clean", tmp_path / "other"], tmp_path / "merged")
    ids = {value["id"] for values in read_rows(tmp_path / "merged").values() for value in values}
    assert len(ids) == 6, "the second set's rows got new ids"
    assert sorted(map(json.dumps, weights_of(tmp_path / "merged"))) == sorted(map(json.dumps, WEIGHTS * 2))
    assert set_stats(tmp_path / "merged")["num_turns"] == 12


def test_preview_names_an_answer_of_weight_0(tmp_path: Path) -> None:
    directory = write_set(tmp_path / "in", {"s_train.jsonl": [weighted(0, "0.png")]}, {"0.png": png(0)})
    lines = list(describe_row(Dataset(directory)["train"], 0))
    assert lines.count("weight   0: the answer is context only, not trained") == 1
    assert lines.index("weight   0: the answer is context only, not trained") < lines.index("turn 2")
