"""Sources in a store: converted and imported with the bytes of the same folder; a changed object is named on resume."""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from stub_store import Stub

from phi3v_data.conversion import convert
from phi3v_data.draft import Converter, DatasetInfo, Draft, Item, Options
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.importing import import_rows
from phi3v_data.remote.cache_folders import cache_home
from phi3v_data.remote.store import Store, StoredObject
from phi3v_data.slices import convert_slice
from phi3v_data.sources.bucket import copy_here
from phi3v_data.sources.source import Source


def files(folder: Path) -> dict[str, bytes]:
    """All files of a set but those of its journal."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".phi3v" not in path.parts
    }


def put_images(folder: Path, names: Iterable[str]) -> None:
    """Write small images."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (number * 20, 90, 200)).save(folder / name)


def test_a_folder_of_images_is_converted_with_the_same_bytes(stub: Stub, tmp_path: Path) -> None:
    put_images(stub.folder / "pets", [f"train/{kind}/{number}.jpg" for kind in ("cat", "dog") for number in range(3)])
    convert("image_folder", stub.folder / "pets", tmp_path / "here", workers=0)
    convert("image_folder", "s3://b/pets", tmp_path / "there", workers=0)
    assert files(tmp_path / "there") == files(tmp_path / "here")
    with pytest.raises(NotFoundError, match=r"^s3://b/nothing: nothing is there$"):
        convert("image_folder", "s3://b/nothing", tmp_path / "none", workers=0)


def test_a_file_of_rows_is_imported_with_the_same_bytes(stub: Stub, tmp_path: Path) -> None:
    put_images(stub.folder / "rows", ["images/0.jpg"])
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "Blue."}]
    (stub.folder / "rows/data.json").write_text(json.dumps([{"conversations": turns, "images": ["images/0.jpg"]}]))
    import_rows("sharegpt", stub.folder / "rows", tmp_path / "here", workers=0)
    import_rows("sharegpt", "s3://b/rows", tmp_path / "there", workers=0)
    assert files(tmp_path / "there") == files(tmp_path / "here")


def test_of_an_address_of_a_file_the_folder_is_asked_for_if_its_rows_name_images(stub: Stub, tmp_path: Path) -> None:
    put_images(stub.folder / "rows", ["images/0.jpg"])
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "Blue."}]
    (stub.folder / "rows/data.json").write_text(json.dumps([{"conversations": turns, "images": ["images/0.jpg"]}]))
    with pytest.raises(UserError) as refused:
        import_rows("sharegpt", "s3://b/rows/data.json", tmp_path / "file", workers=0)
    assert str(refused.value).endswith(
        "data.json, line 1, images[0]: there is no image 'images/0.jpg', as of the store only the file itself was "
        "copied: as SRC, give the folder that has data and images, with --data FILE, or --images_root s3://..."
    )
    options = {"data": "data.json"}
    assert import_rows("sharegpt", "s3://b/rows", tmp_path / "folder", options=options, workers=0).rejects == 0
    assert (tmp_path / "folder/images/0.jpg").read_bytes() == (stub.folder / "rows/images/0.jpg").read_bytes()


def test_parquet_is_read_by_ranges_and_not_copied(stub: Stub) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (stub.folder / "table/data").mkdir(parents=True)
    path = stub.folder / "table/data/train-00000-of-00001.parquet"
    table = pyarrow.table({"n": list(range(100)), "blob": [bytes([n]) * 40_000 for n in range(100)]})
    parquet.write_table(table, path, row_group_size=10, compression="none", use_dictionary=False)
    source = Source.open("s3://b/table")
    assert (source.kind, dict(source.splits())) == ("parquet", {"train": 100})
    assert [row["n"] for row in source.rows("train", columns=["n"])] == list(range(100))
    assert stub.bodies < path.stat().st_size // 4  # the blobs were not asked for
    places = list(source.places("train"))
    assert places[57].read() == {"n": 57, "blob": bytes([57]) * 40_000}
    assert not (cache_home() / "sources").exists()
    parquet.write_table(table.slice(1), path)
    with pytest.raises(UserError, match="changed since it was opened"):
        places[90].read()


def test_a_copy_is_resumed_object_by_object(stub: Stub) -> None:
    put_images(stub.folder / "pets", ["a.png", "b.png", "c/d.png"])
    folder = copy_here("s3://b/pets")
    assert files(folder) == files(stub.folder / "pets")
    asked = len(stub.gets)
    copy_here("s3://b/pets")
    assert len(stub.gets) == asked
    (stub.folder / "pets/a.png").write_bytes(b"another")
    (stub.folder / "pets/b.png").unlink()
    assert files(copy_here("s3://b/pets")) == files(stub.folder / "pets") == files(folder)
    assert [key for key, _ in stub.gets[asked:]] == ["pets/a.png"]


class Lines(Converter[Options]):
    """One sample for each line of a list, which is read by the plan."""

    name = "lines"

    def plan(self, source: Source, options: Options) -> Iterable[Item]:
        for file in source.files((".txt",)):
            for line in file.file.read_text().splitlines():
                yield Item("train", line)

    def convert(self, item: Item, options: Options) -> Draft:
        return Draft(user="Which line?", assistant=item.key)

    def describe(self, source: Source, options: Options) -> DatasetInfo:
        return DatasetInfo("lines", task="chat")


