"""Split naming: the rules, their inverse, and what does not fit together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi3v_data.splits import (
    KNOWN_SPLITS,
    SplitFile,
    canonical_split,
    file_name,
    find_splits,
    is_data_file,
    is_split_name,
    parse_file_name,
    split_sort_key,
)


@pytest.mark.parametrize(
    ("file", "name", "split", "index", "total"),
    [
        ("ucf101_train.jsonl", "ucf101", "train", None, None),
        ("train.jsonl", "", "train", None, None),
        ("dev_seen.jsonl", "", "dev_seen", None, None),
        ("memes_dev_seen.jsonl", "memes", "dev_seen", None, None),
        ("memes_seen.jsonl", "memes", "seen", None, None),
        ("a_b_test1.jsonl", "a_b", "test1", None, None),
        ("docs_holdout.jsonl", "docs", "holdout", None, None),
        ("docvqa_validation.jsonl", "docvqa", "validation", None, None),
        ("ucf101_train-00003-of-00008.jsonl", "ucf101", "train", 3, 8),
        ("train-00000-of-00001.jsonl", "", "train", 0, 1),
        ("a_train_val.jsonl", "a_train", "val", None, None),
    ],
)
def test_names_are_read_by_the_longest_known_ending(
    file: str, name: str, split: str, index: int | None, total: int | None
) -> None:
    assert parse_file_name(file) == SplitFile(file, name, split, index, total)
    assert file_name(name, split, index, total) == file


@pytest.mark.parametrize(
    "file",
    ["data.jsonl", "x_.jsonl", "_x.jsonl", "train.json", "a_train-00008-of-00008.jsonl", "a_b c.jsonl", ".jsonl"],
)
def test_names_without_a_split(file: str) -> None:
    assert parse_file_name(file) is None


@given(st.from_regex(r"[a-z0-9]{1,8}(_[a-z0-9]{1,8})?", fullmatch=True), st.sampled_from(KNOWN_SPLITS))
def test_file_name_is_the_inverse(name: str, split: str) -> None:
    parsed = parse_file_name(file_name(name, split))
    assert parsed is not None
    assert file_name(parsed.name, parsed.split) == file_name(name, split)
    assert parsed.split.endswith(split)


@given(st.lists(st.text(max_size=30)))
def test_any_names_are_sorted_somewhere_once(files: list[str]) -> None:
    found = find_splits(files)
    placed = [file for split in found.splits.values() for file in split.files] + list(found.unnamed)
    assert sorted(placed) == sorted({file for file in files if is_data_file(file)})


def test_order_is_official_splits_then_names() -> None:
    names = ["zoo", "test2", "dev", "val", "alpha", "test", "train"]
    assert sorted(names, key=split_sort_key) == ["train", "val", "dev", "test", "alpha", "test2", "zoo"]
    assert list(find_splits(f"d_{name}.jsonl" for name in names).splits) == sorted(names, key=split_sort_key)


def test_shards_come_in_order_and_missing_ones_are_named() -> None:
    files = ["d_train-00002-of-00003.jsonl", "d_train-00000-of-00003.jsonl"]
    train = find_splits(files).splits["train"]
    assert train.files == tuple(reversed(files))
    assert train.missing == ("d_train-00001-of-00003.jsonl",)
    assert train.conflicts == ()


def test_a_lost_first_or_last_shard_is_named() -> None:
    (first,) = find_splits(["x_train-00001-of-00002.jsonl"]).splits.values()
    assert first.missing == ("x_train-00000-of-00002.jsonl",)
    (last,) = find_splits(["x_train-00000-of-00002.jsonl"]).splits.values()
    assert last.missing == ("x_train-00001-of-00002.jsonl",)


def test_files_that_do_not_go_together_are_told() -> None:
    two_names = find_splits(["a_train.jsonl", "b_train.jsonl"]).splits["train"]
    assert two_names.files == ("a_train.jsonl", "b_train.jsonl")
    assert "several names: 'a', 'b'" in two_names.conflicts[0]
    beside = find_splits(["a_train.jsonl", "a_train-00000-of-00001.jsonl"]).splits["train"]
    assert "next to the whole file a_train.jsonl" in beside.conflicts[0]
    totals = find_splits(["a_train-00000-of-00001.jsonl", "a_train-00000-of-00002.jsonl"]).splits["train"]
    assert totals.missing == ("a_train-00001-of-00002.jsonl",)
    assert "shards of 1 and of 2" in totals.conflicts[0]


def test_the_manifest_overrules() -> None:
    found = find_splits(
        ["odd.jsonl", "d_test.jsonl", "d_val.jsonl"], {"train": ["odd.jsonl", "gone.jsonl"], "val": ["d_val.jsonl"]}
    )
    assert found.splits["train"].files == ("odd.jsonl",)
    assert found.splits["train"].missing == ("gone.jsonl",)
    assert list(found.splits) == ["train", "val", "test"]
    extra = find_splits(["d_val.jsonl", "e_val.jsonl"], {"val": ["d_val.jsonl"]}).splits["val"]
    assert "dataset.json does not list e_val.jsonl" in extra.conflicts[0]


def test_files_that_are_not_data() -> None:
    assert not is_data_file("rejects.jsonl")
    assert not is_data_file(".x_train.jsonl")
    assert find_splits(["rejects.jsonl", ".a_train.jsonl", "a_train.txt"]).splits == {}


def test_split_names() -> None:
    assert canonical_split("validation") == "val"
    assert canonical_split("dev_seen") == "dev_seen"
    assert is_split_name("dev_seen")
    assert not is_split_name("../x")
    assert not is_split_name("_x")
    assert not is_split_name("")
