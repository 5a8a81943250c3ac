"""Images in class folders."""

from pathlib import Path

import pytest
from converter_sources import class_folders, encoded, findings, images, put, rows, run, stored, turn, write_parquet

import phi3v_data
from phi3v_data.testing import check_converter

PROMPT = "Classify the image into one of the following classes: cat, dog."


def test_split_folders(tmp_path: Path) -> None:
    result = run("image_folder", class_folders(tmp_path / "animals"), tmp_path / "o")
    assert {name: split.rows for name, split in result.manifest.splits.items()} == {"train": 3, "val": 1}
    manifest = result.manifest
    assert (manifest.name, manifest.task, manifest.metrics) == ("image_folder", "classification", ("accuracy",))
    assert manifest.classes == ("cat", "dog")
    made = rows(tmp_path / "o", "image_folder_train.jsonl")
    assert [turn(row) for row in made] == [(PROMPT, "cat"), (PROMPT, "cat"), (PROMPT, "dog")]
    assert [images(row) for row in made] == [["train/cat/1.png"], ["train/cat/2.jpg"], ["train/dog/1.png"]]
    assert [row["meta"]["source_id"] for row in made] == ["train/cat/1.png", "train/cat/2.jpg", "train/dog/1.png"]
    assert stored(tmp_path / "o")[-1] == "val/dog/2.png"
    assert (tmp_path / "o" / "images" / "train" / "cat" / "1.png").read_bytes() == encoded(0)
    assert result.warnings == ()
    assert findings(tmp_path / "o") == {}


def test_class_folders_are_all_train_and_one_class_keeps_one_name(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "s", ("cat/a.png", "cat/a.jpg", "dog/b.jpeg"))
    result = run("image_folder", source, tmp_path / "o", options={"classes": "CAT", "prompt": "Which of {classes}?"})
    made = rows(tmp_path / "o", "image_folder_train.jsonl")
    assert [turn(row) for row in made] == [("Which of cat?", "cat")] * 2
    assert [images(row) for row in made] == [["train/cat/a.jpg"], ["train/cat/a.png"]]
    assert result.manifest.notes == {}
    mixed = class_folders(tmp_path / "mixed", ("train/Cat/1.png", "test/cat/2.png"))
    result = run("image_folder", mixed, tmp_path / "p")
    assert (result.manifest.classes, result.manifest.notes) == (("Cat",), {"class-case-merged": 1})


def test_what_is_beside_the_images_is_counted_and_a_wrong_ending_is_corrected(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "s", ("cat/a.png",))
    put(source / "cat" / "b.png", encoded(7, "jpeg"))
    put(source / "cat" / "c.mp4", b"clip")
    put(source / "labels.txt", "cat")
    put(source / "README.md", "cats")
    result = run("image_folder", source, tmp_path / "o")
    assert stored(tmp_path / "o") == ["train/cat/a.png", "train/cat/b.jpg"]
    assert result.warnings == (
        "left out 2 files of the source, not used by any sample: 1 .mp4, 1 .txt ('cat/c.mp4', 'labels.txt')",
    )


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("a.png",), "is not in a class folder"),
        (("cat/a.png", "x/dog/b.png"), "are at different depths"),
        ((), "there is no image in .*; expected train/<Class>"),
    ],
)
def test_a_source_that_is_none(tmp_path: Path, files: tuple[str, ...], words: str) -> None:
    (tmp_path / "s").mkdir()
    with pytest.raises(phi3v_data.UserError, match=words):
        run("image_folder", class_folders(tmp_path / "s", files), tmp_path / "o")


def test_each_of_the_two_folder_converters_names_the_other(tmp_path: Path) -> None:
    put(tmp_path / "clips" / "A" / "a.mp4", b"clip")
    with pytest.raises(phi3v_data.UserError, match="1 clips: phi3v-data convert ucf101"):
        run("image_folder", tmp_path / "clips", tmp_path / "o")
    with pytest.raises(phi3v_data.UserError, match=r"4 images: .* phi3v-data convert image_folder"):
        run("ucf101", class_folders(tmp_path / "animals"), tmp_path / "o")


def test_only_images_that_would_share_a_path_are_renamed(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "s", ("train/cat/x.png", "val/cat/x.png", "train/cat/X.png", "train/cat/x.jpg"))
    result = run("image_folder", source, tmp_path / "o")
    assert stored(tmp_path / "o") == ["train/cat/X.png", "train/cat/x.jpg", "train/cat/x~2.png", "val/cat/x.png"]
    assert result.manifest.notes == {"image-renamed": 1}


def test_an_image_that_gets_the_ending_of_another_is_renamed(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "s", ("train/cat/x.jpg", "val/cat/x.png"))
    put(source / "train" / "cat" / "x.png", encoded(7, "jpeg"))
    put(source / "val" / "cat" / "y.png", encoded(8, "jpeg"))
    result = run("image_folder", source, tmp_path / "o")
    assert stored(tmp_path / "o") == ["train/cat/x.jpg", "train/cat/x~3.jpg", "val/cat/x.png", "val/cat/y.jpg"]
    assert result.manifest.notes == {"image-renamed": 1, "image-suffix-mended": 2}


@pytest.mark.parametrize("split", ["all=1", "train=0.5,val=0.5"])
def test_images_of_one_name_that_come_into_one_split_are_all_kept(tmp_path: Path, split: str) -> None:
    names = [f"{folder}/cat/{number}.png" for folder in ("train", "val", "test") for number in range(6)]
    result = run("image_folder", class_folders(tmp_path / "s", names), tmp_path / "o", split=split)
    assert (result.samples, result.rejects, len(stored(tmp_path / "o"))) == (18, 0, 18)


@pytest.mark.parametrize("spelled", ["{abs}", "animals", "./animals/", "../{name}/animals", "{abs}/../link", "link"])
def test_rejects_name_files_from_the_source_however_it_was_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled: str
) -> None:
    source = class_folders(tmp_path / "animals", ("train/cat/a.png",))
    put(source / "train" / "cat" / "z.jpg", "no image at all")
    (tmp_path / "link").symlink_to(source)
    monkeypatch.chdir(tmp_path)
    run("image_folder", spelled.format(abs=source, name=tmp_path.name), tmp_path / "o")
    [reject] = rows(tmp_path / "o", "rejects.jsonl")
    assert reject["message"] == "train/cat/z.jpg is not an image (a text file)"
    again = run("image_folder", source, tmp_path / "o")
    assert again.already_complete, "the spelling is no setting"


def test_check_converter(tmp_path: Path) -> None:
    assert check_converter("image_folder", class_folders(tmp_path / "animals")).samples == 4


def test_two_spellings_in_one_split_and_empty_folders_are_noted(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "s", ("train/A/1.png", "train/a/2.png", "train/b/3.png", "val/A/4.png"))
    (source / "val" / "b").mkdir()
    result = run("image_folder", source, tmp_path / "o")
    assert result.manifest.classes == ("A", "a", "b")
    assert result.notes == (
        "'A' and 'a' are 2 classes, because a split has more than one of them; rename a folder if they are one",
        "empty: 'val/b'; a folder without files gives no samples",
    )


def test_rows_of_parquet_are_for_another_converter(tmp_path: Path) -> None:
    write_parquet(tmp_path / "s" / "train.parquet", [{"image": encoded(1), "label": 0}])
    with pytest.raises(phi3v_data.NotFoundError, match=r"contains rows of image, label, .*: phi3v-data convert table"):
        run("image_folder", tmp_path / "s", tmp_path / "o")