def test_an_object_that_changed_is_named_when_a_conversion_resumes(stub: Stub, tmp_path: Path) -> None:
    (stub.folder / "lists").mkdir(parents=True)
    (stub.folder / "lists/names.txt").write_text("one\ntwo\n")
    settings: dict[str, Any] = {"workers": 0}

    def interrupt(stage: str, done: int, total: int | None) -> None:
        if stage == "finish":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(Lines, "s3://b/lists", tmp_path / "out", progress=interrupt, **settings)
    (stub.folder / "lists/names.txt").write_text("one\nTWO\n")
    with pytest.raises(UserError, match=r"names\.txt"):
        convert(Lines, "s3://b/lists", tmp_path / "out", **settings)
    (stub.folder / "lists/names.txt").write_text("one\ntwo\n")  # another etag, the same content
    assert convert(Lines, "s3://b/lists", tmp_path / "out", **settings).resumed == 2


def test_a_cache_that_cannot_be_made_is_one_sentence(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.folder.mkdir()
    stub.count = 1  # each prefix has an object
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"^s3://b/set cannot be copied to .*; XDG_CACHE_HOME is the place for it$"):
        copy_here("s3://b/set")


@pytest.mark.parametrize("place", ["files/set", "files"])
def test_a_link_in_the_place_of_a_copy_is_replaced_and_nothing_behind_it_touched(
    stub: Stub, tmp_path: Path, place: str
) -> None:
    (stub.folder / "set").mkdir(parents=True)
    (stub.folder / "set/a.txt").write_bytes(b"a")
    copy = copy_here("s3://b/set")
    other = tmp_path / "other"
    (other / "set").mkdir(parents=True)
    (other / "mine.txt").write_bytes(b"1")
    (other / "set/mine.txt").write_bytes(b"2")
    link = copy.parents[1] / place
    shutil.rmtree(link)
    link.symlink_to(other)
    assert copy_here("s3://b/set") == copy
    assert (copy / "a.txt").read_bytes() == b"a"
    assert not link.is_symlink()
    assert files(other) == {"mine.txt": b"1", "set/mine.txt": b"2"}


def test_an_empty_object_with_the_name_of_the_folder_is_not_the_source(stub: Stub, monkeypatch: Any) -> None:
    """Some tools make one for each folder; the test's store cannot have both, as its objects are files."""
    (stub.folder / "set").mkdir(parents=True)
    (stub.folder / "set/a.txt").write_bytes(b"a")
    find = Store.find
    monkeypatch.setattr(Store, "find", lambda self, name="": find(self, name) or StoredObject(name, 0, "e"))
    assert [path.name for path in copy_here("s3://b/set").iterdir()] == ["a.txt"]


def test_slices_on_machines_with_caches_of_their_own_unpack_an_archive_of_a_bucket_once(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_images(tmp_path / "pets", [f"train/{name}/{number}.png" for name in ("cat", "dog") for number in range(4)])
    stub.folder.mkdir()
    shutil.make_archive(str(stub.folder / "pets"), "gztar", tmp_path / "pets")
    for share in ("1/2", "2/2"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache{share[0]}"))
        done = convert_slice("image_folder", "s3://b/pets.tar.gz", tmp_path / "out", share, workers=0)
    assert done.whole is not None
    assert (done.samples, done.whole.samples) == (4, 8)
    changed = (stub.folder / "pets.tar.gz").read_bytes()
    (stub.folder / "pets.tar.gz").write_bytes(changed + b"\0")
    convert_slice("image_folder", "s3://b/pets.tar.gz", tmp_path / "again", "1/2", workers=0)
    (stub.folder / "pets.tar.gz").write_bytes(changed)
    with pytest.raises(UserError, match="it has changed or is a copy; give all slices the same file"):
        convert_slice("image_folder", "s3://b/pets.tar.gz", tmp_path / "again", "2/2", workers=0)


def test_only_copies_are_removed_where_the_folder_of_copies_is_a_link(stub: Stub, tmp_path: Path) -> None:
    """As of a user who has moved it to another disk."""
    old = 1_600_000_000
    for name in ("photos", "0123456789abcdef", "fedcba9876543210.77.gone"):
        (tmp_path / "disk" / name).mkdir(parents=True)
        (tmp_path / "disk" / name / "file").write_bytes(b"1")
        os.utime(tmp_path / "disk" / name, (old, old))
    cache_home().mkdir(parents=True, exist_ok=True)
    (cache_home() / "sources").symlink_to(tmp_path / "disk")
    (stub.folder / "set").mkdir(parents=True)
    (stub.folder / "set/a.txt").write_bytes(b"a")
    copy = copy_here("s3://b/set")
    assert {path.name for path in (tmp_path / "disk").iterdir()} == {"photos", copy.parents[1].name}
    assert (tmp_path / "disk/photos/file").read_bytes() == b"1"
