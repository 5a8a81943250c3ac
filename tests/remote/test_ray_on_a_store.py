"""Ray workers read sources from a store and upload exports to it themselves: the bytes of the local engine."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from colour_sets import colour_directory
from object_stores import BUCKET, ObjectStore
from PIL import Image

from phi3v_data.conversion import convert
from phi3v_data.exporting import ExportRequest, export_set

pytestmark = pytest.mark.slow

MAIN = "from phi3v_data.cli.app import main; main()"


def on_ray(*words: object) -> str:
    """Output of a command that starts a cluster of two workers for itself."""
    command = [sys.executable, "-c", MAIN, *map(str, words), "--engine", "ray", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ})
    assert done.returncode == 0, done.stderr
    return done.stdout


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a set or export but those of its journal."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".phi3v" not in path.parts
    }


def test_parquet_in_a_store_is_converted_by_the_workers(store: ObjectStore, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = []
    for number in range(60):
        Image.new("RGB", (40, 30), (number * 4, 90, 200)).save(data := io.BytesIO(), "PNG")
        rows.append(
            {"image": {"bytes": data.getvalue(), "path": f"{number}.png"}, "question": "What?", "answer": str(number)}
        )
    (tmp_path / "source").mkdir()
    path = tmp_path / "source/train-00000-of-00001.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=7)
    store.put_folder(tmp_path / "source", "ray/source")
    convert("table", tmp_path / "source", tmp_path / "here", workers=1)
    on_ray("convert", "table", "--source", f"s3://{BUCKET}/ray/source", "--out_dir", tmp_path / "there")
    assert tree(tmp_path / "there") == tree(tmp_path / "here")
    assert len(tree(tmp_path / "there")) > 60


def test_shards_are_uploaded_by_the_workers(store: ObjectStore, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    directory = colour_directory(tmp_path / "colours", rows=40)
    for number in range(3):  # a shard each
        noise = Image.frombytes("RGB", (500, 500), os.urandom(750_000))
        noise.save(directory / f"images/train{number}.png", compress_level=0)
    export_set("webdataset", directory, tmp_path / "here", ExportRequest(shard_bytes=1_000_000))
    address = f"s3://{BUCKET}/ray/set"
    assert on_ray("export", "webdataset", directory, "--out", address, "--shard_mb", "1").startswith(address)
    names = [name for name in store.names("ray/set/") if "/.phi3v/" not in name]
    assert {name.removeprefix("ray/set/"): store.get(name) for name in names} == tree(tmp_path / "here")
    assert len([name for name in names if name.endswith(".tar")]) >= 4
