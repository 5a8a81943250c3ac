"""`benchmarks/scale`: all stages on few rows, resumed after an interruption; what its source makes."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("pyarrow")

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "scale" / "run.py"
EVERY_STAGE = [
    "source", "convert files", "validate files", "convert shards", "validate quick", "validate full",
    "validate unchanged", "stats", "train first step", "train resumed", "export webdataset", "export parquet",
    "validate parquet", "datasets", "split", "merge",
]  # fmt: skip


def run(folder: Path, rows: int, *options: str) -> tuple[int, list[dict[str, Any]]]:
    """Run the benchmark; its exit code and all records so far."""
    results = folder / "results.jsonl"
    paths = ["--work", str(folder), "--results", str(results)]
    done = subprocess.run([sys.executable, str(SCRIPT), "--rows", str(rows), "--workers", "1", *paths, *options])
    return done.returncode, [json.loads(line) for line in results.read_text().splitlines()][1:]


def test_stages_are_measured_once_and_the_rest_resumes(tmp_path: Path) -> None:
    code, records = run(tmp_path, 200, "--minutes", "0", "--only", "source", "validate quick")
    assert (code, records) == (1, [])
    code, records = run(tmp_path, 200, "--only", "source", "convert shards")
    assert (code, [each["stage"] for each in records]) == (0, ["source", "convert shards"])
    code, records = run(tmp_path, 200, "--only", "source", "convert shards", "validate quick", "--tidy")
    assert (code, [each["stage"] for each in records]) == (0, ["source", "convert shards", "validate quick"])
    quick = records[-1]
    assert quick["rows"] == 200
    assert quick["exit_code"] == 0
    assert quick["cpu_us_per_row"] == pytest.approx(quick["cpu_s"] * 1e6 / 200)
    assert quick["peak_mb"][0] >= quick["anonymous_mb"][0] > 10
    assert not (tmp_path / "200" / "shards").exists()  # nothing after it needs the set


def test_the_source_has_distinct_jpegs_and_some_duplicates(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(SCRIPT.with_name("source.py")), str(tmp_path), "300", "1"], check=True)
    import pyarrow.parquet as pq

    rows = pq.read_table(tmp_path / "train-00000.parquet").to_pylist()
    images = [row["image"]["bytes"] for row in rows]
    assert len(rows) == 300
    assert len(set(images)) == 299
    assert images[7] == images[2]  # row 7 repeats row 2, of the same group and split
    assert (rows[7]["split"], rows[2]["split"]) == ("train", "train")
    for data in images[::30]:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert image.format == "JPEG"
            assert 32 <= min(image.size) <= max(image.size) <= 64


@pytest.mark.slow
def test_every_stage_on_few_rows(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("datasets")
    code, records = run(tmp_path, 200)
    assert (code, [each["stage"] for each in records]) == (0, EVERY_STAGE)
    assert all(each["exit_code"] == 0 for each in records)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--table", "--results", str(tmp_path / "results.jsonl")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert [line.split(" | ")[0].strip("| ") for line in done.stdout.splitlines()[2:]] == EVERY_STAGE


def test_the_arithmetic_of_files_and_shards() -> None:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import arithmetic
    finally:
        sys.path.remove(str(SCRIPT.parent))
    files, shards = arithmetic.files(1000, 1100, 42), arithmetic.shards(1000, 1100, 42)
    assert (files.objects, files.disk_bytes) == (1000, 1000 * (4096 + 256 + 16 + 42))
    assert (shards.objects, shards.disk_bytes) == (2, 1000 * (512 + 1536 + 64 + 42))
    prices = arithmetic.Prices(storage=1, million_puts=1000, million_gets=10, egress=2)
    assert arithmetic.money(files, 2, 3, prices) == {
        "money_storage": 0.0, "money_puts": 1.0, "money_gets": 0.03, "money_gets_in_order": 0.03, "money_egress": 0.01,
    }  # fmt: skip
