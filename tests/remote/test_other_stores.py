"""Shards in Google's store and on the Hub, as their libraries read them from servers on loopback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from colour_sets import colour_directory
from object_stores import forget_stores
from other_stores import COMMITS, REPO, OtherStores, running
from shard_files import write_shards

from phi3v_data.dataset import Dataset
from phi3v_data.media.images import read_image_file
from phi3v_data.shards.view import data_directory
from phi3v_data.validate import validate

MAIN = "from phi3v_data.cli.app import main; main()"


def test_a_set_in_googles_store_is_read_by_generation(tmp_path: Path) -> None:
    """In a process of its own, as gcsfs reads its environment once."""
    pytest.importorskip("gcsfs")
    write_shards(colour_directory(tmp_path / "colours"), tmp_path / "objects/set", "tar", shards=1)
    with running(OtherStores(tmp_path / "objects", tmp_path / "objects")) as stores:
        variables = {
            "STORAGE_EMULATOR_HOST": stores.url,
            "FSSPEC_GS_TOKEN": "anon",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }
        command = [sys.executable, "-c", MAIN, "validate", "gs://bucket/set"]
        done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ok: gs://bucket/set, 11 samples, level full; no findings" in done.stdout
    reads = [request for request in stores.requests if request.startswith("/download/")]
    assert len(reads) >= 2
    assert all("alt=media&generation=" in request for request in reads)


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
