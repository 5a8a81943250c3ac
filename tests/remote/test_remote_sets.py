"""Shards in a store are read as those of a folder: rows, images, report; what is wrong there is one sentence."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from colour_sets import colour_directory
from in_process import Cli, make_cli
from object_stores import BUCKET, ObjectStore
from shard_files import KINDS, write_shards

from phi3v_data.dataset import Dataset
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.media.images import probe, read_image_file
from phi3v_data.media.packed import known_size, open_pack
from phi3v_data.remote.address import parse_address, spelled, without_secrets
from phi3v_data.remote.cache import range_cache
from phi3v_data.remote.store import open_store
from phi3v_data.shards.view import data_directory
from phi3v_data.validate import validate


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("colours") / "colours")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return make_cli(capsys, monkeypatch)


def stored(store: ObjectStore, directory: Path, folder: Path, kind: str) -> str:
    """The address of the shards of a directory; `folder` has the same ones, and names the prefix."""
    write_shards(directory, folder, kind)
    prefix = f"{folder.parent.name}/{folder.name}"
    store.put_folder(folder, prefix)
    return f"s3://{BUCKET}/{prefix}"


@pytest.mark.parametrize(("kind", "limit"), [*((kind, "20") for kind in KINDS), ("tar", "0")])
def test_rows_images_and_report_are_those_of_the_folder(
    store: ObjectStore, directory: Path, tmp_path: Path, kind: str, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the local cache, and without it."""
    monkeypatch.setenv("PHI3V_CACHE_GB", limit)
    address = stored(store, directory, tmp_path / "export", kind)
    here, there = Dataset(data_directory(tmp_path / "export")), Dataset(data_directory(address))
    assert list(there) == ["train", "val"]
    for split in here:
        assert [there[split].raw(row) for row in range(len(there[split]))] == [
            here[split].raw(row) for row in range(len(here[split]))
        ]
        for sample in there[split]:
            for name in sample.images:
                path, same = there[split].image_path(name), here[split].image_path(name)
                assert read_image_file(path) == read_image_file(same)
                assert known_size(path) == (probe(same).width, probe(same).height) == (28, 28)
                assert known_size(same) == (0, 0)
    expected = validate(tmp_path / "export", use_receipt=False)
    for _ in range(2):  # the second time by the receipt
        report = validate(address)
        assert report.ok
        assert report.dir == address
        assert (report.summary, report.stats) == (expected.summary, expected.stats)
    assert (range_cache().size() == 0) == (limit == "0")


def test_the_command_validates_an_address(store: ObjectStore, directory: Path, tmp_path: Path, cli: Cli) -> None:
    address = stored(store, directory, tmp_path / "export", "tar")
    assert cli("validate", f"{address}/", "--json")[0] == 0
    code, _, err = cli("validate", f"s3://{BUCKET}/nothing/here")
    assert (code, err.strip()) == (2, f"error: s3://{BUCKET}/nothing/here: no such folder, or it is empty")
    code, _, err = cli("validate", "s3://no-such-bucket/here")
    assert (code, err.strip()) == (2, "error: s3://no-such-bucket: no such bucket")


