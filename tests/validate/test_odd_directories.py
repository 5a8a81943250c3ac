"""Directories that are nearly one: files of another encoding, no images folder, names that are nearly right."""

import gzip
import json
from pathlib import Path

import pytest
from validate_builders import row, turn, write

from phi3v_data import UserError
from phi3v_data.sets.clean import clean_set
from phi3v_data.sets.reading import read_set
from phi3v_data.validate import validate

TEXT = "".join(json.dumps(row(name)) + "\n" for name in "abc")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (TEXT.encode("utf-16"), "UTF-16"),
        (TEXT.encode("utf-16-le"), "UTF-16 without a byte order mark"),
        (TEXT.encode("utf-32"), "UTF-32"),
        (gzip.compress(TEXT.encode()), "gzip"),
        (b"PK\x03\x04" + bytes(60), "zip"),
    ],
)
def test_a_file_that_is_not_utf8_text_is_one_finding(tmp_path: Path, data: bytes, kind: str) -> None:
    write(tmp_path, {"train.jsonl": [row("t")]})
    (tmp_path / "val.jsonl").write_bytes(data)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "unused.png").write_bytes(b"x")
    splits = {"val": {"rows": 3, "images": 0, "files": {"val.jsonl": f"sha256:{'0' * 64}"}}}
    report = validate(tmp_path)
    assert report.summary.problems == {"file-encoding": 1}
    [found] = report.problems
    assert (found.file, found.line, found.severity) == ("val.jsonl", None, "error")
    assert found.message == f"the file is {kind}, not UTF-8 text, so none of its rows is read"
    write(tmp_path, {"dataset.json": json.dumps({"format": 1, "name": "x", "task": "vqa", "splits": splits})})
    codes = validate(tmp_path).summary.problems
    assert codes.pop("file-encoding") == 1
    assert set(codes) <= {"manifest-stale"}


def test_sets_are_not_made_of_a_file_that_is_not_text(tmp_path: Path) -> None:
    write(tmp_path / "d", {"train.jsonl": [row("t")]})
    (tmp_path / "d" / "val.jsonl").write_bytes(TEXT.encode("utf-16"))
    with pytest.raises(UserError, match="file-encoding: the file is UTF-16"):
        read_set(tmp_path / "d", lambda stage, done, total: None)
    result = clean_set(tmp_path / "d", tmp_path / "o")
    assert list(result.manifest.splits) == ["train"]
    assert any("file-encoding" in note for note in result.notes)


def test_a_directory_without_images_says_so_once(tmp_path: Path) -> None:
    rows = [row(name, turn(images=(f"{name}.png", "x.png"))) for name in "abc"]
    write(tmp_path, {"train.jsonl": rows})
    report = validate(tmp_path)
    assert report.summary.problems == {"image-missing": 6}
    [found] = report.problems
    assert found.message == "the directory has no folder images/, in which 6 images of its rows should be"
    write(tmp_path, {"images/other.txt": "x"})
    codes = [found.code for found in validate(tmp_path).problems]
    assert sorted(codes) == ["image-missing"] * 6 + ["image-orphan"]


def test_near_names_are_in_the_hint(tmp_path: Path) -> None:
    for name in ("e_train.JSONL", "train.json", "e_val.jsonl.gz", "notes.txt", "rejects.jsonl"):
        (tmp_path / name).write_text("{}")
    [found] = validate(tmp_path).problems
    assert found.code == "split-empty"
    assert found.hint == (
        "is this the right directory? it should contain files such as train.jsonl, and contains 'e_train.JSONL', "
        "'e_val.jsonl.gz', 'train.json': unpack, rename or convert them"
    )
