"""Runs on shards in a store: losses and weights of a local run, whatever fails; killed, resumed with the same bits."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from colour_sets import colour_directory
from kills import fork, wait
from processes import train_together
from run_dirs import read_lines, settings_for, without_times
from shard_files import write_shards
from stub_store import Stub

from phi3v_data.media.images import read_image_file
from phi3v_data.remote.cache import range_cache

torch = pytest.importorskip("torch")


def put_set(stub: Stub, tmp_path: Path) -> None:
    """Put shards of nine rows into the store."""
    write_shards(colour_directory(tmp_path / "colours", rows=9), stub.folder / "set", "tar")


def settings(data_dir: object, output_dir: Path, **changes: Any) -> dict[str, Any]:
    """Options of a run of three steps, each of which is logged."""
    return settings_for(Path(str(data_dir)), output_dir, max_steps=3, logging_steps=1, **changes)


def weights(output_dir: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(output_dir / "model/model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    left, right = weights(one), weights(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.slow
def test_a_failing_store_changes_no_bit_and_a_killed_run_resumes(stub: Stub, tmp_path: Path) -> None:
    """The second run keeps no image, so that all requests fail by turns until its end."""
    from phi3v_train.run import run as train
    from phi3v_train.settings import resolve

    put_set(stub, tmp_path)
    train(resolve(settings(stub.folder / "set", tmp_path / "local")), quiet=True)
    stub.fail = lambda number: "503" if number % 4 == 1 else "drop" if number % 4 == 3 else ""
    train(resolve(settings("s3://b/set", tmp_path / "remote", num_workers=2, data_cache_gb=0.0)), quiet=True)
    assert same_weights(tmp_path / "remote", tmp_path / "local")
    assert len(stub.gets) > 20  # half of which failed
    assert "s3://b/set" in (tmp_path / "remote/config.yaml").read_text()

    def kill(line: Any) -> bool:
        if line["step"] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    killed = resolve(settings("s3://b/set", tmp_path / "killed", data_cache_gb=1.0, save_steps=1))
    assert wait(fork(lambda: train(killed, quiet=True, hooks=[kill]))) == -signal.SIGKILL
    train(killed, quiet=True)
    assert same_weights(tmp_path / "killed", tmp_path / "local")


@pytest.mark.slow
def test_two_processes_train_from_a_bucket_as_from_a_folder(stub: Stub, tmp_path: Path) -> None:
    """Real processes over gloo; no image is kept, so that each asks the store for its own, which fails now and then."""
    put_set(stub, tmp_path)
    stub.fail = lambda number: "503" if number % 5 == 4 else ""
    remote = settings("s3://b/set", tmp_path / "remote", parallel="ddp", data_cache_gb=0.0)
    train_together(2, [remote, settings(stub.folder / "set", tmp_path / "local", parallel="ddp")], tmp_path / "work")
    metrics = [without_times(read_lines(tmp_path / name / "metrics.jsonl")) for name in ("remote", "local")]
    assert metrics[0] == metrics[1]
    assert [line["step"] for line in metrics[0]] == [1, 2, 3]
    assert same_weights(tmp_path / "remote", tmp_path / "local")
    assert len(stub.gets) > 20


def test_images_of_coming_samples_are_fetched_in_the_order_of_the_run(stub: Stub, tmp_path: Path) -> None:
    from phi3v_train.data.fetch_ahead import FetchAhead
    from phi3v_train.data.order import SampleRef
    from phi3v_train.data.sources import open_source

    put_set(stub, tmp_path)
    source = open_source("s3://b/set", "train")
    cache = range_cache()
    for folder in cache.folder.iterdir():  # as of a set that is larger than the cache
        for file in folder.iterdir() if folder.is_dir() and len(folder.name) == 2 else ():
            file.unlink()
    asked = len(stub.gets)
    fetch = FetchAhead([source])
    fetch.want(SampleRef(0, row, 0) for row in (3, 1, 3))
    assert fetch._pool is not None
    fetch._pool.shutdown(wait=True)
    images = {name for row in (1, 3) for name in source.split[row].images}
    assert len(stub.gets) - asked == len(images) > 0
    for name in images:
        read_image_file(source.split.image_path(name))
    assert len(stub.gets) - asked == len(images)
    assert not FetchAhead([open_source(stub.folder / "set", "train")])
