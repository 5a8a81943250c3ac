"""Directories whose images are in shards: the same set as with files, whatever happens to it."""

import errno
import json
import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import kills
import numpy as np
import pytest
import xxhash
from in_process import Cli, make_cli
from toy_converter import TOY, Toy, make_source, noise, plain_source, tree

import phi3v_data
from phi3v_data import slices
from phi3v_data.columns import read_columns, write_columns
from phi3v_data.dataset import Dataset, read_manifest
from phi3v_data.errors import UserError
from phi3v_data.media import store_writer
from phi3v_data.media.export_pack import PackedImage, write_pack
from phi3v_data.media.formats import LIMITS, TooLargeImageError
from phi3v_data.media.images import probe, read_image_file
from phi3v_data.media.packed import open_pack
from phi3v_data.media.stored import COLUMNS, MAGIC
from phi3v_data.sets.clean import clean_set
from phi3v_data.sets.merge import merge_sets
from phi3v_data.sets.split import split_set
from phi3v_data.sets.store import change_store
from phi3v_data.validate import validate

LONG = "/".join(["a" * 120] * 3)
"""A folder that the plain header of a tar member has no room for."""

ODD = {
    "train/a/a0.txt": "image 900 x.png",
    "train/a/a1.txt": "image 901 x.png",  # rejected: the name belongs to the row before it
    "train/z/z0.txt": "image 1 train/s001.png\nimage 902 é.png",  # another row's image, stored once
    "train/z/z1.txt": "image 903 x.png\nimage 904 lost.png",  # rejected with both of its images
    "train/z/z2.txt": f"image 905 {LONG}/b.png",
    "train/z/z3.txt": "bytes webp",
    "train/z/z4.txt": "bytes cut",
    "val/z/z5.txt": "bytes webp\nbytes jpeg b.jpg",
    "val/z/z6.txt": "user no image\nanswer none",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source of several parts, with a name for two contents, an image of two rows, and rejects."""
    return make_source(plain_source(tmp_path_factory.mktemp("store") / "source", {"train": 40, "val": 8}), ODD)


@pytest.fixture(scope="module")
def files(source: Path) -> Path:
    phi3v_data.convert(Toy, source, source.with_name("files"), workers=0)
    return source.with_name("files")


@pytest.fixture(scope="module")
def shards(source: Path) -> Path:
    """Converted into shards of at most 10,000 bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_writer, "SHARD_BYTES", 10_000)
        phi3v_data.convert(Toy, source, source.with_name("shards"), workers=0, store="shards")
    return source.with_name("shards")


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "SHARD_BYTES", 10_000)


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    """A copy as `cp -r` makes it, with other times and inodes, and without the journal."""
    shutil.copytree(shards, tmp_path / "copy", copy_function=shutil.copyfile, ignore=shutil.ignore_patterns(".phi3v"))
    return tmp_path / "copy"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return make_cli(capsys, monkeypatch)


def image_bytes(directory: Path) -> dict[str, bytes]:
    """The images of all rows, as readers get them."""
    dataset = Dataset(directory)
    names = {name for split in dataset for sample in dataset[split] for name in sample.images}
    return {name: dataset.image_bytes(name) for name in names}


def texts(directory: Path) -> dict[str, bytes]:
    """The visible files of a set but the images; `dataset.json` without its format."""
    found = {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix in (".jsonl", ".json")}
    manifest = json.loads(found["dataset.json"])
    manifest.pop("format")
    return found | {"dataset.json": json.dumps(manifest).encode()}


def test_rows_rejects_and_image_bytes_are_those_of_files(files: Path, shards: Path) -> None:
    assert texts(shards) == texts(files)
    assert len((shards / "rejects.jsonl").read_text().splitlines()) == 3
    assert image_bytes(shards) == image_bytes(files)
    assert sorted(path.name for path in shards.iterdir()) == [
        *(".phi3v", "dataset.json", "images", "rejects.jsonl", "shards", "toy_train.jsonl", "toy_val.jsonl")
    ]


def test_every_image_is_in_one_shard_once_and_tar_unpacks_them(files: Path, shards: Path, tmp_path: Path) -> None:
    names = []
    for path in sorted((shards / "shards").iterdir()):
        assert path.stat().st_size <= 10_000
        with tarfile.open(path) as archive:
            names += archive.getnames()
            archive.extractall(tmp_path, filter="data")
    assert len(names) == len(set(names)) == 54
    assert tree(tmp_path) == tree(files / "images")


