"""A store that fails, drops connections or lists a million keys: repeated, said in one line, never other bytes."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from colour_sets import colour_directory
from in_process import make_cli
from object_stores import forget_stores
from shard_files import write_shards
from stub_store import Stub

from phi3v_data.dataset import Dataset
from phi3v_data.media.images import read_image_file
from phi3v_data.remote import retry
from phi3v_data.remote import store as store_module
from phi3v_data.remote.address import parse_address
from phi3v_data.remote.cache import RangeCache
from phi3v_data.remote.retry import ChangedError, StoreError
from phi3v_data.remote.store import open_store
from phi3v_data.shards.view import data_directory
from phi3v_data.validate import validate


def images(address: "str | Path") -> list[bytes]:
    """All images of a set, row by row."""
    dataset = Dataset(data_directory(address))
    return [
        read_image_file(dataset[split].image_path(name))
        for split in dataset
        for sample in dataset[split]
        for name in sample.images
    ]


@pytest.mark.parametrize(("kind", "fault"), [("tar", "503"), ("parquet", "500"), ("tar", "drop"), ("parquet", "cut")])
def test_half_of_the_requests_fail_and_all_bytes_are_right(
    stub: Stub,
    tmp_path: Path,
    kind: str,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PHI3V_CACHE_GB", "0")
    write_shards(colour_directory(tmp_path / "colours"), stub.folder / "set", kind)
    stub.fail = lambda number: fault if number % 6 in (1, 2, 3) else ""
    assert images("s3://b/set") == images(stub.folder / "set")
    said = capsys.readouterr().err.splitlines()
    if fault in ("drop", "cut") and not said:  # the library of the store has repeated these by itself
        return
    assert len(said) == 1, said
    assert said[0].startswith("s3://b/set/")
    assert "the store failed (" in said[0]
    assert said[0].endswith("); trying again, up to 8 times")


def test_a_store_that_stays_down_is_one_sentence_and_no_fault_of_the_data(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(colour_directory(tmp_path / "colours"), stub.folder / "set", "tar")
    monkeypatch.setenv("PHI3V_CACHE_GB", "0")
    data_directory("s3://b/set")
    asked = len(stub.gets)
    stub.fail = lambda number: "503"
    with pytest.raises(StoreError, match=r"^s3://b/set/\S+: the store failed 8 times in a row \(.*\); run the same"):
        validate("s3://b/set")
    assert len(stub.gets) - asked >= retry.ATTEMPTS


@pytest.mark.parametrize("fault", ["hang", "stall"])
def test_a_store_that_hangs_is_asked_eight_times_and_is_one_sentence(
    stub: Stub, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No request is repeated by the library of the store as well: its 50 for each of the 8 would take hours."""
    write_shards(colour_directory(tmp_path / "colours"), stub.folder / "set", "tar")
    monkeypatch.setattr(store_module, "READ_TIMEOUT", 0.1)
    stub.fail = lambda number: fault
    code, _, err = make_cli(capsys, monkeypatch)("validate", "s3://b/set")
    repeated, ended = err.splitlines()
    assert (code, len(stub.gets)) == (2, 8)
    assert repeated.startswith("s3://b/set/train-000000.tar: the store failed (")
    assert ended.startswith("error: s3://b/set/train-000000.tar: the store failed 8 times in a row (")
    assert ended.endswith("); run the same command again later")


def test_an_upload_that_the_store_does_not_read_ends(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that accepts connections and never reads: no limit of the library's own ends that."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        forget_stores()
        monkeypatch.setattr(store_module, "longest_upload", lambda size: 0.2)
        monkeypatch.setitem(store_module._ATTEMPTS, "s3", 2)
        with open(tmp_path / "shard.tar", "wb") as file:
            file.truncate(24 << 20)
        with pytest.raises(StoreError, match=r"^s3://b/set/shard.tar: the store failed 2 times in a row"):
            open_store(parse_address("s3://b/set")).put(tmp_path / "shard.tar", "shard.tar")


def test_a_setting_that_no_repetition_corrects_is_not_repeated(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=r"^s3://no bucket!: the address or a setting of the store is wrong \(.*b"):
        next(open_store(parse_address("s3://no bucket!")).objects())
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nowhere")
    forget_stores()
    with pytest.raises(StoreError, match=r"^s3://b/set: the address or a setting of the store is wrong \(Invalid end"):
        next(open_store(parse_address("s3://b/set")).objects())


def test_an_object_that_changes_while_it_is_read_is_named(stub: Stub) -> None:
    (stub.folder / "set").mkdir(parents=True)
    path = stub.folder / "set/train.bin"
    path.write_bytes(bytes(range(256)) * 100)
    store = open_store(parse_address("s3://b/set"))
    [found] = store.objects()
    assert store.read(found, 1000, 5) == path.read_bytes()[1000:1005]
    path.write_bytes(b"x" * found.size)  # the same size
    with pytest.raises(
        ChangedError, match=r"^s3://b/set/train.bin: changed since it was opened; run the command again$"
    ):
        store.read(found, 0, 5)


def test_a_large_object_is_read_in_blocks_and_one_image_by_its_range(stub: Stub) -> None:
    (stub.folder / "set").mkdir(parents=True)
    size = 40 << 20
    with open(stub.folder / "set/train.bin", "wb") as file:
        file.truncate(size)
    store = open_store(parse_address("s3://b/set"))
    [found] = store.objects()
    with store.open(found) as opened:
        opened.read(10)
        opened.seek(30 << 20)
        opened.read(10)
    assert [asked for _, asked in stub.gets] == ["bytes=0-8388607", "bytes=31457280-39845887"]
    store.read(found, 5, 7)
    assert stub.gets[-1][1] == "bytes=5-11"


def test_keys_are_listed_page_by_page(stub: Stub) -> None:
    stub.folder.mkdir()
    stub.count = 4_500
    found = open_store(parse_address("s3://b/set")).objects()
    assert next(found).name == "000000000.jpg"
    assert stub.lists == 1
    assert sum(1 for _ in found) == 4_499
    assert stub.lists == 5


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
        "    assert cache.size() <= 210_000, cache.size()\n"
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
