"""Exports to a store have the bytes of an export to a folder, and are complete or refused, whatever is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from colour_sets import colour_directory
from in_process import Cli, make_cli
from object_stores import BUCKET, ObjectStore

from phi3v_data.dataset import Dataset
from phi3v_data.errors import UserError
from phi3v_data.exporting import ExportRequest, export_set
from phi3v_data.shards.view import data_directory
from phi3v_data.validate import validate

FORMATS = ("webdataset", "hub", "mosaicml", "sharegpt")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("colours") / "colours", rows=9)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return make_cli(capsys, monkeypatch)


def files(folder: Path) -> dict[str, bytes]:
    """The files of an export in a folder, without the record."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".phi3v" not in path.parts
    }


def objects(store: ObjectStore, prefix: str) -> dict[str, bytes]:
    """The objects of an export in the store, without the record."""
    names = store.names(f"{prefix}/")
    return {name.removeprefix(f"{prefix}/"): store.get(name) for name in names if "/.phi3v/" not in name}


@pytest.mark.parametrize("format_name", FORMATS)
def test_the_objects_have_the_bytes_of_the_files(
    store: ObjectStore, directory: Path, tmp_path: Path, format_name: str
) -> None:
    request = ExportRequest(shard_bytes=4000)
    here = export_set(format_name, directory, tmp_path / "out", request)
    there = export_set(format_name, directory, f"s3://{BUCKET}/bytes/{format_name}", request)
    expected = files(tmp_path / "out")
    assert objects(store, f"bytes/{format_name}") == expected
    assert (there.rows, there.images) == (here.rows, here.images)
    record = json.loads(store.get(f"bytes/{format_name}/.phi3v/stored_export.json"))
    assert record["objects"] == {name: len(data) for name, data in sorted(expected.items())}
    assert store.names(f"bytes/{format_name}/.phi3v/") == [f"bytes/{format_name}/.phi3v/stored_export.json"]


def test_the_command_exports_replaces_and_the_export_validates(
    store: ObjectStore, directory: Path, tmp_path: Path, cli: Cli
) -> None:
    address = f"s3://{BUCKET}/cli/set"
    code, out, err = cli("export", "webdataset", directory, "--out", address, "--quiet")
    assert (code, err) == (0, "")
    assert out.startswith(f"{address}: 13 rows") or out.startswith(f"{address}: ")
    assert validate(address).ok
    again = cli("export", "webdataset", directory, "--out", address)
    assert again == (0, out.replace(f"{address}: ", f"{address}: already complete: "), "")
    shard = next(name for name in store.names("cli/set/") if name.endswith(".tar"))
    data = store.get(shard)
    store.client().delete_object(Bucket=BUCKET, Key=shard)
    code, _, err = cli("export", "webdataset", directory, "--out", address)
    missing = "has an export already, whose files have changed or are missing; --overwrite"
    assert (code, missing in err) == (2, True)
    store.put(shard, data.replace(b"?", b"!", 1))  # as large
    assert cli("export", "webdataset", directory, "--out", address)[0] == 2
    store.put(shard, data)
    assert cli("export", "webdataset", directory, "--out", address)[0] == 0
    store.put("cli/set/train-000009.tar", data)
    code, _, err = cli("export", "webdataset", directory, "--out", address)
    assert (code, missing in err) == (2, True)
    store.client().delete_object(Bucket=BUCKET, Key="cli/set/train-000009.tar")
    code, _, err = cli("export", "hub", directory, "--out", address, "--quiet")
    assert (code, err) == (
        2,
        f"error: {address}: has an export already, of format 'webdataset'; --overwrite replaces it, or choose another "
        "--out\n",
    )
    assert cli("export", "hub", directory, "--out", address, "--quiet", "--overwrite")[0] == 0
    names = store.names("cli/set/")
    assert not [name for name in names if name.endswith(".tar")]
    assert "cli/set/README.md" in names
    assert list(Dataset(data_directory(address))) == ["train", "val"]
    store.put("cli/set/mine.txt", b"x")
    code, _, err = cli("export", "hub", directory, "--out", address, "--quiet", "--overwrite")
    assert (code, "has 1 object that no export wrote, such as 'mine.txt'" in err) == (2, True)
    assert store.get("cli/set/mine.txt") == b"x"


def test_a_shard_that_is_missing_cut_or_foreign_is_refused(store: ObjectStore, directory: Path) -> None:
    address = f"s3://{BUCKET}/damage/set"
    export_set("webdataset", directory, address, ExportRequest(shard_bytes=4000))
    name = "damage/set/train-000001.tar"
    data = store.get(name)
    store.put(name, data[:-512])
    with pytest.raises(
        UserError, match=f"has {len(data) - 512:,} bytes instead of {len(data):,}, so the export is not"
    ):
        data_directory(address)
    store.client().delete_object(Bucket=BUCKET, Key=name)
    with pytest.raises(UserError, match=r"'train-000001.tar' is missing, so the export is not whole"):
        data_directory(address)
    store.put(name, data)
    store.put("damage/set/train-000099.tar", data)
    with pytest.raises(UserError, match=r"'train-000099.tar' is not of the export that is there"):
        data_directory(address)