def test_the_report_is_that_of_files(files: Path, shards: Path) -> None:
    expected = validate(files, use_receipt=False)
    for _ in range(2):  # the second time by the receipt
        report = validate(shards)
        assert (report.summary, report.stats, report.problems) == (expected.summary, expected.stats, expected.problems)
    assert (shards / ".phi3v/validate/receipt.json").is_file()


@pytest.mark.usefixtures("small_shards")
def test_bytes_do_not_depend_on_workers(source: Path, shards: Path, tmp_path: Path) -> None:
    phi3v_data.convert(TOY, source, tmp_path / "out", workers=2, store="shards")
    assert tree(tmp_path / "out") == tree(shards)


@pytest.mark.usefixtures("small_shards")
def test_slices_end_with_the_same_bytes(source: Path, shards: Path, tmp_path: Path) -> None:
    """Also if one of them is killed, and another one begins with files."""
    out = tmp_path / "out"

    def convert(share: str, store: str = "shards") -> slices.SliceResult:
        return slices.convert_slice(Toy, source, out, share, workers=0, store=store)  # type: ignore[arg-type]

    assert convert("3/3").whole is None
    with pytest.raises(UserError, match='store "shards" -> "files"; run all slices with the same settings'):
        convert("1/3", "files")
    assert kills.in_child(lambda: convert("2/3"), 12) == -signal.SIGKILL
    assert convert("1/3").whole is None
    assert convert("2/3").whole is not None
    assert tree(out) == tree(shards)


@pytest.mark.usefixtures("small_shards")
def test_killed_runs_end_with_the_same_bytes(source: Path, shards: Path, tmp_path: Path) -> None:
    """Killed in a part, before it has its name, between name and record, among the moves at the end."""
    out = tmp_path / "out"

    def convert() -> object:
        return phi3v_data.convert(Toy, source, out, workers=0, store="shards")

    hit = 0
    for point in (9, 14, 15, 16, 40, 25, 24, 23, 11, 6, 5, 4, 3, 2):
        status = kills.in_child(convert, point)
        assert status in (0, -signal.SIGKILL)
        hit += status != 0
        if not (out / ".phi3v/convert/publishing.json").exists():
            assert not (out / "shards").exists()
            assert not (out / "images").exists()
    assert hit >= 10
    convert()
    assert tree(out) == tree(shards)
    assert tree(out, hidden=True).keys() == tree(shards, hidden=True).keys() - {
        path for path in tree(shards, hidden=True) if path.startswith((".phi3v/validate", ".phi3v/index"))
    }


def flip(path: Path) -> None:
    """Change one byte of the first image of a part."""
    data = path.read_bytes()
    overwrite(path, 600, bytes([data[600] ^ 1]))


def unfinished(source: Path, out: Path) -> list[Path]:
    """Convert all parts, but not the shards; the files of the parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_writer.StoreWriter, "finish", lambda self: os.kill(os.getpid(), signal.SIGKILL))
        run = lambda: phi3v_data.convert(Toy, source, out, workers=0, store="shards")  # noqa: E731
        assert kills.in_child(run) == -signal.SIGKILL
    return sorted((out / ".phi3v/convert/packed").iterdir())


@pytest.mark.usefixtures("small_shards")
def test_a_part_that_is_damaged_between_a_kill_and_the_resume_is_converted_again(
    source: Path, shards: Path, tmp_path: Path
) -> None:
    parts = unfinished(source, tmp_path / "out")
    flip(parts[3])
    assert 40 < phi3v_data.convert(Toy, source, tmp_path / "out", workers=0, store="shards").resumed < 57
    assert tree(tmp_path / "out") == tree(shards)


@pytest.mark.usefixtures("small_shards")
def test_a_part_that_is_damaged_without_a_trace_is_not_published(
    source: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a disk that returns other bytes, or while the shards are made."""
    out = tmp_path / "out"
    parts = unfinished(source, out)
    flip(parts[3])
    with monkeypatch.context() as patch:
        patch.setattr("phi3v_data.writing.resume.has_part_images", lambda *_, **__: True)
        with pytest.raises(UserError, match=r"packed/000003 was lost or damaged after .*; run the same command again"):
            phi3v_data.convert(Toy, source, out, workers=0, store="shards")
        assert sorted(path.name for path in out.iterdir()) == [".phi3v"]
        with pytest.raises(UserError, match=r"packed/000003 was lost or damaged after .*; run the same command again"):
            phi3v_data.convert(Toy, source, out, workers=0, store="shards")
    phi3v_data.convert(Toy, source, out, workers=0, store="shards")
    assert tree(out) == tree(shards)


