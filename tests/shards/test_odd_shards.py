"""Shards that are whole for tarfile and not for us: damaged, joined, packed with holes, incomplete, of two names."""

import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_files import add

from phi3v_data import Dataset
from phi3v_data.columns import write_columns
from phi3v_data.errors import UserError
from phi3v_data.importing import import_rows
from phi3v_data.media.pack import hash_of_name
from phi3v_data.media.packed import read_packed
from phi3v_data.shards import view
from phi3v_data.shards.view import data_directory
from phi3v_data.sources.archive import extract
from phi3v_data.splits import find_splits, shard_faults
from phi3v_data.validate import validate


def png(number: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(content, "PNG")
    return content.getvalue()


def row(number: int) -> bytes:
    question = [{"type": "image"}, {"type": "text", "text": f"Which is {number}?"}]
    answer = [{"type": "text", "text": "This one."}]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"id": f"r{number}", "images": ["0.png"], "messages": messages}).encode()


def write(path: Path, first: int, count: int, folder: str = "") -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for number in range(first, first + count):
            add(shard, f"{folder}{number:06d}.json", row(number))
            add(shard, f"{folder}{number:06d}.0.png", png(number))
    return path


def ids(folder: Path) -> list[str]:
    return [sample.id for sample in Dataset(data_directory(folder))["train"]]


def third_header(path: Path) -> int:
    with tarfile.open(path) as shard:
        return shard.getmember("000002.json").offset


def flip(data: bytearray, at: int) -> bytes:
    data[at + 150] ^= 1
    return bytes(data)


def blank(data: bytearray, at: int) -> bytes:
    data[at : at + 512] = bytes(512)
    return bytes(data)


def turn_back(data: bytearray, at: int) -> bytes:
    """A size below zero, with the right checksum."""
    data[at + 124 : at + 136] = tarfile.itn(-2048, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]
    data[at + 148 : at + 156] = b" " * 8
    total = sum(data[at : at + 512])
    data[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(data)


TEXT = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}
JOINED = "more data after its end mark; archives are joined with tar -A, not with cat"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "bad checksum"),
        (blank, JOINED),
        (turn_back, "a negative size"),
        (lambda data, at: bytes(data) * 2, JOINED),
        (lambda data, at: bytes(data[:at]) + b"\0" * 10, "truncated header"),
        (lambda data, at: bytes(data[:at]), "no end mark"),
    ],
    ids=["header", "block", "size", "joined", "cut header", "cut"],
)
def test_rows_behind_damage_are_never_left_out_in_silence(
    tmp_path: Path, damage: Callable[[bytearray, int], bytes], reason: str
) -> None:
    path = write(tmp_path / "set/train-0.tar", 0, 4)
    path.write_bytes(damage(bytearray(path.read_bytes()), third_header(path)))
    with pytest.raises(UserError) as caught:
        data_directory(tmp_path / "set")
    assert f"train-0.tar is damaged, cut short or compressed ({reason})" in str(caught.value)
    with pytest.raises(UserError) as caught:
        extract(path, tmp_path / "unpacked")
    assert f"is damaged or cut short ({reason}); download it again" in str(caught.value)
    assert not (tmp_path / "unpacked/files").exists()


