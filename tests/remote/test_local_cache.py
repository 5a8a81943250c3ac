"""The cache on the local disk: bounded, shared, private, whole after any kill; copies that nobody uses are removed."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from colour_sets import colour_directory
from kills import fork, wait
from PIL import Image
from shard_files import write_shards
from stub_store import Stub

from phi3v_data.errors import UserError
from phi3v_data.media.packed import open_pack
from phi3v_data.remote import cache_folders
from phi3v_data.remote.cache import RangeCache, range_cache
from phi3v_data.remote.cache_folders import UNUSED_DAYS, cache_home, hold
from phi3v_data.shards.view import data_directory
from phi3v_data.sources.bucket import copy_here
from phi3v_data.validate import validate

LONG_AGO = time.time() - (UNUSED_DAYS + 1) * 86400


def tree(folder: Path) -> dict[str, bytes]:
    """The files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(stub: Stub, **files: bytes) -> None:
    """Write objects; two underscores in a name are a slash, one is a dot."""
    for name, data in files.items():
        path = stub.folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def test_the_cache_is_bounded_drops_the_oldest_and_finds_damage(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path / "ranges", 100_000)
    fetched: list[int] = []

    def get(number: int) -> bytes:
        def fetch() -> bytes:
            fetched.append(number)
            return bytes([number]) * 9_984  # 10,000 with the digest

        return cache.get(str(number), fetch)

    for number in range(8):
        assert get(number) == bytes([number]) * 9_984
    assert fetched == list(range(8))
    for number in range(8):
        os.utime(cache._path(str(number)), (number, number))
    assert get(0) == bytes([0]) * 9_984  # used now: no longer the oldest
    for number in range(8, 13):
        get(number)
        assert cache.size() <= cache.limit
    assert fetched == list(range(13))
    assert cache.has("0")
    assert not cache.has("1")
    path = cache._path("12")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert get(12) == bytes([12]) * 9_984
    assert fetched[-1] == 12
    left = path.with_name(f"{path.name}.1-1")  # of a killed process, long ago
    left.write_bytes(b"x")
    os.utime(left, (1, 1))
    for number in range(20, 30):
        get(number)
    assert not left.exists()


def test_several_processes_share_the_cache_within_its_limit(tmp_path: Path) -> None:
    """Real processes that want the same ranges in another order each."""
    program = (
        "import random, sys; from pathlib import Path; from phi3v_data.remote.cache import RangeCache\n"
        "cache = RangeCache(Path(sys.argv[1]), 200_000)\n"
        "numbers = list(range(60)); random.Random(int(sys.argv[2])).shuffle(numbers)\n"
        "for n in numbers * 3:\n"
        "    assert cache.get(str(n), lambda: bytes([n]) * 5000) == bytes([n]) * 5000\n"
        "    assert cache.size() <= 230_000, cache.size()\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "ranges"), str(seed)]) for seed in range(3)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]


def test_a_range_that_two_threads_want_is_fetched_once(tmp_path: Path) -> None:
    cache, fetched = RangeCache(tmp_path / "ranges", 1_000_000), []

    def fetch() -> bytes:
        fetched.append(1)
        time.sleep(0.05)
        return b"data"

    threads = [threading.Thread(target=cache.get, args=("key", fetch)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1


def test_a_process_forked_during_a_fetch_keeps_no_lock(tmp_path: Path) -> None:
    """Workers of a loader are forked while threads fetch; a lock that such a worker kept would never be released."""
    cache = RangeCache(tmp_path / "ranges", 1_000_000)
    read_end, write_end = os.pipe()
    children: list[int] = []

    def fetch() -> bytes:
        children.append(fork(lambda: os.read(read_end, 1)))
        return b"data"

    cache.get("one", fetch, together="group")
    waiting = threading.Thread(target=lambda: cache.get("two", lambda: b"more", together="group"), daemon=True)
    waiting.start()
    waiting.join(20)
    os.write(write_end, b"x")
    assert wait(children[0]) == 0
    assert not waiting.is_alive()


def test_only_its_own_files_are_removed_and_no_link_is_followed(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path / "ranges", 50_000)
    for number in range(4):
        cache.put(str(number), bytes(10_000))
    (tmp_path / "mine").mkdir()
    name = next((tmp_path / "ranges").glob("??/*")).name
    for path in (tmp_path / "mine" / name, cache._path("0").parent / "notes.txt"):
        path.write_bytes(bytes(30_000))
        os.utime(path, (1, 1))
    (tmp_path / "ranges/zz").symlink_to(tmp_path / "mine")
    for number in range(4, 12):
        cache.put(str(number), bytes(10_000))
    assert (tmp_path / "mine" / name).exists()
    assert (cache._path("0").parent / "notes.txt").exists()
    assert cache.size() <= 50_000


def test_a_folder_that_cannot_be_written_to_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ranges").write_bytes(b"")  # as any other error of the disk
    cache = RangeCache(tmp_path / "ranges", 1_000_000)
    for _ in range(3):
        assert cache.get("key", lambda: b"data") == b"data"
    assert capsys.readouterr().err == (
        f"{tmp_path}/ranges: nothing can be kept (Not a directory); images in a store are fetched each time\n"
    )


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str, str], Path]]:
    """Mounts a small disk, a folder of its name, with some options; only root may."""
    disks: list[Path] = []

    def make(name: str, options: str) -> Path:
        disk = tmp_path / name
        disk.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("mounting a small disk needs root")
        disks.append(disk)
        return disk

    yield make
    for disk in disks:
        subprocess.run(["umount", "--lazy", disk], check=True)  # this process holds files on it


