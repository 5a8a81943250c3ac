"""A store that fails, drops connections or lists a million keys: repeated, said in one line, never other bytes."""

import os
import socket
from pathlib import Path

import pytest
from colour_sets import colour_directory
from in_process import make_cli
from object_stores import forget_stores
from shard_files import write_shards
from stub_store import Stub

from phi3v_data.dataset import Dataset
from phi3v_data.errors import UserError
from phi3v_data.exporting.bucket import BucketTarget
from phi3v_data.media.images import read_image_file
from phi3v_data.remote import retry
from phi3v_data.remote import store as store_module
from phi3v_data.remote.address import parse_address
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


def test_the_description_of_each_parquet_shard_is_asked_for_once(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four and two row groups with one image each, of other sizes, none is kept."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setenv("PHI3V_CACHE_GB", "0")
    turns = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "Yes."}]
    (stub.folder / "set").mkdir(parents=True)
    cells = []
    for number, (groups, size) in enumerate([(4, 70_000), (2, 90_000)]):
        made = [{"bytes": os.urandom(size), "path": f"{group}.png"} for group in range(groups)]
        table = pa.Table.from_pylist([{"images": [cell], "messages": turns} for cell in made])
        shard = stub.folder / "set" / f"train-{number:05d}-of-00002.parquet"
        pq.write_table(table, shard, row_group_size=1, compression="none")
        cells += made
    data_directory("s3://b/set")
    asked = len(stub.gets)
    assert images("s3://b/set") == [cell["bytes"] for cell in cells]
    assert len(stub.gets) - asked == 5 + 3


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
    assert (code, len(stub.gets)) == (2, 8), err
    assert repeated.startswith("s3://b/set/train-000000.tar: the store failed (")
    assert ended.startswith("error: s3://b/set/train-000000.tar: the store failed 8 times in a row (")
    assert ended.endswith("); run the same command again later")