@pytest.mark.parametrize("damage", ["absent", "changed", "cut off"])
@pytest.mark.usefixtures("small_shards")
def test_a_part_of_another_slice_that_was_damaged_is_named_by_its_slice(
    source: Path, shards: Path, tmp_path: Path, damage: str, cli: Cli
) -> None:
    out = tmp_path / "out"

    def convert(share: str) -> tuple[int, str, str]:
        words = ("--source", source, "--out_dir", out, "--store", "shards", "--workers", 0, "--slice", share)
        return cli("convert", TOY, *words)

    assert convert("1/2")[0] in (0, 1)
    part = sorted((out / ".phi3v/convert/packed").iterdir())[0]
    if damage == "changed":
        flip(part)
    elif damage == "cut off":
        os.truncate(part, 100)
    else:
        part.unlink()
    code, _, err = convert("2/2")
    assert (code, "Traceback" in err) == (2, False)
    assert "parts that had been converted were lost or damaged (1 of " in err
    assert err.endswith("run the same command again with --slice 1/2\n")
    assert convert("1/2")[0] in (0, 1)
    assert tree(out) == tree(shards)


@pytest.mark.parametrize("store", ["files", "shards"])
def test_a_name_that_is_longer_than_a_path_can_be_is_a_reject(tmp_path: Path, store: Any) -> None:
    source = make_source(tmp_path / "source", {"train/g/a.txt": "image 1 a.png", "train/g/b.txt": "bytes png"})
    text = "image 2 " + "d/" * 2100 + "b.png"
    make_source(source, {"train/g/c.txt": text})
    result = phi3v_data.convert(Toy, source, tmp_path / "out", workers=0, store=store)
    assert result.manifest.rejects == {"image-path-unsafe": 1}
    assert "has more than 3,000 bytes" in (tmp_path / "out/rejects.jsonl").read_text()
    assert not validate(tmp_path / "out").summary.problems


@pytest.mark.parametrize("boot", ["the same boot", "another boot"])
@pytest.mark.usefixtures("small_shards")
def test_a_part_whose_images_are_lost_is_converted_again(
    source: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: str
) -> None:
    """Cut off, absent, or, after the machine was restarted, of other bytes."""
    out = tmp_path / "out"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(store_writer.StoreWriter, "finish", full)
        with pytest.raises(UserError, match="the disk is full: make room and run the same command"):
            phi3v_data.convert(Toy, source, out, workers=0, store="shards")
    assert sorted(path.name for path in out.iterdir()) == [".phi3v"]
    parts = sorted((out / ".phi3v/convert/packed").iterdir())
    assert len(parts) > 5
    if boot == "the same boot":
        os.truncate(parts[1], 100)
        parts[2].unlink()
    else:
        overwrite(parts[3], 600, b"\0" * 20)
        monkeypatch.setattr("phi3v_data.writing.resume.boot_id", lambda: boot)
    result = phi3v_data.convert(Toy, source, out, workers=0, store="shards")
    assert 40 < result.resumed < 57
    assert tree(out) == tree(shards)


def test_a_generator_writes_shards_too(source: Path, tmp_path: Path) -> None:
    name = f"{TOY.rpartition(':')[0]}:drafts"
    for store in ("files", "shards"):
        phi3v_data.convert(name, source, tmp_path / store, workers=0, store=store)
    assert texts(tmp_path / "shards") == texts(tmp_path / "files")
    assert image_bytes(tmp_path / "shards") == image_bytes(tmp_path / "files")


def test_an_import_writes_shards_too(tmp_path: Path, cli: Cli) -> None:
    from PIL import Image

    rows = []
    for number in range(5):
        Image.fromarray(noise(number, 8, "colour")).save(tmp_path / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"It is {number}."}]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for store in ("files", "shards"):
        code, _, err = cli(
            *("import", "llava", tmp_path / "rows.json", "--out_dir", tmp_path / store),
            *("--store", store, "--workers", 0),
        )
        assert code == 0, err
    assert texts(tmp_path / "shards") == texts(tmp_path / "files")
    assert image_bytes(tmp_path / "shards") == image_bytes(tmp_path / "files")
    assert (tmp_path / "shards/shards/images-000000.tar").is_file()


def test_a_set_without_images_has_no_shards(tmp_path: Path) -> None:
    make_source(tmp_path / "source", {"train/g/a.txt": "user no image\nanswer none"})
    phi3v_data.convert(Toy, tmp_path / "source", tmp_path / "out", workers=0, store="shards")
    assert sorted(tree(tmp_path / "out")) == ["dataset.json", "toy_train.jsonl"]
    assert json.loads((tmp_path / "out/dataset.json").read_text())["format"] == 1