def test_of_two_exports_to_one_address_at_once_neither_passes_for_complete(
    store: ObjectStore, directory: Path, tmp_path: Path
) -> None:
    """The second one begins and ends after the first shard of the first one; tar files of other rows have its sizes."""
    address = f"s3://{BUCKET}/twice/set"
    other = colour_directory(tmp_path / "other", rows=9)
    rows = (other / "colours_train.jsonl").read_text()
    (other / "colours_train.jsonl").write_text(rows.replace("Which colour", "What colour!"))
    request = ExportRequest(shard_bytes=4000)
    begun: list[str] = []

    def progress(stage: str, done: int, total: int | None) -> None:
        if stage == "write" and not begun:
            begun.append(stage)
            export_set("webdataset", other, address, request)

    with pytest.raises(UserError, match="another export wrote to it at the same time; run one of them again"):
        export_set("webdataset", directory, address, request, progress=progress)
    with pytest.raises(UserError, match="an export to it is not complete"):
        data_directory(address)
    export_set("webdataset", directory, address, request)
    assert validate(address).ok


def test_the_hub_is_refused_before_anything_is_read(directory: Path) -> None:
    with pytest.raises(UserError, match="on the Hub each file would be a commit"):
        export_set("hub", directory, "hf://datasets/me/set")


@pytest.mark.slow
def test_killed_at_any_moment_an_export_is_refused_and_the_same_command_completes_it(
    store: ObjectStore, directory: Path, tmp_path: Path
) -> None:
    """Real SIGKILLs after 1, 2, ... objects; no half object is ever visible, and the bytes are those of a folder."""
    export_set("webdataset", directory, tmp_path / "out", ExportRequest(shard_bytes=4000))
    expected = files(tmp_path / "out")
    address = f"s3://{BUCKET}/killed/set"
    program = (
        "import sys, time\n"
        "from phi3v_data.exporting import ExportRequest, export_set\n"
        "from phi3v_data.remote.store import Store\n"
        "put = Store.put\n"
        "Store.put = lambda *args: (time.sleep(0.05), put(*args))[1]  # so that a kill comes in time\n"
        "export_set('webdataset', sys.argv[1], sys.argv[2], ExportRequest(shard_bytes=4000))\n"
    )
    kills = 0
    for wanted in range(1, len(expected) + 2):
        process = subprocess.Popen([sys.executable, "-c", program, str(directory), address])
        while process.poll() is None and len(store.names("killed/set/")) < wanted:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL) if process.poll() is None else None
        kills += process.wait() == -signal.SIGKILL
        found = objects(store, "killed/set")
        assert all(data == expected[name] for name, data in found.items())
        if "killed/set/.phi3v/stored_export.json" in store.names("killed/set/"):
            assert found == expected
            break
        if store.names("killed/set/"):
            with pytest.raises(UserError, match="an export to it is not complete; run it again"):
                data_directory(address)
    else:
        export_set("webdataset", directory, address, ExportRequest(shard_bytes=4000))
    assert kills >= 2
    assert objects(store, "killed/set") == expected
    assert validate(address).ok


@pytest.mark.slow
def test_the_walk_through_runs_as_written(store: ObjectStore, directory: Path, tmp_path: Path) -> None:
    """`examples/bucket.sh`, twice: the second time the export is there and the run is complete."""
    pytest.importorskip("torch")
    root = Path(__file__).parents[2]
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, package in (("phi3v-data", "phi3v_data"), ("phi3v-train", "phi3v_train")):
        code = f"import sys; sys.argv[0] = {name!r}; from {package}.cli.app import main; main()"
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    options = "--model_name_or_path tiny --device cpu --num_crops 1 --max_steps 2 --batch_size 2 --report_to none"
    address = f"s3://{BUCKET}/walk/set"
    command = [
        "bash",
        str(root / "examples/bucket.sh"),
        str(directory),
        address,
        str(tmp_path / "out"),
        *options.split(),
    ]
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/complete.json").exists()


@pytest.mark.slow
def test_killed_within_an_upload_no_half_object_is_visible_and_no_part_is_left(
    store: ObjectStore, directory: Path, tmp_path: Path
) -> None:
    """A shard of several parts, of which some are there; the same command completes it, and removes them."""
    expected = export_set("webdataset", directory, tmp_path / "out")
    prefix = "parts/set"
    program = (
        "import os, signal, sys\n"
        "from s3fs import S3FileSystem\n"
        "from phi3v_data.exporting import export_set\n"
        "from phi3v_data.remote import store\n"
        "store._UPLOAD = {'s3': {'chunksize': 4096, 'max_concurrency': 1}}\n"
        "real, calls = S3FileSystem._call_s3, []\n"
        "async def call_s3(self, method, *args, **kwargs):\n"
        "    calls.append(method)\n"
        "    if calls.count('upload_part') == int(sys.argv[3]):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return await real(self, method, *args, **kwargs)\n"
        "S3FileSystem._call_s3 = call_s3\n"
        "export_set('webdataset', sys.argv[1], sys.argv[2])\n"
    )
    address = f"s3://{BUCKET}/{prefix}"
    command = [sys.executable, "-c", program, str(directory), address]
    assert subprocess.run([*command, "3"], check=False).returncode == -signal.SIGKILL
    assert store.names(f"{prefix}/") == [f"{prefix}/.phi3v/unfinished.json"]

    def unfinished() -> list[str]:
        return [found["Key"] for found in store.client().list_multipart_uploads(Bucket=BUCKET).get("Uploads", ())]

    assert unfinished() == [f"{prefix}/train-000000.tar"]
    with pytest.raises(UserError, match="an export to it is not complete; run it again"):
        data_directory(address)
    assert subprocess.run([*command, "99"], check=False).returncode == 0
    assert unfinished() == []
    assert objects(store, prefix) == files(tmp_path / "out")
    assert expected.images == validate(address).summary.images