def test_a_full_disk_costs_only_time_and_no_room_at_all_is_said(
    stub: Stub,
    tmp_path: Path,
    mount: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    directory = colour_directory(tmp_path / "colours")
    noise = Image.frombytes("RGB", (300, 300), os.urandom(270_000))
    noise.save(directory / "images/train0.png", compress_level=0)
    write_shards(directory, stub.folder / "set", "tar", shards=1)
    full = f"{mount('full', 'size=200k')}"
    monkeypatch.setenv("XDG_CACHE_HOME", full)
    assert validate("s3://b/set", workers=0).ok
    assert capfd.readouterr().err == (
        f"{full}/phi3v/ranges: nothing can be kept (No space left on device); images in a store are fetched each time\n"
    )
    for name, options, reason in (
        ("tiny", "size=8k", "phi3v/view/[0-9a-f]+: No space left on device"),
        ("kept", "ro", "phi3v/view/[0-9a-f]+: Read-only file system"),
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", f"{mount(name, options)}")
        expected = (
            f"^s3://b/set: no place for the view: {tmp_path / name}/{reason}; "
            "set XDG_CACHE_HOME to a folder that can be written and has room$"
        )
        with pytest.raises(UserError, match=expected):
            validate("s3://b/set", workers=0)


def test_an_export_on_a_full_disk_has_its_view_in_the_users_cache(
    tmp_path: Path, mount: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    disk = mount("disk", "size=1m")
    write_shards(colour_directory(tmp_path / "colours"), disk / "set", "tar", shards=1)
    (disk / "hog").write_bytes(b"x" * shutil.disk_usage(disk).free)
    assert data_directory(disk / "set").is_relative_to(tmp_path / "cache/phi3v/view")
    assert validate(disk / "set", workers=0).ok


@pytest.mark.parametrize("text", ["", "nonsense", "9" * 5000, "\0\0\0"])
def test_a_damaged_count_is_made_again(tmp_path: Path, text: str) -> None:
    cache = RangeCache(tmp_path / "ranges", 100_000)
    cache.put("a", bytes(9_984))
    (tmp_path / "ranges/bytes").write_text(text)
    cache.put("b", bytes(9_984))
    assert (tmp_path / "ranges/bytes").read_bytes() == b"%020d" % 20_000
    assert cache.size() == 20_000


def test_the_cache_is_private_and_nobody_elses(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(stub, pets__a_png=b"a")
    copy_here("s3://b/pets")
    assert cache_home().stat().st_mode & 0o777 == 0o700
    if os.geteuid() == 0:
        os.chown(cache_home(), 4242, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 4243)
    with pytest.raises(UserError, match=r"phi3v: belongs to another user; set XDG_CACHE_HOME to a folder of your own$"):
        copy_here("s3://b/pets")
    monkeypatch.setenv("PHI3V_CACHE_GB", "50GB")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    with pytest.raises(UserError, match=r"^PHI3V_CACHE_GB is '50GB'; give a number of GB, such as 20$"):
        range_cache()


def test_an_index_in_the_copy_of_a_source_is_not_read(stub: Stub, tmp_path: Path) -> None:
    """Whoever can write to the source could have this machine read any bucket with the user's credentials."""
    write_shards(colour_directory(tmp_path / "colours"), stub.folder / "set", "tar")
    view = data_directory("s3://b/set")
    assert len(open_pack(view / "images")) > 0
    put(stub, trap__images=(view / "images").read_bytes(), trap__data_json=b"[]")
    with pytest.raises(NotADirectoryError, match="made on another machine"):
        open_pack(copy_here("s3://b/trap") / "images")


def test_a_copy_that_nobody_uses_is_removed_after_a_while(stub: Stub) -> None:
    put(stub, old__a_txt=b"a", used__a_txt=b"b", young__a_txt=b"c", new__a_txt=b"d")
    read_end, write_end = os.pipe()
    user = fork(lambda: (copy_here("s3://b/used"), os.write(write_end, b"x"), time.sleep(600)))
    os.read(read_end, 1)
    [used] = (cache_home() / "sources").iterdir()
    old, young = copy_here("s3://b/old"), copy_here("s3://b/young")
    copies = {path: path.parent.parent for path in (old, young)}
    for folder in copies.values():  # as if this process had ended
        os.close(cache_folders._held.pop(folder))
    for folder in (copies[old], used):
        os.utime(folder, (LONG_AGO, LONG_AGO))
    new = copy_here("s3://b/new")
    assert not old.exists()
    assert young.exists()
    assert new.exists()
    assert used.exists()  # it is in use, however old
    os.kill(user, 9)
    wait(user)
    copy_here("s3://b/new")
    assert not used.exists()
    assert tree(copy_here("s3://b/old")) == {"a.txt": b"a"}


def test_views_are_removed_after_a_while_and_when_another_one_takes_their_place(stub: Stub, tmp_path: Path) -> None:
    write_shards(colour_directory(tmp_path / "colours"), stub.folder / "set", "tar")
    write_shards(tmp_path / "colours", stub.folder / "other", "tar")
    first = data_directory("s3://b/set")
    killed = first.with_name(f"{first.name}.killed")  # what a killed process left
    killed.mkdir()
    os.utime(killed, (LONG_AGO, LONG_AGO))
    write_shards(tmp_path / "colours", tmp_path / "changed", "tar", change=lambda row: row.update(group="new"))
    for path in (tmp_path / "changed").iterdir():
        path.replace(stub.folder / "set" / path.name)
    second = data_directory("s3://b/set")
    assert first.exists()  # this process uses it
    assert not killed.exists()
    for folder in (first, second, first.parent):
        os.close(cache_folders._held.pop(folder))
    os.utime(first.parent, (LONG_AGO, LONG_AGO))
    data_directory("s3://b/other")
    assert not first.parent.exists()
    assert hold(data_directory("s3://b/set"))


@pytest.mark.parametrize("name", ["lock", "states.jsonl", "files", "aside"])
def test_a_source_may_have_any_name(stub: Stub, name: str) -> None:
    """Files of the cache itself have such names."""
    (stub.folder / "one").mkdir(parents=True)
    (stub.folder / "one" / name).write_bytes(b"one")
    (stub.folder / "many" / name).mkdir(parents=True)
    (stub.folder / "many" / name / "a.txt").write_bytes(b"a")
    for _ in range(2):
        assert copy_here(f"s3://b/one/{name}").read_bytes() == b"one"
        assert tree(copy_here(f"s3://b/many/{name}")) == {"a.txt": b"a"}


def test_a_copy_follows_names_that_become_folders_and_the_other_way_round(stub: Stub) -> None:
    put(stub, pets__a=b"file", pets__b__c=b"c")
    folder = copy_here("s3://b/pets")
    states = folder.parent.parent / "states.jsonl"
    states.write_bytes(states.read_bytes() + b'5\n["half", 3\n\xff\n')
    (stub.folder / "pets/a").unlink()
    (stub.folder / "pets/b/c").unlink()
    (stub.folder / "pets/b").rmdir()
    put(stub, pets__a__x=b"x", pets__b=b"file")
    assert tree(copy_here("s3://b/pets")) == {"a/x": b"x", "b": b"file"}
