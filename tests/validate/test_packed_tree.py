"""Images in shards listed as files are: `ImageTree` over an index."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from phi3v_data.media.export_pack import PackedImage, write_pack
from phi3v_data.media.packed import open_pack
from phi3v_data.media.store_writer import StoreWriter
from phi3v_data.media.stored import StoredPack
from phi3v_data.validate.hashes import hash_texts
from phi3v_data.validate.tree import FILE, UNSAFE, ImageTree

NAMES = ["train/b.jpg", "train/a.jpg", "val/é/x y.png", "top.jpg", "train/deep/z.jpg", "val/é.png", "train/c.jpg"]


def store(root: Path, contents: dict[str, bytes]) -> ImageTree:
    root.mkdir()
    writer = StoreWriter(root)
    for name, data in contents.items():
        writer.add(name, data)
    writer.finish()
    return ImageTree(root / "images")


@pytest.mark.parametrize("at_once", [1, 3, 1 << 16])
def test_the_order_and_the_sizes_are_those_of_files(
    at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phi3v_data.validate.tree._PACKED_AT_ONCE", at_once)
    contents = {name: bytes(number + 1) for number, name in enumerate(NAMES)}
    packed = store(tmp_path / "set", contents)
    for name, data in contents.items():
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    files = ImageTree(tmp_path / "files")
    assert list(packed.paths()) == list(files.paths())
    assert packed.sizes.tolist() == files.sizes.tolist()
    assert [packed.index(name) for name in NAMES] == [files.index(name) for name in NAMES]
    assert set(packed.kinds) == {FILE}
    state = (tmp_path / "set/shards/images-000000.tar").stat()
    assert set(packed.mtimes.tolist()) == {state.st_mtime_ns}
    assert set(packed.ctimes.tolist()) == {state.st_ctime_ns}
    assert len(set(packed.inodes.tolist())) == len(NAMES)


def test_paths_are_found_with_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash, order and sorted hash of a path are 24 bytes, sorting takes half as much; the paths are not copied."""
    names = [f"train/{number:040d}.jpg" for number in range(20_000)]
    tree = store(tmp_path / "set", dict.fromkeys(names, b""))
    monkeypatch.setattr("phi3v_data.validate.tree._HASHED_AT_ONCE", 1000)
    wanted = hash_texts(names[::-7])
    tracemalloc.start()
    try:
        found = tree.find(wanted)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [tree.path(index) for index in found.tolist()] == names[::-7]
    assert peak / len(names) < 50
    assert tree.index("train/none.jpg") == -1


def test_another_content_or_place_is_another_state(tmp_path: Path) -> None:
    """Also in a shard that has kept its inode and times."""
    store(tmp_path / "set", {"a.jpg": b"12", "b.jpg": b"34"})
    pack = open_pack(tmp_path / "set" / "images")
    assert isinstance(pack, StoredPack)
    before = pack.places().tolist()
    pack._digests = pack._digests + np.array([1, 0])
    after = pack.places().tolist()
    assert (after[0] != before[0], after[1]) == (True, before[1])
    pack.offsets = pack.offsets + np.array([0, 512])
    moved = pack.places().tolist()
    assert (moved[0], moved[1] != before[1]) == (after[0], True)


def test_a_bad_name_marks_only_itself(tmp_path: Path) -> None:
    """An export may have names that no file here may have; they are refused row by row."""
    shard = tmp_path / "train.tar"
    shard.write_bytes(bytes(4096))
    names = ["good.jpg", "../up.jpg", "CON.jpg", "train/also good.jpg"]
    images = [PackedImage(name, 0, 512 * number, 10) for number, name in enumerate(names)]
    write_pack(tmp_path / "images", "tar", tmp_path, ["train.tar"], images)
    tree = ImageTree(tmp_path / "images")
    assert list(tree.paths()) == names
    assert list(tree.kinds) == [FILE, UNSAFE, UNSAFE, FILE]