def test_readers_of_format_1_refuse_shards(shards: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    formats = [json.loads((directory / "dataset.json").read_text())["format"] for directory in (files, shards)]
    assert formats == [1, 2]
    monkeypatch.setattr("phi3v_data.dataset.FORMAT_VERSION", 1)
    with pytest.raises(UserError, match="format 2 was written by a newer phi3v than this one, which reads format 1"):
        read_manifest(shards)


def test_an_image_takes_one_read(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    pread = os.pread

    def counted(descriptor: int, size: int, offset: int) -> bytes:
        calls.append((size, offset))
        return pread(descriptor, size, offset)

    path = shards / "images/train/s007.png"
    expected = read_image_file(path)
    monkeypatch.setattr(os, "pread", counted)
    assert read_image_file(path) == expected
    assert [size for size, _ in calls] == [len(expected)]


# Two ways, and over one another


def test_there_and_back(files: Path, shards: Path, tmp_path: Path, cli: Cli) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    code, out, err = cli("store", files, there, "--store", "shards")
    assert (code, err) == (0, "")
    assert out == f"{there}: 54 samples (train 44, val 10), 54 images\n"
    assert texts(there) == texts(shards)
    with tarfile.open(there / "shards/images-000000.tar") as archive:
        used = [name for split in Dataset(files) for sample in Dataset(files)[split] for name in sample.images]
        assert archive.getnames() == list(dict.fromkeys(used))
    assert image_bytes(there) == image_bytes(files)
    assert cli("store", there, back, "--store", "files")[0] == 0
    assert tree(back) == tree(files)
    assert cli("store", there, back, "--store", "files")[1].startswith(f"{back}: already complete: ")
    code, _, err = cli("store", files, tmp_path / "again", "--store", "files")
    assert (code, err) == (
        2,
        f"error: {files}: its images are stored as files already; copy it with cp -r, or use it as it is\n",
    )


def test_the_other_store_over_a_set_is_one_sentence_and_overwrite_does_it(
    source: Path, files: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    phi3v_data.convert(Toy, source, out, workers=0)
    with pytest.raises(UserError) as refused:
        phi3v_data.convert(Toy, source, out, workers=0, store="shards")
    assert str(refused.value) == (
        f"{out} was converted with --store files: `phi3v-data store {out} OUT --store shards` makes the other kind of "
        "it without converting again; --overwrite converts again"
    )
    assert tree(out) == tree(files)
    phi3v_data.convert(Toy, source, out, workers=0, store="shards", overwrite=True)
    assert image_bytes(out) == image_bytes(files)
    assert (out / "images").is_file()
    phi3v_data.convert(Toy, source, out, workers=0, overwrite=True)
    assert tree(out) == tree(files)


def test_a_folder_or_file_of_the_users_own_is_not_replaced(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    phi3v_data.convert(Toy, source, out, workers=0)
    (out / "shards").mkdir()
    with pytest.raises(UserError, match="out/shards is not part of a finished set; nothing was overwritten"):
        phi3v_data.convert(Toy, source, out, workers=0, store="shards", overwrite=True)
    (out / "shards").rmdir()
    phi3v_data.convert(Toy, source, out, workers=0, store="shards", overwrite=True)
    (out / "shards/mine.txt").touch()
    with pytest.raises(UserError, match=r"shards/mine.txt is not a shard of .*out; nothing was overwritten: move it"):
        phi3v_data.convert(Toy, source, out, workers=0, overwrite=True)
    assert (out / "images").is_file()


def test_settings_that_do_not_go_together(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--plain needs --store files"):
        phi3v_data.convert(Toy, source, tmp_path / "out", store="shards", plain=True)
    with pytest.raises(UserError, match="store is 'tar'; it can be files or shards"):
        phi3v_data.convert(Toy, source, tmp_path / "out", store="tar")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


# Commands on sets


@pytest.mark.parametrize("store", ["files", "shards"])
def test_commands_that_write_a_set_give_the_same_set(files: Path, shards: Path, tmp_path: Path, store: Any) -> None:
    """From files into files, from shards into both."""
    calls: dict[str, Callable[..., object]] = {
        "split": lambda of, out, **how: split_set(of, out, "train=0.7,val=0.3", seed=1, **how),
        "merge": lambda of, out, **how: merge_sets([of, tmp_path / "split-files"], out, **how),
        "clean": lambda of, out, **how: clean_set(of, out, fix=True, drop=["leak-group"], **how),
    }
    for command, call in calls.items():
        call(files, tmp_path / f"{command}-files")
        call(shards, tmp_path / f"{command}-other", store=store)
        expected, made = tmp_path / f"{command}-files", tmp_path / f"{command}-other"
        assert (made / "images").is_dir() == (store == "files")
        assert texts(made) == texts(expected)
        assert image_bytes(made) == image_bytes(expected)
        assert json.loads((made / "dataset.json").read_text())["format"] == (1 if store == "files" else 2)
        assert validate(made).summary.problems == validate(expected).summary.problems


def test_images_that_leave_their_shards_are_told_what_keeps_them_there(
    files: Path, shards: Path, tmp_path: Path, cli: Cli
) -> None:
    copied = (
        "note: 54 of 54 images copied, because they cannot be linked (another disk, files of another owner, or images "
        "inside shards); --store shards keeps them in shards\n"
    )
    share = ("--split", "train=0.5,val=0.5")
    assert cli("split", shards, tmp_path / "split", *share)[::2] == (0, copied)
    assert cli("split", shards, tmp_path / "packed", *share, "--store", "shards")[::2] == (0, "")
    assert cli("split", files, tmp_path / "linked", *share)[::2] == (0, "")


def test_commands_that_only_read_say_the_same(files: Path, shards: Path, tmp_path: Path, cli: Cli) -> None:
    for words in (["stats"], ["preview", "--split", "val", "--row", "9"], ["validate"]):
        said = [cli(words[0], directory, *words[1:]) for directory in (files, shards)]
        assert said[1][1].replace(str(shards), str(files)) == said[0][1]
        assert said[0][0] == said[1][0]
    for name in ("files", "shards"):
        assert cli("export", "llava", {"files": files, "shards": shards}[name], "--out", tmp_path / name)[0] == 0
        cli("validate", {"files": files, "shards": shards}[name], "--html", tmp_path / f"{name}.html")
    exported = [tree(tmp_path / name) for name in ("files", "shards")]
    assert exported[0] == exported[1]
    pages = [(tmp_path / f"{name}.html").read_text() for name in ("files", "shards")]
    shown = [page.count("data:image/") for page in pages]
    assert shown[0] == shown[1] > 0
    code, _, err = cli("export", "croissant", shards, "--out", tmp_path / "croissant.json")
    assert code == 2
    assert "describes image files, and these images are in shards; describe a copy made with `phi3v-data store" in err


# What may happen to a directory


def test_a_copy_a_move_and_other_times_change_nothing(files: Path, copy: Path) -> None:
    expected = image_bytes(files)
    assert image_bytes(copy) == expected
    moved = copy.rename(copy.with_name("moved"))
    for path in (moved / "shards").iterdir():
        os.utime(path, (1, 1))
    assert image_bytes(moved) == expected
    assert validate(moved).summary.problems == validate(files).summary.problems


def first_shard(directory: Path) -> Path:
    return directory / "shards/images-000000.tar"


def overwrite(path: Path, at: int, data: bytes) -> None:
    """Change a file in place and restore its time."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def exchange(path: Path) -> None:
    other = path.with_name("images-000001.tar").read_bytes()
    path.write_bytes(other[: path.stat().st_size].ljust(path.stat().st_size, b"\0"))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "the shard shards/images-000000.tar is missing; copy shards/ and images"),
    "cut": (lambda path: os.truncate(path, 4096), "is not the file that the index was made for"),
    "longer": (lambda path: os.truncate(path, 20480), "is not the file that the index was made for"),
    "changed": (lambda path: overwrite(path, 540, b"\x01"), "was changed or damaged"),
    "exchanged": (exchange, "was changed or damaged"),
    "link": (
        lambda path: path.symlink_to(path.rename(path.parents[1] / "elsewhere")),
        "is a link or behind one, and links are not followed",
    ),
    "folder": (
        lambda path: path.parent.symlink_to(path.parent.rename(path.parents[1] / "elsewhere")),
        "is a link or behind one, and links are not followed",
    ),
    "a folder in its place": (
        folder_instead,
        "the shard shards/images-000000.tar is not the file that the index was made for; copy shards/ and images",
    ),
    "pipe": (pipe, "is not the file that the index was made for"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_named_at_the_rows_of_its_images(copy: Path, tmp_path: Path, damage: str) -> None:
    """No other image is returned; `changed` hits one image; a validated directory is validated again."""
    assert kills.in_child(lambda: validate(copy)) == 0  # in another process, which keeps shards open
    with tarfile.open(first_shard(copy)) as archive:
        inside = archive.getnames()
    change, words = DAMAGE[damage]
    change(first_shard(copy))
    report = validate(copy)
    found = [each for each in report.problems if each.code == "image-unreadable"]
    named = {name for name in inside if any(name in each.message for each in found)}
    assert all(words in each.message and each.line for each in found), found
    if damage == "changed":
        assert len(named) == 1
    elif damage == "exchanged":
        assert named == set(inside)
    else:
        assert named >= set(inside)
    with pytest.raises(OSError, match=words):
        read_image_file(copy / "images" / min(named))
    with pytest.raises(UserError, match="cannot be read"):
        Dataset(copy).image_bytes(min(named))
    with pytest.raises(UserError, match="cannot be read"):
        merge_sets([copy], tmp_path / "merged")
    with pytest.raises(UserError, match="cannot be read"):
        change_store(copy, tmp_path / "files", "files")
    assert not (tmp_path / "files/dataset.json").exists()


def forge(directory: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Write the index of a directory again, with a right checksum, after `change(header, columns)`."""
    found = read_columns(directory / "images", MAGIC, 1 << 30)
    assert found is not None
    header, body = found
    count = header["count"]
    columns = {
        name: np.frombuffer(body, np.int64, count, 8 * count * number).copy() for number, name in enumerate(COLUMNS)
    }
    columns["blob"] = bytearray(body[8 * count * len(COLUMNS) :])  # type: ignore[assignment]
    change(header, columns)
    write_columns(directory / "images", MAGIC, header, list(columns.values()))


def put(name: str, entry: int, value: int) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda header, columns: columns[name].__setitem__(entry, value)


def header_of(**values: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda header, columns: header.update(values)


def shard(entry: int, name: Any, size: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda header, columns: header["shards"].__setitem__(entry, [name, size])


def begin_within(header: dict[str, Any], columns: dict[str, Any]) -> None:
    """The name before é.png ends one byte later."""
    columns["ends"][columns["ends"] == bytes(columns["blob"]).index("é".encode())] += 1


FORGED: dict[str, Callable[[dict[str, Any], dict[str, Any]], object]] = {
    "an offset beyond the file": put("offsets", -1, 1 << 40),
    "an image that ends beyond the file": put("sizes", -1, 9_000),
    "an offset below zero": put("offsets", 3, -512),
    "an offset in the header of the first member": put("offsets", 0, 0),
    "a size below zero": put("sizes", 3, -1),
    "a sum that overflows": put("sizes", 3, (1 << 63) - 1),
    "two images at one place": lambda header, columns: columns["offsets"].__setitem__(4, columns["offsets"][3]),
    "an image within another": lambda header, columns: columns["sizes"].__setitem__(3, columns["sizes"][3] + 600),
    "a shard that is not listed": put("shard_of", -1, 99),
    "a shard below zero": put("shard_of", 0, -1),
    "an entry that is none": put("order", 0, 99_999),
    "an entry below zero": put("order", 0, -99_999),
    "a listed entry that is none": put("listing", 0, 99_999),
    "one entry listed throughout": lambda header, columns: columns["listing"].fill(0),
    "one entry for all hashes": lambda header, columns: columns["order"].fill(0),
    "hashes out of order": lambda header, columns: columns["hashes"].__setitem__(slice(None), columns["hashes"][::-1]),
    "hashes of other names": lambda header, columns: columns["hashes"].fill(7),
    "names that end before they begin": put("ends", 3, 0),
    "names that end beyond the text": put("ends", -1, 1 << 40),
    "names that are not UTF-8": lambda header, columns: columns["blob"].__setitem__(3, 0xFF),
    "a name that begins within a character": begin_within,
    "a huge count": header_of(count=1 << 61),
    "a count below zero": header_of(count=-1),
    "a count that is no number": header_of(count="53"),
    "no count": lambda header, columns: header.pop("count"),
    "shards that are no list": header_of(shards=3),
    "a shard above the folder": shard(0, "../secret.tar", 10_000),
    "a shard with a path": shard(0, "/etc/passwd.tar", 10_000),
    "a shard without a name": shard(0, None, 10_000),
    "a shard twice": shard(0, "images-000001.tar", 10_000),
    "a size of a shard that is huge": shard(0, "images-000000.tar", 1 << 70),
}


@pytest.mark.parametrize("what", FORGED)
def test_an_index_with_numbers_that_cannot_be_is_refused(copy: Path, what: str, cli: Cli) -> None:
    forge(copy, FORGED[what])
    with pytest.raises(
        NotADirectoryError, match=r"is a damaged index of images .*; copy it again together with shards"
    ):
        read_image_file(copy / "images/train/s001.png")
    code, out, err = cli("validate", copy, "--level", "quick")
    assert (code, "Traceback" in err) == (1, False)
    assert "is a damaged index of images" in out + err


def test_an_index_whose_bytes_were_changed_is_refused(copy: Path) -> None:
    overwrite(copy / "images", 200, b"\x7f")
    with pytest.raises(NotADirectoryError, match=r"is a damaged index of images \(its checksum does not match"):
        read_image_file(copy / "images/train/s001.png")


def named(*names: bytes) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Give the first entries other names, with right hashes."""

    def change(header: dict[str, Any], columns: dict[str, Any]) -> None:
        ends = columns["ends"].tolist()
        old = [bytes(columns["blob"][start:end]) for start, end in zip([0, *ends], ends, strict=False)]
        new = [*names, *old[len(names) :]]
        columns["blob"][:] = b"".join(new)
        columns["ends"][:] = np.cumsum([len(name) for name in new])
        hashes = np.array([xxhash.xxh3_64_intdigest(name) - (1 << 63) for name in new], np.int64)
        columns["order"][:] = np.argsort(hashes, kind="stable")
        columns["hashes"][:] = hashes[columns["order"]]

    return change


BAD_NAMES: dict[str, tuple[tuple[bytes, ...], str]] = {
    "absolute": ((b"/etc/passwd.png",), "the name '/etc/passwd.png' is absolute"),
    "absolute, without a folder": ((b"/passwd.png",), "the name '/passwd.png' is absolute"),
    "a folder above": ((b"../../x.png",), "the name '../../x.png' has '..'"),
    "the folder above": ((b"..",), "the name '..' has '..'"),
    "above within": ((b"a/../../x.png",), "has '..'"),
    "the folder": ((b".",), "has an empty or '.' component"),
    "two slashes": ((b"a//x.png",), "has an empty or '.' component"),
    "a slash at the end": ((b"a.png/",), "has an empty or '.' component"),
    "a backslash": ((rb"..\x.png",), "has a backslash"),
    "a drive": ((b"C:x.png",), "is absolute"),
    "NUL": ((b"a\0.png",), "has a control character"),
    "a line break": ((b"a\n.png",), "a name has a line break"),
    "DEL": ((b"a\x7f.png",), "has a control character"),
    "a surrogate": ((b"\xed\xa0\x80.png",), "has a wrong value"),
    "a device": ((b"a/AUX.png",), "reserves for a device"),
    "a long component": ((b"a" * 256,), "has a component of more than 255 bytes"),
    "a long component of other letters": ((("é" * 128).encode(),), "has a component of more than 255 bytes"),
    "a long name": ((b"d/" * 2048 + b"x",), "has more than 4,095 bytes"),
    "a file and a folder": ((b"a", b"b.png", b"a/b/c.png"), "'a' names a file and a folder alike"),
    "one name twice": ((b"a.png", b"b.png", b"a.png"), "the name 'a.png' is there twice"),
}


@pytest.mark.parametrize("what", BAD_NAMES)
def test_an_index_with_a_bad_name_is_refused_as_a_whole(copy: Path, tmp_path: Path, what: str, cli: Cli) -> None:
    names, words = BAD_NAMES[what]
    forge(copy, named(*names))
    with pytest.raises(NotADirectoryError) as refused:
        read_image_file(copy / "images/val/s001.png")
    assert words in str(refused.value)
    code, out, err = cli("merge", copy, tmp_path / "merged", "--store", "files")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {copy}/images")
    assert "is a damaged index of images" in err
    assert "Traceback" not in err


def test_an_index_with_plain_names_that_look_like_bad_ones_is_read(copy: Path) -> None:
    names = [b"common/con1.png", b".a/..b.png", b"a" * 251 + b".png", "ﬀ.png".encode(), b"a b/c.png", b"a.b", b"a"]
    with tarfile.open(first_shard(copy)) as archive:
        before = [read_image_file(copy / "images" / name) for name in archive.getnames()[: len(names)]]
    forge(copy, named(*names))
    assert [read_image_file(copy / "images" / name.decode()) for name in names[: len(before)]] == before
    assert all(read_image_file(copy / "images" / name.decode()) for name in names)


@pytest.mark.parametrize("kind", ["an index", "an index of an export", "a folder"])
@pytest.mark.parametrize("command", ["merge", "split", "clean", "store"])
def test_a_row_that_names_a_file_of_the_machine_gets_none_of_it(
    copy: Path, files: Path, tmp_path: Path, kind: str, command: str, cli: Cli
) -> None:
    """An absolute path, and one with `..`, which the index has, too."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(read_image_file(files / "images/train/s001.png") + b"SECRET")
    stranger = copy
    if kind == "an index":
        forge(copy, named(os.fsencode(secret), b"../../secret.png"))
    elif kind == "an index of an export":
        images = [PackedImage(name, 0, 512, 80) for name in (str(secret), "../../secret.png", "train/s002.png")]
        write_pack(tmp_path / "index", "tar", copy / "shards", ["images-000000.tar"], images)
        os.replace(tmp_path / "index", copy / "images")
    else:
        stranger = shutil.copytree(files, tmp_path / "stranger", ignore=shutil.ignore_patterns(".phi3v"))
    rows = stranger / "toy_train.jsonl"
    text = rows.read_text().replace("train/s000.png", str(secret)).replace("train/s001.png", "../../secret.png")
    rows.write_text(text)
    for store in ("files", "shards"):
        out = tmp_path / "out" / store
        more = ("--split", "train=0.5,val=0.5") if command == "split" else ()
        code, _, err = cli(command, stranger, out, "--store", store, *more)
        assert "Traceback" not in err
        assert "no option" not in err
        assert not [path for path in out.rglob("*") if path.is_file() and b"SECRET" in path.read_bytes()]
        if kind != "a folder":
            assert code == 2
            assert not (out / "dataset.json").exists()


def test_a_size_of_an_image_is_limited(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phi3v_data.media.pack.LIMITS", replace(LIMITS, file_bytes=100))
    with pytest.raises(TooLargeImageError, match="over the limit of 100"):
        read_image_file(copy / "images/train/s001.png")


def test_headers_of_images_are_read_like_those_of_files(shards: Path) -> None:
    info = probe(shards / f"images/{LONG}/b.png")
    assert (info.width, info.height, info.format) == (8, 8, "PNG")
    with pytest.raises(FileNotFoundError):
        read_image_file(shards / "images/train/none.png")


def test_a_shard_that_is_replaced_while_it_is_open_is_not_read(copy: Path) -> None:
    """So that every process sees the same, whenever it opened the shard."""
    path = copy / "images/train/s001.png"
    before = read_image_file(path)
    shard = first_shard(copy)
    data = shard.read_bytes()
    shard.unlink()
    with pytest.raises(OSError, match="is missing"):
        read_image_file(path)
    shard.write_bytes(data)
    assert read_image_file(path) == before


def test_a_folder_in_the_place_of_a_shard_leaves_no_descriptor_open(copy: Path) -> None:
    """Also of the index of an export."""
    with tarfile.open(first_shard(copy)) as archive:
        name = archive.getnames()[0]
    write_pack(copy / "export", "tar", copy / "shards", ["images-000000.tar"], [PackedImage("a.png", 0, 512, 80)])
    folder_instead(first_shard(copy))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(OSError, match=r"images-000000.tar is not the file that the index was made for"):
            read_image_file(copy / "images" / name)
        with pytest.raises(OSError, match=r"was changed since it was opened; .*images-000000.tar"):
            read_image_file(copy / "export/a.png")
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_indexes_of_many_sets_stay_open(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [shutil.copytree(copy, tmp_path / f"set {number}") for number in range(20)]
    opened: list[Path] = []
    read = read_columns

    def counted(path: Path, *args: Any, **how: Any) -> Any:
        opened.append(path)
        return read(path, *args, **how)

    monkeypatch.setattr("phi3v_data.media.stored.read_columns", counted)
    for name in ("train/s000.png", "train/s001.png", "train/s002.png"):
        assert len({read_image_file(each / "images" / name) for each in sets}) == 1
    assert opened == [each / "images" for each in sets]


def test_shards_stay_open_only_while_descriptors_are_left(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phi3v_data.media.pack.KEPT_BELOW", 0)
    before = os.listdir("/proc/self/fd")
    assert len(image_bytes(copy)) == 54
    assert len(os.listdir("/proc/self/fd")) <= len(before) + 4  # of the rows


def test_an_index_that_is_cut_off_while_it_is_open_ends_no_process(copy: Path) -> None:
    """As `cp -r` over a set does it, and `rsync --inplace`."""

    def cut() -> None:
        pack = open_pack(copy / "images")
        os.truncate(copy / "images", 0)
        assert pack.name(5)
        with pytest.raises(NotADirectoryError):
            read_image_file(copy / "images/train/s001.png")

    assert kills.in_child(cut) == 0
