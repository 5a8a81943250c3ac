"""clean: the new set is valid, what was left out is listed, and the two add up."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from processes import run_data
from set_builders import encoded, make_image, png, read_rows, row, row_paths, split_of, tree, write_set

from phi3v_data.choices import ImageMode
from phi3v_data.errors import UserError
from phi3v_data.problems import PROBLEMS, Repeat, write_example
from phi3v_data.schema import Manifest
from phi3v_data.sets.clean import clean_set
from phi3v_data.validate import validate

EXAMPLES = [
    code
    for code, problem in PROBLEMS.items()
    if not any(isinstance(content, Repeat) for content in problem.example.files.values())
]


def removed(folder: Path) -> list[dict[str, object]]:
    path = folder / "removed.jsonl"
    return list(map(json.loads, path.read_text().splitlines())) if path.exists() else []


@pytest.mark.parametrize("fix", [False, True])
@pytest.mark.parametrize("code", EXAMPLES)
def test_every_problem_of_the_catalogue_comes_out_valid(code: str, fix: bool, tmp_path: Path) -> None:
    source = tmp_path / "in"
    write_set(source, {"zz_train.jsonl": [row("sound", user="Is it sound?", answer="Cat")]})
    write_example(PROBLEMS[code].example, source)
    if (source / "dataset.json").exists():
        (source / "zz_train.jsonl").unlink()
    before = tree(source)
    rows = validate(source, use_receipt=False).summary.samples
    try:
        result = clean_set(source, tmp_path / "out", fix=fix)
    except UserError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert "none of its rows is valid" in refused
        assert not (tmp_path / "out").exists()
        return
    assert tree(source) == before
    report = validate(tmp_path / "out")
    assert report.ok, report.problems
    gone = [entry for entry in removed(tmp_path / "out") if entry["line"]]
    assert result.samples + len(gone) == rows
    assert all(entry["code"] and entry["message"] for entry in gone)
    manifest = Manifest.model_validate_json((tmp_path / "out/dataset.json").read_bytes())
    assert sum(manifest.rejects.values()) == len(gone)


def test_one_row_with_several_problems_is_listed_once(tmp_path: Path) -> None:
    bad = row("b", "gone.png", "../up.png", answer="<|end|>")
    write_set(tmp_path / "in", {"train.jsonl": [row("a"), bad, "", "{", row("a", user="again")]})
    result = clean_set(tmp_path / "in", tmp_path / "out")
    assert result.samples == 1
    entries = removed(tmp_path / "out")
    assert [(entry["line"], entry["code"], entry["id"]) for entry in entries] == [
        (2, "control-token", "b"),
        (4, "json-syntax", None),
        (5, "duplicate-id", "a"),
    ]
    assert entries[0]["also"] == ["image-missing", "image-path-unsafe"]


def test_a_row_is_not_left_out_for_repeating_one_that_is_left_out(tmp_path: Path) -> None:
    write_set(tmp_path / "in", {"train.jsonl": [row("a", "gone.png"), row("a", user="once more?")]})
    assert clean_set(tmp_path / "in", tmp_path / "out").samples == 1
    assert [entry["code"] for entry in removed(tmp_path / "out")] == ["image-missing"]


def test_all_rows_of_a_leaking_group_leave_the_held_out_split(tmp_path: Path) -> None:
    train = [row(f"t{n}", group=f"g{n}") for n in range(3)]
    val = [row(f"v{n}", group=f"g{n % 6}") for n in range(12)]
    write_set(tmp_path / "in", {"train.jsonl": train, "val.jsonl": val})
    clean_set(tmp_path / "in", tmp_path / "out")
    assert len(read_rows(tmp_path / "out")["val"]) == 6
    assert validate(tmp_path / "out").summary.problems == {}


def test_warnings_go_only_where_asked(tmp_path: Path) -> None:
    write_set(tmp_path / "in", {"train.jsonl": [row("a", user="?"), row("b", user="?"), row("c")]})
    assert clean_set(tmp_path / "in", tmp_path / "all").samples == 3
    assert clean_set(tmp_path / "in", tmp_path / "out", drop=["duplicate-sample"]).samples == 2
    write_set(tmp_path / "images", {"train.jsonl": [row("a", "a.png", user=" "), row("b", "a.png")]}, {"a.png": png(1)})
    assert clean_set(tmp_path / "images", tmp_path / "kept").samples == 2
    assert clean_set(tmp_path / "images", tmp_path / "dropped", drop=["image-only-turn"]).samples == 1
    with pytest.raises(UserError, match="--drop nonsense"):
        clean_set(tmp_path / "in", tmp_path / "no", drop=["nonsense"])


@pytest.fixture
def ill(tmp_path: Path) -> Path:
    """One image of each kind that can be fixed, and one that cannot."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return write_set(
        tmp_path / "in",
        {
            "train.jsonl": [
                row("turned", "turned.jpg"),
                row("case", "Folder/CASE.png"),
                row("suffix", "really_jpeg.png", "really_jpeg.jpg"),
                row("cmyk", "cmyk.jpg"),
                row("both", "both.tif"),
                row("broken", "broken.png"),
            ]
        },
        {
            "turned.jpg": encoded(make_image(1, (48, 24)), "JPEG", exif=exif, quality=92),
            "folder/case.png": png(2),
            "really_jpeg.png": encoded(make_image(3), "JPEG"),
            "really_jpeg.jpg": encoded(make_image(4), "JPEG"),
            "cmyk.jpg": encoded(make_image(5, mode="CMYK"), "JPEG"),
            "both.tif": encoded(make_image(6, mode="CMYK"), "TIFF", exif=exif),
            "broken.png": png(7)[:-30],
        },
    )