def test_an_answer_that_comes_byte_by_byte_ends(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes before the limit between two of them has passed."""
    (stub.folder / "set").mkdir(parents=True)
    (stub.folder / "set/train.bin").write_bytes(bytes(1000))
    monkeypatch.setattr(store_module, "longest_request", lambda size: 0.3)
    monkeypatch.setitem(store_module._ATTEMPTS, "s3", 2)
    stub.fail = lambda number: "drip"
    store = open_store(parse_address("s3://b/set"))
    [found] = store.objects()
    said = r"^s3://b/set/train.bin: the store failed 2 times in a row \(the answer was not complete in time\); run the"
    with pytest.raises(StoreError, match=said):
        store.read(found, 0, 1000)
    assert stub.gets == [("set/train.bin", "bytes=0-999")] * 2


def test_an_upload_that_the_store_does_not_read_ends(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that accepts connections and never reads: no limit of the library's own ends that."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        forget_stores()
        monkeypatch.setattr(store_module, "longest_request", lambda size: 0.2)
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


@pytest.mark.parametrize("times", [2, 3])
def test_a_fault_of_the_library_is_repeated_twice(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As aiobotocore's at an error 500 with a checksum."""
    monkeypatch.setattr(retry, "first_pause", lambda: 0.0)
    faults = iter([AttributeError("'Body' object has no attribute 'strip'")] * times)

    def request() -> str:
        for fault in faults:
            raise fault
        return "content"

    if times == 2:
        assert retry.patiently("s3://b/set", request) == "content"
    else:
        with pytest.raises(StoreError, match=r"s3://b/set: the installed library of the store failed \('Body' object"):
            retry.patiently("s3://b/set", request)


@pytest.mark.parametrize("conditions", [True, False])
def test_an_object_that_changes_while_it_is_read_is_named(stub: Stub, conditions: bool) -> None:
    """Also by a server that gives the new object to whoever asks for the old one."""
    (stub.folder / "set").mkdir(parents=True)
    path = stub.folder / "set/train.bin"
    path.write_bytes(bytes(range(256)) * 100)
    store = open_store(parse_address("s3://b/set"))
    [found] = store.objects()
    assert store.read(found, 1000, 5) == path.read_bytes()[1000:1005]
    path.write_bytes(b"x" * found.size)  # the same size
    stub.conditions = conditions
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
    assert len(store.read(found, 3, size)) == size - 3
    assert [asked for _, asked in stub.gets[3:]] == [
        "bytes=3-16777218",
        "bytes=16777219-33554434",
        "bytes=33554435-41943039",
    ]
    assert stub.heads == []  # the list has said all


def test_keys_are_listed_page_by_page(stub: Stub) -> None:
    stub.folder.mkdir()
    stub.count = 4_500
    found = open_store(parse_address("s3://b/set")).objects()
    assert next(found).name == "000000000.jpg"
    assert stub.lists == 1
    assert sum(1 for _ in found) == 4_499
    assert stub.lists == 5


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"IsTruncated": True}, "s3://b/set: the store's list of keys does not end"),
        ({"IsTruncated": True, "NextContinuationToken": "again"}, "s3://b/set: the store's list of keys does not end"),
        ({"Contents": [{"Key": "set/a.tar", "Size": 1}]}, "s3://b/set/a.tar: the store gives no etag"),
        ({"Contents": [{"Key": "", "Size": 1, "ETag": "e"}, {"Key": "a"}]}, "'b/a' has a name that no file can have"),
    ],
)
def test_a_listing_that_cannot_be_right_is_one_sentence(
    stub: Stub, answer: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(parse_address("s3://b/set"))
    monkeypatch.setattr(store, "_page", lambda *args: answer)
    with pytest.raises(UserError) as caught:
        list(store.objects())
    assert message in str(caught.value)


def test_a_listing_that_goes_in_a_circle_ends(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(parse_address("s3://b/set"))
    following = {"": "one", "one": "two", "two": "three", "three": "one"}

    def page(bucket: str, prefix: str, more: dict[str, str]) -> dict[str, object]:
        return {"IsTruncated": True, "NextContinuationToken": following[more.get("ContinuationToken", "")]}

    monkeypatch.setattr(store, "_page", page)
    with pytest.raises(UserError, match="s3://b/set: the store's list of keys does not end"):
        list(store.objects())


@pytest.mark.parametrize("keys", [[], ["set/a.tar", "set/b.tar"]])
def test_a_listing_without_end_under_ever_new_tokens_ends(
    stub: Stub, keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(parse_address("s3://b/set"))
    tokens = iter(range(10_000))

    def page(bucket: str, prefix: str, more: dict[str, str]) -> dict[str, object]:
        entries = [{"Key": key, "Size": 1, "ETag": "e"} for key in keys]
        return {"IsTruncated": True, "NextContinuationToken": str(next(tokens)), "Contents": entries}

    monkeypatch.setattr(store, "_page", page)
    with pytest.raises(UserError, match="s3://b/set: the store's list of keys does not end"):
        list(store.objects())
    assert next(tokens) <= 101


def test_empty_pages_within_a_list_are_passed_over(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(parse_address("s3://b/set"))

    def page(bucket: str, prefix: str, more: dict[str, str]) -> dict[str, object]:
        number = int(more.get("ContinuationToken", "0"))
        entries = [] if number % 60 else [{"Key": f"set/{number}.tar", "Size": 1, "ETag": "e"}]
        return {"IsTruncated": number < 180, "NextContinuationToken": str(number + 1), "Contents": entries}

    monkeypatch.setattr(store, "_page", page)
    assert [each.name for each in store.objects()] == ["0.tar", "60.tar", "120.tar", "180.tar"]


def test_unfinished_uploads_are_removed_from_every_page_of_their_list(stub: Stub) -> None:
    stub.uploads = [(f"set/train-{number // 2:06d}.tar", f"id{number}") for number in range(7)]
    stub.uploads += [("set/train-000009.tar", "id9"), ("sets/train-000000.tar", "id")]
    open_store(parse_address("s3://b/set")).drop_unfinished([f"train-{number:06d}.tar" for number in range(4)])
    assert stub.uploads == [("set/train-000009.tar", "id9"), ("sets/train-000000.tar", "id")]


@pytest.mark.parametrize("content", [b"\xff", b"[" * 100_000, b"1}} more"])
def test_a_damaged_record_of_an_export_is_one_sentence(stub: Stub, content: bytes) -> None:
    (stub.folder / "set/.phi3v").mkdir(parents=True)
    (stub.folder / "set/train.tar").write_bytes(b"x")
    for name in ("stored_export", "unfinished"):
        (stub.folder / f"set/.phi3v/{name}.json").write_bytes(b'{"objects": {}, "export": {"deep": ' + content)
    with pytest.raises(UserError, match="is not the record of an export; move it away"):
        data_directory("s3://b/set")
    with pytest.raises(UserError, match=r"stored_export.json is damaged; choose another --out"):
        BucketTarget(parse_address("s3://b/set"), overwrite=True)


@pytest.mark.parametrize(
    ("text", "why"), [(b"", "not JSON"), (b"[" * 100_000, "not JSON"), (b'{"name": 5}', "name must be a")]
)
def test_a_damaged_description_of_a_set_is_named_by_its_address(
    stub: Stub, tmp_path: Path, text: bytes, why: str
) -> None:
    write_shards(colour_directory(tmp_path / "colours"), stub.folder / "set", "tar", shards=1)
    (stub.folder / "set/phi3v.json").write_bytes(text)
    with pytest.raises(UserError, match=f"^s3://b/set/phi3v.json: {why}"):
        data_directory("s3://b/set")
