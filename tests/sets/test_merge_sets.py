"""merge: nothing is lost, nothing is mixed up, and every change of a name is said."""

from pathlib import Path

import pytest
from processes import run_data
from set_builders import png, read_rows, row, row_paths, tree, write_set

from phi3v_data.errors import UserError
from phi3v_data.schema import Manifest
from phi3v_data.sets.clean import clean_set
from phi3v_data.sets.merge import merge_sets
from phi3v_data.validate import validate


def manifest_of(folder: Path) -> Manifest:
    return Manifest.model_validate_json((folder / "dataset.json").read_bytes())


def test_rows_whose_names_are_unique_keep_their_bytes(tmp_path: Path) -> None:
    a = write_set(tmp_path / "a", {"x_train.jsonl": [row("1", "1.png", group="g")]}, {"1.png": png(1)}, name="x")
    b = write_set(tmp_path / "b", {"y_val.jsonl": [row("2", "2.png", group="h")]}, {"2.png": png(2)}, name="y")
    result = merge_sets([a, b], tmp_path / "out")
    assert result.notes == ()
    assert (tmp_path / "out/x-y_train.jsonl").read_bytes() == (a / "x_train.jsonl").read_bytes()
    assert (tmp_path / "out/x-y_val.jsonl").read_bytes() == (b / "y_val.jsonl").read_bytes()
    assert (tmp_path / "out/images/1.png").stat().st_ino == (a / "images/1.png").stat().st_ino
    assert validate(tmp_path / "out").summary.problems == {}


def test_equal_ids_get_their_sets_names_and_all_ids_are_unique(tmp_path: Path) -> None:
    a = write_set(tmp_path / "a", {"x_train.jsonl": [row("1"), row("2"), row("y-1", user="a")]}, name="x")
    b = write_set(tmp_path / "b", {"y_train.jsonl": [row("1", user="b"), row("3"), row("3", user="c")]}, name="y")
    result = merge_sets([a, b], tmp_path / "out", name="all")
    ids = [value["id"] for value in read_rows(tmp_path / "out")["train"]]
    assert ids == ["x-1", "2", "y-1", "y-1-2", "y-3", "y-3-2"]
    assert "2 ids of y" not in " ".join(result.notes)
    assert "3 ids of y are not unique and now start with 'y-'" in result.notes
    assert validate(tmp_path / "out").ok


def test_a_file_that_no_row_uses_moves_no_other(tmp_path: Path) -> None:
    """Only images of rows are brought along, so an unused file of that name does not collide."""
    a = write_set(tmp_path / "a", {"x_train.jsonl": [row("1", "1.png")]}, {"1.png": png(1), "2.png": png(9)}, name="x")
    b = write_set(tmp_path / "b", {"y_train.jsonl": [row("2", "2.png")]}, {"2.png": png(2)}, name="y")
    result = merge_sets([a, b], tmp_path / "out")
    assert row_paths(read_rows(tmp_path / "out")["train"][1]) == ["2.png"]
    assert (tmp_path / "out/images/2.png").read_bytes() == png(2)
    assert "renamed" not in " ".join(result.notes)


def test_other_content_under_one_name_moves_and_equal_content_is_one_file(tmp_path: Path) -> None:
    a = write_set(
        tmp_path / "a", {"x_train.jsonl": [row("a", "p.png", "q.png")]}, {"p.png": png(1), "q.png": png(2)}, name="x"
    )
    b = write_set(
        tmp_path / "b",
        {"y_train.jsonl": [row("b", "p.png", "q.png"), row("c", "y/z.png"), row("d", "gone.png")]},
        {"p.png": png(1), "q.png": png(3), "y/z.png": png(4)},
        name="y",
    )
    c = write_set(tmp_path / "c", {"z_train.jsonl": [row("e", "gone.png")]}, {"gone.png": png(5)}, name="z")
    result = merge_sets([a, b, c], tmp_path / "out")
    found = {value["id"]: row_paths(value) for value in read_rows(tmp_path / "out")["train"]}
    images = tmp_path / "out/images"
    assert found["a"] == ["p.png", "q.png"]
    assert found["b"] == ["p.png", "y_2/q.png"]
    assert found["d"] == ["y_2/gone.png"]
    assert found["e"] == ["gone.png"]
    assert (images / "y_2/q.png").read_bytes() == png(3)
    assert not (images / "y_2/gone.png").exists()
    assert "1 image of y with the path of another image, now under images/y_2/" in result.notes
    assert "1 image of y also in an earlier set, stored once" in result.notes
    problems = validate(tmp_path / "out", num_crops=1).summary.problems
    assert problems == {"image-missing": 1}


def test_a_file_and_a_folder_of_one_name_live_side_by_side(tmp_path: Path) -> None:
    a = write_set(tmp_path / "a", {"train.jsonl": [row("a", "p")]}, {"p": png(1)}, name="x")
    b = write_set(tmp_path / "b", {"train.jsonl": [row("b", "p/q.png")]}, {"p/q.png": png(2)}, name="y")
    for order in ([a, b], [b, a]):
        out = tmp_path / f"out{order[0].name}"
        merge_sets(order, out)
        assert validate(out).ok


def test_groups_of_different_sets_are_not_one_group(tmp_path: Path) -> None:
    a = write_set(tmp_path / "a", {"x_train.jsonl": [row("a", group="g1")]}, name="x")
    b = write_set(tmp_path / "b", {"y_val.jsonl": [row("b", group="g1"), row("c", group="g2")]}, name="y")
    again = write_set(tmp_path / "again", {"x_train.jsonl": [row("d", group="g1")]}, name="x")
    merge_sets([a, b, again], tmp_path / "out")
    groups = {value["id"]: value["group"] for values in read_rows(tmp_path / "out").values() for value in values}
    assert groups == {"a": "x/g1", "b": "y/g1", "c": "g2", "d": "x/g1"}
    assert validate(tmp_path / "out").ok