def test_fix_changes_what_needs_no_guessing(ill: Path, tmp_path: Path) -> None:
    before = tree(ill)
    result = clean_set(ill, tmp_path / "out", fix=True)
    assert tree(ill) == before
    assert validate(tmp_path / "out").summary.problems.keys() <= {"rope-switch"}
    assert result.manifest.notes == {
        "mended-image-format-mismatch": 1,
        "mended-image-mode": 2,
        "mended-image-name-mismatch": 1,
        "mended-image-orientation": 2,
    }
    assert list(result.manifest.notes) == sorted(result.manifest.notes)
    images = tmp_path / "out/images"
    names = {value["id"]: row_paths(value) for value in read_rows(tmp_path / "out")["train"]}
    assert names["case"] == ["folder/case.png"]
    assert names["suffix"] == ["really_jpeg-2.jpg", "really_jpeg.jpg"]
    assert (images / "really_jpeg-2.jpg").read_bytes() == (ill / "images/really_jpeg.png").read_bytes()
    with Image.open(images / "turned.jpg") as fixed, Image.open(ill / "images/turned.jpg") as original:
        assert fixed.size == (24, 48)
        assert fixed.quantization == original.quantization  # type: ignore[attr-defined]  # of a JPEG
        upright = np.asarray(ImageOps.exif_transpose(original), np.int16)
        assert np.abs(np.asarray(fixed, np.int16) - upright).mean() < 3
    with Image.open(images / "cmyk.jpg") as fixed, Image.open(ill / "images/cmyk.jpg") as original:
        assert fixed.mode == "RGB"
        assert np.abs(np.asarray(fixed, np.int16) - np.asarray(original.convert("RGB"), np.int16)).mean() < 3


def test_without_fix_only_what_is_wrong_goes(ill: Path, tmp_path: Path) -> None:
    done = run_data("clean", ill, tmp_path / "out")
    assert done.returncode == 0
    assert done.stdout == (
        f"{tmp_path}/out: 4 samples (train 4), 5 images, 2 left out (1 image-name-mismatch, 1 image-unreadable; see "
        f"{tmp_path}/out/removed.jsonl)\n"
    )
    assert "--fix corrects the letter case" in done.stderr
    assert run_data("validate", tmp_path / "out").returncode == 0


