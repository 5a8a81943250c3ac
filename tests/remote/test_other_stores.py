"""Shards in Google's store and on the Hub, as their libraries read them from servers on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from colour_sets import colour_directory
from object_stores import forget_stores
from other_stores import COMMITS, REPO, OtherStores, running
from PIL import Image
from shard_files import write_shards

from phi3v_data.dataset import Dataset
from phi3v_data.exporting import export_set
from phi3v_data.media.images import read_image_file
from phi3v_data.shards.view import data_directory
from phi3v_data.validate import validate

MAIN = "from phi3v_data.cli.app import main; main()"


def run_with_google(stores: OtherStores, *words: object, program: str = MAIN) -> "subprocess.CompletedProcess[str]":
    """Run `phi3v-data`, or a program, in a process of its own, as gcsfs reads its environment once."""
    pytest.importorskip("gcsfs")
    variables = {
        "STORAGE_EMULATOR_HOST": stores.url,
        "FSSPEC_GS_TOKEN": "anon",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "XDG_CACHE_HOME": str(stores.folder.parent / "cache"),
    }
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)


def test_a_set_in_googles_store_is_read_by_generation(tmp_path: Path) -> None:
    write_shards(colour_directory(tmp_path / "colours"), tmp_path / "objects/set", "tar", shards=1)
    with running(OtherStores(tmp_path / "objects", tmp_path / "objects")) as stores:
        done = run_with_google(stores, "validate", "gs://bucket/set")
    assert (done.returncode, done.stderr) == (0, "")
    assert "ok: gs://bucket/set, 11 samples, level full; no findings" in done.stdout
    reads = [request for request in stores.requests if request.startswith("/download/")]
    assert len(reads) >= 2
    assert all("alt=media&generation=" in request for request in reads)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"other", "changed since it was opened; run the command again"),
        (b"", "was removed while it was read; run the command again"),
    ],
)
def test_an_object_of_googles_store_that_changes_or_goes_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "objects/set/a.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"first")
    change = f"path.write_bytes({content!r})" if content else "path.unlink()"
    program = (
        "from pathlib import Path; from phi3v_data.remote.store import open_store; "
        f"path, store = Path({str(path)!r}), open_store('gs://bucket/set'); [found] = store.objects(); "
        f"print(store.read(found, 1, 3)); {change}; store.read(found, 0, 5)"
    )
    with running(OtherStores(tmp_path / "objects", tmp_path / "objects")) as stores:
        done = run_with_google(stores, program=program)
    assert done.stdout == "b'irs'\n"
    assert done.stderr.splitlines()[-1].endswith(f"ChangedError: gs://bucket/set/a.bin: {said}")


def test_an_export_to_googles_store_has_the_bytes_of_one_to_a_folder(tmp_path: Path) -> None:
    """One shard is uploaded at once, one in two parts of which the first is sent again; then the export is replaced."""
    directory, objects = colour_directory(tmp_path / "colours"), tmp_path / "objects"
    noise = Image.frombytes("RGB", (2500, 2500), os.urandom(2500 * 2500 * 3))
    noise.save(directory / "images/train0.png", compress_level=0)  # 18.75 MB
    objects.mkdir()
    (objects / "of others.txt").write_text("kept")
    export_set("webdataset", directory, tmp_path / "out")
    expected = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file() and ".phi3v" not in path.parts
    }
    assert max(map(len, expected.values())) > 16 << 20
    with running(OtherStores(objects, objects, fail=1)) as stores:
        done = run_with_google(stores, "export", "webdataset", directory, "--out", "gs://bucket/a/set", "--quiet")
        assert (done.returncode, done.stderr) == (0, "")
        found = {name.removeprefix("a/set/"): path.read_bytes() for name, path in stores.files().items()}
        record = json.loads(found.pop(".phi3v/stored_export.json"))
        assert record["objects"] == {name: len(data) for name, data in sorted(expected.items())}
        assert found == {**expected, "of others.txt": b"kept"}
        assert len([each for each in stores.requests if "upload_name=" in each]) == 3
        done = run_with_google(stores, "export", "hub", directory, "--out", "gs://bucket/a/set", "--quiet")
        assert (done.returncode, "gs://bucket/a/set: has an export already" in done.stderr) == (2, True)
        words = ("export", "sharegpt", directory, "--out", "gs://bucket/a/set", "--quiet", "--overwrite")
        assert run_with_google(stores, *words).returncode == 0
        names = set(stores.files())
    assert not [name for name in names if name.endswith(".tar")]
    assert {"of others.txt", "a/set/dataset_info.json", "a/set/.phi3v/stored_export.json"} <= names


def test_a_set_on_the_hub_is_read_at_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A push while it is read changes nothing; the next command sees the new files."""
    constants = pytest.importorskip("huggingface_hub.constants")
    directory = colour_directory(tmp_path / "colours")
    write_shards(directory, tmp_path / "first/set", "tar", shards=1)
    write_shards(directory, tmp_path / "second/set", "tar", shards=1, change=lambda row: row.update(group="new"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PHI3V_CACHE_GB", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with running(OtherStores(tmp_path / "second", tmp_path / "first")) as stores:
        monkeypatch.setattr(constants, "ENDPOINT", stores.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{stores.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        forget_stores()
        address = f"hf://datasets/{REPO}/set"
        assert validate(address, workers=0).ok
        dataset = Dataset(data_directory(address))["train"]
        stores.moved = True
        [name] = dataset[0].images
        expected = (directory / "images/train0.png").read_bytes()
        assert read_image_file(dataset.image_path(name)) == expected
        reads = [request for request in stores.requests if "/resolve/" in request]
        assert len(reads) >= 2
        assert all(f"/resolve/{COMMITS[0]}/set/" in request for request in reads)
        forget_stores()  # as a new process
        changed = Dataset(data_directory(address))["train"]
        assert (dataset[0].group, changed[0].group) == ("", "new")
        assert read_image_file(changed.image_path(name)) == expected
        assert f"/resolve/{COMMITS[1]}/set/" in stores.requests[-1]