def test_conflicts_of_the_manifests_are_reported(tmp_path: Path) -> None:
    a = write_set(
        tmp_path / "a",
        {"x_train.jsonl": [row("a", answer="cat")]},
        name="x",
        task="classification",
        metrics=["accuracy"],
        num_crops=4,
        classes=["cat"],
        license="MIT",
    )
    b = write_set(
        tmp_path / "b",
        {"y_train.jsonl": [row("b")]},
        name="y",
        task="vqa",
        metrics=["anls"],
        num_crops=16,
        license="CC0",
    )
    result = merge_sets([a, b], tmp_path / "out")
    manifest = manifest_of(tmp_path / "out")
    assert (manifest.task, manifest.metrics) == ("vqa", ("accuracy", "anls"))
    assert (manifest.num_crops, manifest.classes) == (16, ())
    assert manifest.license == "MIT; CC0"
    text = "\n".join(result.notes)
    for words in (
        "task differs (x classification, y vqa)",
        "metrics differs",
        "num_crops differs (x 4, y 16)",
    ):
        assert words in text
    assert [entry["name"] for entry in manifest.history[0].options["sets"]] == ["x", "y"]


def test_a_split_without_answers_is_kept_apart(tmp_path: Path) -> None:
    a = write_set(tmp_path / "a", {"x_test.jsonl": [row("a")]}, name="x")
    b = write_set(tmp_path / "b", {"y_test.jsonl": [row("b", answer="")]}, name="y", labelled=False)
    result = merge_sets([a, b], tmp_path / "out")
    manifest = manifest_of(tmp_path / "out")
    assert {split: info.labelled for split, info in manifest.splits.items()} == {"test": True, "test_y": False}
    assert any("is called test_y" in note for note in result.notes)
    assert validate(tmp_path / "out").ok


def test_files_of_several_names_in_one_directory_are_joined(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "in", {"a_train.jsonl": [row("1")], "b_train.jsonl": [row("1", user="x")]})
    assert not validate(folder).ok
    merge_sets([folder], tmp_path / "out")
    assert validate(tmp_path / "out").ok


def test_the_command(tmp_path: Path) -> None:
    a = write_set(tmp_path / "a", {"x_train.jsonl": [row("1")]}, name="x")
    b = write_set(tmp_path / "b", {"x_train.jsonl": [row("1", user="b")]}, name="x")
    before = tree(a), tree(b)
    done = run_data("merge", a, b, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/out: 2 samples (train 2), 0 images\n"
    assert "note: split train joins x/train, x-2/train" in done.stderr
    assert (tree(a), tree(b)) == before
    assert run_data("merge", a).returncode == 2
    with pytest.raises(UserError, match="given twice"):
        merge_sets([a, a], tmp_path / "twice")


def test_samples_that_one_set_has_in_train_and_another_one_in_test_are_named(tmp_path: Path) -> None:
    """Texts and bytes of images are compared; an equal question on another image of the same size is another sample."""
    images = [png(seed).ljust(5000, b"\0") for seed in (1, 2, 3)]
    rows = [row("1", "1.png", user="What?"), row("2", "2.png", user="What?"), row("3", user="alone?")]
    a = write_set(tmp_path / "a", {"x_train.jsonl": rows}, {"1.png": images[0], "2.png": images[1]}, name="x")
    rows = [row("4", "4.png", user="What?"), row("5", "5.png", user="What?"), row("6", user="alone?"), row("7")]
    b = write_set(tmp_path / "b", {"y_test.jsonl": rows}, {"4.png": images[0], "5.png": images[2]}, name="y")
    result = merge_sets([a, b], tmp_path / "out")
    assert result.notes == (
        f"2 samples in several splits now, such as {b}/y_test.jsonl:1, the same as {a}/x_train.jsonl:1, which validate "
        "reports as leak-sample; `phi3v-data clean OUT NEW --drop leak-sample` leaves them out",
    )
    assert validate(tmp_path / "out").summary.problems["leak-sample"] == 2
    cleaned = clean_set(tmp_path / "out", tmp_path / "new", drop=["leak-sample"])
    assert "leak-sample" not in validate(tmp_path / "new").summary.problems, cleaned.notes
    assert merge_sets([b, a], tmp_path / "other").notes[0].startswith("2 samples in several splits now, such as ")


def test_leaks_that_a_set_has_already_are_not_counted(tmp_path: Path) -> None:
    inside = {"x_train.jsonl": [row("1", group="g")], "x_test.jsonl": [row("2", group="g")]}
    a = write_set(tmp_path / "a", inside, name="x")
    b = write_set(tmp_path / "b", {"x_train.jsonl": [row("3", user="b", group="g")]}, name="x")
    c = write_set(tmp_path / "c", {"y_train.jsonl": [row("4", user="b")]}, name="y")
    assert "several splits" not in " ".join(merge_sets([a, b, c], tmp_path / "out").notes)


def test_groups_that_sets_of_one_name_have_in_different_splits_are_counted(tmp_path: Path) -> None:
    a = write_set(tmp_path / "a", {"x_train.jsonl": [row("1", group="g"), row("2", user="b", group="h")]}, name="x")
    b = write_set(tmp_path / "b", {"x_test.jsonl": [row("3", user="c", group="g")]}, name="x")
    result = merge_sets([a, b], tmp_path / "out")
    assert result.notes == (
        "1 group in several splits now, which validate reports as leak-group; "
        "`phi3v-data split OUT NEW --split SHARES --by group` keeps them whole",
    )
    assert validate(tmp_path / "out").summary.problems["leak-group"] == 1
