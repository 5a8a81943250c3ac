"""`phi3v-data export croissant`: a description of a directory."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from five_samples import FIVE, write_set
from in_process import Cli, make_cli


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return make_cli(capsys, monkeypatch)


def described(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def test_files_have_their_digests_and_addresses_relative_to_the_description(cli: Cli, tmp_path: Path) -> None:
    source = write_set(tmp_path / "my set", FIVE[3:])
    write_set(source, FIVE[:3], "val")
    path = source / "croissant.json"
    assert cli("export", "croissant", source, "--out", path)[:2] == (0, f"{path}: describes 5 rows\n")
    value = described(path)
    assert value["conformsTo"] == "http://mlcommons.org/croissant/1.1"
    assert value["name"] == "my set"
    rows, more, images = value["distribution"]
    assert (rows["@id"], rows["contentUrl"], more["contentUrl"]) == ("train.jsonl", "train.jsonl", "val.jsonl")
    assert rows["sha256"] == hashlib.sha256((source / "train.jsonl").read_bytes()).hexdigest()
    assert "images/**/*.jpg" in images["includes"]
    assert [records["@id"] for records in value["recordSet"]] == ["train", "val"]
    fields = {field["@id"]: field["source"] for field in value["recordSet"][1]["field"]}
    assert fields["val/id"] == {"fileObject": {"@id": "val.jsonl"}, "extract": {"column": "id"}}
    assert fields["val/users"]["transform"] == {"jsonPath": "$[*].user"}
    assert cli("export", "croissant", source, "--out", tmp_path / "beside.json")[0] == 0
    assert described(tmp_path / "beside.json")["distribution"][0]["contentUrl"] == "my%20set/train.jsonl"
    assert "croissant" not in cli("validate", source)[1]


def test_shards_of_a_split_are_one_set_of_files(cli: Cli, tmp_path: Path) -> None:
    source = write_set(tmp_path / "set", FIVE[:3], "train-00000-of-00002")
    write_set(source, FIVE[3:], "train-00001-of-00002")
    assert cli("export", "croissant", source, "--out", source / "croissant.json")[0] == 0
    value = described(source / "croissant.json")
    shards = next(item for item in value["distribution"] if item["@id"] == "train-files")
    assert shards["includes"] == ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"]
    assert value["recordSet"][0]["field"][0]["source"]["fileSet"] == {"@id": "train-files"}


def test_a_file_is_replaced_on_request_only(cli: Cli, tmp_path: Path) -> None:
    source = write_set(tmp_path / "set")
    path = tmp_path / "croissant.json"
    path.write_text("mine")
    code, _, err = cli("export", "croissant", source, "--out", path)
    assert (code, "--overwrite replaces it" in err, path.read_text()) == (2, True, "mine")
    assert cli("export", "croissant", source, "--out", path, "--overwrite")[0] == 0
    assert cli("export", "croissant", source, "--out", tmp_path)[0] == 2
    assert cli("export", "croissant", source, "--out", path, "--image_refs", "data")[0] == 2