def test_an_image_with_holes_is_refused_as_its_bytes_are_not_in_one_place(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    image = Image.new("RGB", (64, 512))
    image.putpixel((3, 500), (255, 1, 2))
    image.save(folder / "full.bmp")
    subprocess.run(["cp", "--sparse=always", folder / "full.bmp", folder / "0.0.bmp"], check=True)
    (folder / "0.json").write_bytes(row(0).replace(b"0.png", b"0.bmp"))
    (tmp_path / "set").mkdir()
    command = ["tar", "--sparse", "-cf", tmp_path / "set/train-0.tar", "-C", folder, "0.json", "0.0.bmp"]
    subprocess.run(command, check=True)
    with tarfile.open(tmp_path / "set/train-0.tar") as shard:
        if not shard.getmember("0.0.bmp").issparse():
            pytest.skip("this file system has no holes")
    with pytest.raises(UserError, match=r"'0\.0\.bmp' was packed with tar --sparse"):
        data_directory(tmp_path / "set")


def test_names_that_begin_with_the_folder_that_was_packed_are_plain_ones(tmp_path: Path) -> None:
    """`tar -cf train-0.tar .` writes such names."""
    write(tmp_path / "set/train-0.tar", 0, 2, "./")
    train = Dataset(data_directory(tmp_path / "set"))["train"]
    assert [sample.images for sample in train] == [("train-0/000000.0.png",), ("train-0/000001.0.png",)]
    assert read_packed(train.image_path("train-0/000001.0.png")) == png(1)
    assert validate(tmp_path / "set").ok


def test_a_link_is_told_by_an_import_that_does_not_follow_it(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set/train-0.tar", "w") as shard:
        for number in (0, 1):
            add(shard, f"{number}.json", json.dumps(TEXT).encode())
            link = tarfile.TarInfo(f"{number}.0.png")
            link.type, link.linkname = tarfile.LNKTYPE, "other.png"
            shard.addfile(link)
    result = import_rows("webdataset", tmp_path / "set", tmp_path / "out", workers=0)
    assert result.notes == ("members that are not imported: '0.png (a link)'",)


def test_a_shard_that_is_missing_by_the_names_of_the_others_is_told(tmp_path: Path) -> None:
    for number in (0, 2):
        write(tmp_path / f"set/train-{number:05d}-of-00003.tar", number, 1)
    with pytest.raises(UserError) as caught:
        data_directory(tmp_path / "set")
    assert str(caught.value) == (
        f"{tmp_path / 'set'}: 1 of 3 shards are missing, the first is 'train-00001-of-00003.tar'; copy the shards "
        "again, or take what is there with `phi3v-data import`"
    )
    write(tmp_path / "set/train-00001-of-00003.tar", 1, 1)
    assert ids(tmp_path / "set") == ["r0", "r1", "r2"]
    write(tmp_path / "set/train-00000-of-00001.tar", 3, 1)  # of an earlier export
    with pytest.raises(UserError, match="'train' has shards of 00001 and of 00003: keep one set of them"):
        data_directory(tmp_path / "set")


def test_a_conversion_of_some_of_the_shards_of_a_source_says_so(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "source").mkdir()
    table = pyarrow.Table.from_pylist([TEXT])
    parquet.write_table(table, tmp_path / "source/train-00001-of-00004-ab12.parquet")
    result = import_rows("openai", tmp_path / "source", tmp_path / "out", workers=0)
    assert result.warnings == ("3 of 4 shards are missing, the first is 'train-00000-of-00004.parquet'",)


def test_a_row_that_names_none_of_its_images_is_not_read_without_them(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set/train-0.tar", "w") as shard:
        add(shard, "0.json", json.dumps(TEXT).encode())
        add(shard, "0.png", png(0))
    with pytest.raises(UserError, match=r"train-0\.tar: 0: the row names none of the images that come with it"):
        data_directory(tmp_path / "set")


@pytest.mark.parametrize("value", [b"\x89PNG", {"bytes": b"\x89PNG", "path": "a.png"}, [{"bytes": b"\x89PNG"}]])
def test_a_column_of_images_of_another_name_is_not_left_out(tmp_path: Path, value: object) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "set").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist([{**TEXT, "picture": value}]), tmp_path / "set/train-0.parquet")
    with pytest.raises(UserError, match="read from a column 'images', and this file has bytes in 'picture'"):
        data_directory(tmp_path / "set")


def test_a_shard_that_changes_while_the_view_is_made_gives_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "set/train-0.tar", 0, 1)
    make = view._write

    def changed(export: view.Export, folder: Path) -> None:
        make(export, folder)
        write(tmp_path / "set/train-0.tar", 1, 2)

    monkeypatch.setattr(view, "_write", changed)
    with pytest.raises(UserError, match="a shard was changed while it was read; run the command again"):
        data_directory(tmp_path / "set")
    monkeypatch.undo()
    assert ids(tmp_path / "set") == ["r1", "r2"]


def test_numbers_of_shards() -> None:
    assert shard_faults(["a-00000-of-00002.tar", "a-00001-of-00002.tar", "a-1.tar", "b-00000-of-00001.json"]) == []
    assert shard_faults(["a-00001-of-00002.tar", "a-00002-of-00002.tar"]) == []  # counted from 1
    assert shard_faults(["data/a-00000-of-99999999999"]) == [
        "99,999,999,998 of 99,999,999,999 shards are missing, the first is 'data/a-00001-of-99999999999'"
    ]
    [found] = find_splits(["train-00000-of-99999999999.jsonl"]).splits.values()
    assert (len(found.missing), found.missing[0]) == (1000, "train-00001-of-99999999999.jsonl")


def test_two_names_of_one_split_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "set/val-0.tar", 0, 1)
    write(tmp_path / "set/validation-0.tar", 1, 1)
    with pytest.raises(UserError, match="shards of 'validation' and of 'val', which are one split"):
        data_directory(tmp_path / "set")


GIVEN = {"kind": "tar", "column": "", "root": "/etc", "shards": ["passwd"], "states": [[1, 2, 3, 4]], "count": 1}
"""Header of the index of an export with one image."""


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ({"kind": "zip"}, {}),
        ({"root": 5}, {}),
        ({"states": []}, {}),
        ({"count": -1}, {}),
        ({"count": 1 << 40}, {}),
        ({"etags": []}, {}),
        ({}, {0: 5000}),
        ({}, {0: -1}),
        ({}, {1: 1}),
        ({}, {2: -1}),
        ({}, {3: -1}),
        ({}, {7: 1}),
        ({}, {8: b"\xff.png"}),
        ({}, {8: b"/.png"}),
    ],
    ids=str,
)
def test_an_index_of_a_stranger_with_values_that_cannot_be_is_an_error(
    tmp_path: Path, header: dict[str, object], columns: dict[int, object]
) -> None:
    """`DIR/images` may be what phi3v makes of an export only for itself."""
    given = {**dict(enumerate([5, 0, 0, 10, 0, 0, hash_of_name("a.png"), 0])), 8: b"a.png", **columns}
    values = [value if isinstance(value, bytes) else np.array([value], np.int64) for value in given.values()]
    write_columns(tmp_path / "images", b"phi3vpk3", {**GIVEN, **header}, values)
    line = {"id": "a", "source": "x", "conversations": [{"images": ["a.png"], "user": "q", "assistant": "b"}]}
    (tmp_path / "x_train.jsonl").write_text(json.dumps(line) + "\n")
    report = validate(tmp_path)
    assert not report.ok
    assert [problem.line for problem in report.problems if problem.severity == "error"] == [1]
