"""A file in an archive is named by archive and member, in rejects, warnings and errors, whatever the converter."""

import io
import json
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from converter_sources import class_folders, encoded, memes_official, put, rows, run

import phi3v_data
from phi3v_data.draft import Draft, converter
from phi3v_data.errors import UserError
from phi3v_data.sources.source import Source

BROKEN = encoded(1)[:60]


def pack(archive: Path, members: Mapping[str, bytes]) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return archive


def rejects(out: Path) -> list[tuple[str, str]]:
    """Item and the beginning of the message of each reject."""
    lines = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    return [(line["item"], line["message"].partition(" is ")[0]) for line in lines]


@pytest.mark.parametrize(
    ("archive", "folder", "named"),
    [
        ("zoo.zip", "", "zoo.zip: cat/x.png"),
        ("zoo.zip", "zoo/", "zoo.zip: zoo/cat/x.png"),
        ("all/zoo.zip", "", "all/zoo.zip: cat/x.png"),
        ("all/zoo.zip", "zoo/", "all/zoo.zip: zoo/cat/x.png"),
    ],
)
def test_an_image_of_an_archive(tmp_path: Path, archive: str, folder: str, named: str) -> None:
    """The source is the archive, or a folder with the archive; rows keep the id that an unpacked source gives."""
    members = {f"{folder}cat/a.png": encoded(2), f"{folder}cat/x.png": BROKEN, f"{folder}notes.xyz": b"-"}
    packed = pack(tmp_path / "s" / archive, members)
    result = run("image_folder", packed if archive == "zoo.zip" else tmp_path / "s", tmp_path / "o")
    assert rejects(tmp_path / "o") == [(named, named)]
    assert [row["meta"]["source_id"] for row in rows(tmp_path / "o", "image_folder_train.jsonl")] == ["cat/a.png"]
    left_out = named.replace("cat/x.png", "notes.xyz")
    assert result.warnings == (f"left out 1 file of the source, not used by any sample: 1 .xyz ('{left_out}')",)


def test_an_image_of_a_folder_is_named_by_its_path(tmp_path: Path) -> None:
    put(class_folders(tmp_path / "s", ("cat/a.png",)) / "cat" / "x.png", BROKEN)
    run("image_folder", tmp_path / "s", tmp_path / "o")
    assert rejects(tmp_path / "o") == [("cat/x.png", "cat/x.png")]


def test_a_source_that_cannot_be_planned(tmp_path: Path) -> None:
    pack(tmp_path / "s" / "zoo.zip", {"cat/a.png": encoded(1)})
    pack(tmp_path / "s" / "val.zip", {"val/cat/b.png": encoded(2)})
    with pytest.raises(UserError, match=r"the image 'zoo\.zip: cat/a\.png' is not in .* under 'zoo\.zip': move it"):
        run("image_folder", tmp_path / "s", tmp_path / "o")
    (tmp_path / "s" / "val.zip").unlink()
    put(tmp_path / "s" / "dog.png", encoded(3))
    with pytest.raises(UserError, match=r"'zoo\.zip: cat/a\.png' and 'dog\.png' are at different depths"):
        run("image_folder", tmp_path / "s", tmp_path / "p")


def test_a_clip_of_an_archive(tmp_path: Path) -> None:
    source = pack(tmp_path / "clips.zip", {"UCF/train/Jump/v.avi": b"no clip"})
    with pytest.raises(UserError) as refused:
        run("ucf101", source, tmp_path / "o")
    assert "; the first, 'clips.zip: UCF/train/Jump/v.avi' cannot be opened as a video: " in str(refused.value)


def test_an_image_that_an_annotation_names(tmp_path: Path) -> None:
    """The item is the line of the annotation file; the message names the image."""
    source = memes_official(tmp_path / "memes")
    put(source / "img" / "01235.png", BROKEN)
    with tarfile.open(source / "img.tar.gz", "w:gz") as archive:
        archive.add(source / "img", "img")
    shutil.rmtree(source / "img")
    run("hateful_memes", source, tmp_path / "o", options={}, unlabelled=True)
    assert ("train.jsonl:1", "img.tar.gz: img/01235.png") in rejects(tmp_path / "o")


def test_a_generator_that_yields_an_image_of_an_archive(tmp_path: Path) -> None:
    pack(tmp_path / "s" / "zoo.zip", {"a.png": encoded(1), "x.png": BROKEN})

    @converter("plain")
    def plain(source: Source) -> object:
        for file in source.all_files((".png",)):
            yield Draft("Why?", "So", [file.file])

    phi3v_data.convert(plain, tmp_path / "s", tmp_path / "o", workers=0)
    assert [message for _, message in rejects(tmp_path / "o")] == ["zoo.zip: x.png"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_of_two_members_with_one_name_the_last_is_used_and_the_other_is_named(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / f"zoo.{kind}"
    contents = [("cat/a.png", encoded(1)), ("cat/b.png", encoded(2)), ("cat/a.png", encoded(3))]
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for name, content in contents:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of zipfile, on the second
                    packed.writestr(name, content)
    else:
        with tarfile.open(archive, "w") as packed_tar:
            for name, content in contents:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                packed_tar.addfile(member, io.BytesIO(content))
    run("image_folder", archive, tmp_path / "o")
    lines = [json.loads(line) for line in (tmp_path / "o" / "rejects.jsonl").read_text().splitlines()]
    assert [line["item"] for line in lines] == [f"zoo.{kind}: cat/a.png"]
    assert lines[0]["message"].endswith("a later member has the same name and is used in its place")
    kept = {row["meta"]["source_id"]: row for row in rows(tmp_path / "o", "image_folder_train.jsonl")}
    [image] = kept["cat/a.png"]["conversations"][0]["images"]
    assert (tmp_path / "o" / "images" / image).read_bytes() == encoded(3)