def test_two_files_that_may_be_meant_are_not_fixed(tmp_path: Path) -> None:
    write_set(tmp_path / "in", {"train.jsonl": [row("a", "A.png"), row("b")]}, {"a.PNG": png(1), "a.png": png(2)})
    assert clean_set(tmp_path / "in", tmp_path / "out", fix=True).samples == 1


def test_fixed_images_are_never_written_through_a_link(ill: Path, tmp_path: Path) -> None:
    inode = (ill / "images/turned.jpg").stat().st_ino
    clean_set(ill, tmp_path / "out", fix=True, images=ImageMode.link)
    assert (tmp_path / "out/images/turned.jpg").stat().st_ino != inode


def test_a_second_run_is_complete_and_overwrite_forgets_the_old_list(tmp_path: Path) -> None:
    source = write_set(tmp_path / "in", {"train.jsonl": [row("a"), "{"]})
    assert run_data("clean", source, tmp_path / "out").returncode == 0
    again = run_data("clean", source, tmp_path / "out")
    assert "already complete" in again.stdout
    assert "1 left out" in again.stdout
    shutil.rmtree(source)
    write_set(source, {"train.jsonl": [row("a")]})
    assert run_data("clean", source, tmp_path / "out").returncode == 2
    assert run_data("clean", source, tmp_path / "out", "--overwrite").returncode == 0
    assert not (tmp_path / "out/removed.jsonl").exists()


@pytest.mark.parametrize("held_out", [["v0", "v1"], ["v1"]])
def test_the_train_rows_of_a_leaking_group_are_kept(tmp_path: Path, held_out: list[str]) -> None:
    train = [row(f"t{n}", group="g0") for n in range(3)]
    write_set(
        tmp_path / "in", {"train.jsonl": train, "val.jsonl": [*(row(n, group="g0") for n in held_out), row("v9")]}
    )
    clean_set(tmp_path / "in", tmp_path / "out")
    assert split_of(tmp_path / "out") == {"t0": "train", "t1": "train", "t2": "train", "v9": "val"}


def test_a_group_that_leaks_between_held_out_splits_is_kept_in_the_first(tmp_path: Path) -> None:
    splits = {
        "train.jsonl": [row("t0")],
        "val.jsonl": [row("v0", group="g")],
        "test.jsonl": [row("e0", group="g"), row("e1")],
    }
    write_set(tmp_path / "in", splits)
    codes = [(each.code, each.severity, each.file) for each in validate(tmp_path / "in", use_receipt=False).problems]
    assert codes == [("leak-group", "warning", "test.jsonl")]
    clean_set(tmp_path / "in", tmp_path / "out", drop=["leak-group"])
    assert split_of(tmp_path / "out") == {"t0": "train", "v0": "val", "e1": "test"}


def test_removed_rows_are_in_the_order_of_files_and_lines(tmp_path: Path) -> None:
    """Findings come by kind, not by line: a leak is found after all rows have been read."""
    folder = write_set(tmp_path / "set", {
        "x_train.jsonl": [row("a"), {**row("b"), "more": 1}, row("c", user="Else?")],
        "x_test.jsonl": [{**row("d"), "more": 1}, row("a")],
    })  # fmt: skip
    clean_set(folder, tmp_path / "out")
    listed = [(each["file"], each["line"]) for each in removed(tmp_path / "out")]
    assert listed == sorted(listed)
    assert len(listed) >= 3


def test_other_codes_of_a_removed_row_are_in_alphabetical_order(tmp_path: Path) -> None:
    bad = {**row("b", "images/gone.png", "../x.png", user="<|end|> hi", answer=""), "more": 1}
    folder = tmp_path / "set"
    write_set(folder, {"x_train.jsonl": [row("a"), bad, row("a", user="Another?")]})
    clean_set(folder, tmp_path / "out")
    assert [(each["line"], each["code"], each.get("also")) for each in removed(tmp_path / "out")] == [
        (2, "unknown-field", ["control-token", "empty-text", "image-missing", "image-path-unsafe"]),
        (3, "duplicate-id", None),
    ]