def test_a_changed_object_gives_another_view_and_never_other_bytes(
    store: ObjectStore, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHI3V_CACHE_GB", "0")
    address = stored(store, directory, tmp_path / "export", "tar")
    before = Dataset(data_directory(address))["train"]
    name = before[0].images[0]
    data = (tmp_path / "export/train-000000.tar").read_bytes()
    key = address.removeprefix(f"s3://{BUCKET}/") + "/train-000000.tar"
    store.put(key, data.replace(b"colour", b"COLOUR") if b"colour" in data else data[:-512] + b"\1" * 512)
    with pytest.raises(UserError, match=r"s3://sets/.*/train-000000.tar: changed since it was opened; run the command"):
        read_image_file(before.image_path(name))
    store.put(key, data)
    open_store(parse_address(address))._files.clear()  # as a new process
    assert data_directory(address) == before.directory  # the object has the old etag again
    write_shards(directory, tmp_path / "other", "tar", change=lambda row: row.update(group="new"))
    store.put_folder(tmp_path / "other", address.removeprefix(f"s3://{BUCKET}/"))
    after = Dataset(data_directory(address))["train"]
    assert after.directory != before.directory
    assert {sample.group for sample in after} == {"new"}


def test_a_hostile_key_is_refused(store: ObjectStore) -> None:
    for number, name in enumerate(["../outside.tar", "a/../../b.tar", "a//b.tar", "a\\b.tar", "con.tar", "a\0.tar"]):
        store.put(f"hostile/{number}/train.tar", b"x")
        store.put(f"hostile/{number}/{name}", b"x")
        with pytest.raises(UserError, match="has a name that no file can have; remove or rename it"):
            data_directory(f"s3://{BUCKET}/hostile/{number}")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://id:secret@bucket/set", "s3://...@bucket/set: an address with a password or a signature is not read"),
        (
            "s3://bucket/set/a.tar?versionId=3",
            "s3://bucket/set/a.tar?...: an address cannot name a version",
        ),
        ("s3://id:se/cret@bucket/set", "s3://...: an address with a password or a signature is not read"),
        ("s3://id:se@cret@bucket/set", "s3://...@bucket/set: an address with a password or a signature is not read"),
        ("s3://bucket/set?X-Amz-Signature=secret", "s3://bucket/set?...: an address with a password"),
        ("s3://", "s3:// names no bucket; give s3://BUCKET/PREFIX"),
        ("s3://bucket/a/../b", "'s3://bucket/a/../b': not a plain address"),
        ("s3://bucket/a\0b", "not a plain address"),
    ],
)
def test_an_address_with_a_secret_or_tricks_is_refused_and_not_printed(address: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        data_directory(address)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "cret@" not in str(caught.value)


def test_both_spellings_of_an_address_are_one() -> None:
    assert str(parse_address(Path("s3://bucket/a/b"))) == "s3://bucket/a/b"
    assert spelled(Path("gs://bucket/a")) == "gs://bucket/a"
    assert str(parse_address("S3://Bucket/A")) == spelled("S3:/Bucket/A") == "s3://Bucket/A"
    assert spelled("sub/s3") == "sub/s3"
    point = "s3://arn:aws:s3:us-east-1:123456789012:accesspoint/name/key"
    assert str(parse_address(point)) == spelled(point) == point
    assert without_secrets("cannot GET https://me:p@w@host/b") == "cannot GET https://...@host/b"
    told = "cannot GET https://me:pw@host/b?X-Amz-Signature=1 'now'"
    assert without_secrets(told) == "cannot GET https://...@host/b?... 'now'"


def test_wrong_credentials_and_missing_extras_are_one_sentence(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('s3fs', 'gcsfs'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from phi3v_data.cli.app import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "validate", "gs://bucket/set"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (
        2,
        "error: gs:// addresses need the extra 'gs': pip install -c constraints.txt -e '.[gs]' in a clone of phi3v\n",
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    main = "from phi3v_data.cli.app import main; main()"
    command = [sys.executable, "-c", main, "validate", f"s3://{BUCKET}/set"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "no credentials" in done.stderr, len(done.stderr.splitlines())) == (2, True, 1), (
        done.stderr
    )


def test_an_index_of_remote_shards_is_not_read_outside_of_the_cache(
    store: ObjectStore, directory: Path, tmp_path: Path
) -> None:
    """It could have come with a directory of someone else, and read what this user may read."""
    address = stored(store, directory, tmp_path / "export", "tar")
    view = data_directory(address)
    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / "images").write_bytes((view / "images").read_bytes())
    with pytest.raises(NotADirectoryError, match="made on another machine"):
        open_pack(copied / "images")


def test_shards_of_both_kinds_and_a_directory_are_refused(store: ObjectStore) -> None:
    store.put("refused/directory/train.jsonl", b"")
    store.put("refused/directory/dataset.json", b"{}")
    with pytest.raises(UserError, match="is a conversations directory; only shards are read from a store"):
        data_directory(f"s3://{BUCKET}/refused/directory")
    store.put("refused/both/train.tar", b"x")
    store.put("refused/both/train.parquet", b"x")
    with pytest.raises(UserError, match=r"has both .tar and .parquet files"):
        data_directory(f"s3://{BUCKET}/refused/both")
    store.put("refused/none/notes.txt", b"x")
    with pytest.raises(NotFoundError, match="no shards"):
        data_directory(f"s3://{BUCKET}/refused/none")


def test_a_damaged_shard_and_a_bad_row_are_named_by_their_address(store: ObjectStore, tmp_path: Path) -> None:
    store.put("bad/cut/train.tar", b"x" * 3000)
    with pytest.raises(UserError, match=f"^s3://{BUCKET}/bad/cut/train.tar is damaged, cut short or compressed"):
        data_directory(f"s3://{BUCKET}/bad/cut")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        text = json.dumps({"messages": 3}).encode()
        member = tarfile.TarInfo("0.json")
        member.size = len(text)
        packed.addfile(member, io.BytesIO(text))
    store.put("bad/row/train.tar", buffer.getvalue())
    with pytest.raises(UserError, match=f"^s3://{BUCKET}/bad/row: train.tar: 0: "):
        data_directory(f"s3://{BUCKET}/bad/row")


@pytest.mark.parametrize(
    "address", ["s3://bucket/out", "S3://bucket/out", "gs://bucket/out", "az://box/out", "hf://a/b"]
)
def test_an_address_is_refused_where_a_path_on_this_machine_is_written(
    tmp_path: Path, address: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken for a folder `s3:` of the working directory."""
    directory = colour_directory(tmp_path / "colours")
    other = colour_directory(tmp_path / "others")
    (tmp_path / "rows.json").write_text("[]")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for words in (
        ("convert", "table", "--source", tmp_path / "rows.json", "--out_dir", address),
        ("convert", "table", "--source", tmp_path / "rows.json", "--out_dir", address, "--slice", "1/2"),
        ("convert", "--finish", address),
        ("import", "llava", tmp_path / "rows.json", "--out_dir", address),
        ("split", directory, address, "--split", "train=1"),
        ("clean", directory, address),
        ("merge", directory, other, address),
        ("store", directory, address, "--store", "shards"),
        ("validate", directory, "--html", f"{address}/report.html"),
        ("preview", directory, "--html", f"{address}/report.html"),
    ):
        code, out, err = cli(*words)
        assert (code, "is an address, and this is written to a file system" in err) == (2, True), (words, out, err)
    assert list((tmp_path / "here").iterdir()) == []
