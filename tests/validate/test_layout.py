"""Names, shards and splits; dataset.json and whether it still holds; labels; the report's summary."""

import hashlib
import json
from pathlib import Path

import pytest
from validate_builders import found, line, row, turn, write

from phi3v_data.errors import NotFoundError
from phi3v_data.schema import Report
from phi3v_data.splits import is_split_name
from phi3v_data.validate import validate


def manifest_for(directory: Path, **more: object) -> dict[str, object]:
    """A manifest that agrees with the JSONL files of a directory."""
    splits: dict[str, dict[str, object]] = {}
    for path in sorted(directory.glob("*.jsonl")):
        split = path.stem.split("_")[-1].split("-")[0]
        entry = splits.setdefault(split, {"rows": 0, "images": 0, "files": {}})
        entry["rows"] = int(str(entry["rows"])) + len(path.read_bytes().splitlines())
        files = entry["files"]
        assert isinstance(files, dict)
        files[path.name] = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    return {"format": 1, "name": "x", "task": "classification", "splits": splits, **more}


def complete(directory: Path, files: dict[str, object], **more: object) -> Path:
    write(directory, files)  # type: ignore[arg-type]
    write(directory, {"dataset.json": json.dumps(manifest_for(directory, **more))})
    return directory


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such directory"):
        validate(tmp_path / "none")


def test_an_empty_directory(tmp_path: Path) -> None:
    report = validate(tmp_path)
    assert report.summary.problems == {"split-empty": 1}
    assert not report.ok
    assert report.summary.samples == 0


def test_split_names(tmp_path: Path) -> None:
    files = [
        "train.jsonl",
        "memes_dev_seen.jsonl",
        "docs_holdout.jsonl",
        "rejects.jsonl",
        "predictions.jsonl",
        ".x.jsonl",
    ]
    write(tmp_path, {name: [row(name)] for name in files})
    report = validate(tmp_path)
    assert report.problems == ()
    assert report.summary.splits == {"train": 1, "dev_seen": 1, "holdout": 1}
    write(tmp_path, {"samples.jsonl": [row("s")], "other_train.jsonl": [row("o")]})
    report = validate(tmp_path)
    assert [item.file for item in found(report, "split-name")] == ["samples.jsonl", "train.jsonl"]


def test_shards(tmp_path: Path) -> None:
    for number in (0, 1, 3):
        write(tmp_path, {f"x_train-{number:05d}-of-00005.jsonl": [row(f"r{number}")]})
    report = validate(tmp_path)
    assert [item.file for item in found(report, "shard-missing")] == [
        "x_train-00002-of-00005.jsonl",
        "x_train-00004-of-00005.jsonl",
    ]
    assert report.summary.splits == {"train": 3}


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    write(tmp_path, {"train.jsonl": [row("a")]})
    (tmp_path / "val.jsonl").mkdir()
    report = validate(tmp_path)
    assert report.summary.problems == {"shard-missing": 1}
    assert "cannot be read" in found(report, "shard-missing")[0].message


def test_a_complete_directory_is_valid(tmp_path: Path) -> None:
    complete(tmp_path, {"x_train.jsonl": [row("a")], "x_val.jsonl": [row("b")]})
    assert validate(tmp_path).problems == ()


def test_a_manifest_that_no_longer_holds(tmp_path: Path) -> None:
    complete(tmp_path, {"x_train.jsonl": [row("a")], "x_val.jsonl": [row("b")]})
    write(tmp_path, {"x_train.jsonl": [row("a"), row("c")], "x_test.jsonl": [row("d")]})
    report = validate(tmp_path)
    assert {item.field for item in found(report, "manifest-stale")} == {
        "splits.train.rows",
        "splits.train.files",
        "splits",
    }
    (tmp_path / "x_val.jsonl").unlink()
    assert "x_val.jsonl" in [item.file for item in found(validate(tmp_path), "shard-missing")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("[1, 2]", "must be an object, not an array of 2"),
        ('{"a":' * 100_000, "not JSON"),
        ('{"format": 3, "name": "x"}', "newer phi3v"),
        ('{"format": 1, "name": 3, "task": "vqa", "splits": {}}', "must be a string, not 3"),
        ('{"format": 1, "name": "x", "task": "vqa", "splits": {}, "extra": 1}', "is not a known key"),
        ('{"format": 1, "name": "x", "task": "vqa", "splits": {}, "num_crops": 99}', "must be at most 16, not 99"),
        ('{"format": 1, "name": "' + 101 * "x" + '", "task": "vqa", "splits": {}}', "at most 100 bytes"),
        ('{"format": 1, "name": "' + 51 * "é" + '", "task": "vqa", "splits": {}}', "at most 100 bytes"),
        (b"\xff\xfe{", "not JSON"),
    ],
)
def test_a_manifest_that_is_none(tmp_path: Path, text: str | bytes, words: str) -> None:
    write(tmp_path, {"train.jsonl": [row("a"), "{"], "dataset.json": text})
    (tmp_path / "train.jsonl").write_text(line(row("a")) + "{\n")
    report = validate(tmp_path)
    assert words in found(report, "manifest-invalid")[0].message
    assert "json-syntax" in report.summary.problems
    assert report.summary.samples == 2


def test_labels(tmp_path: Path) -> None:
    complete(
        tmp_path,
        {
            "x_train.jsonl": [row("a", turn("q1", "cat")), row("b", turn("q2", "cats")), row("c", turn("q3", "cat"))],
            "x_val.jsonl": [row("d", turn("q4", "dog")), row("e", turn("x", "anything"), turn("q5", "cat"))],
        },
        classes=["cat", "dog"],
    )
    report = validate(tmp_path)
    assert [(item.code, item.file, item.line) for item in report.problems] == [
        ("label-unknown", "x_train.jsonl", 2),
        ("label-missing-in-train", "x_val.jsonl", None),
    ]
    assert report.problems[0].hint == "did you mean 'cat'?"
    assert report.stats["labels"] == {"train": {"cat": 2, "cats": 1}, "val": {"cat": 1, "dog": 1}}


def test_stats_and_summary(tmp_path: Path) -> None:
    rows = [row("a"), row("b", turn("p"), turn("q")), row("c", turn("r"), turn("s"))]
    report = validate(write(tmp_path, {"train.jsonl": rows, "val.jsonl": [row("d")]}))
    assert report.stats["turns"] == {"1": 2, "2": 2}
    assert report.stats["images_per_sample"] == {"0": 4}
    assert report.stats["splits"]["train"]["turns"] == 5
    assert report.stats["tokens"]["min"] <= report.stats["tokens"]["median"] <= report.stats["tokens"]["max"]
    assert report.summary.model_dump() == {
        "samples": 4,
        "turns": 6,
        "images": 0,
        "splits": {"train": 3, "val": 1},
        "problems": {},
    }
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_strict_wants_no_warnings(tmp_path: Path) -> None:
    write(tmp_path, {"train.jsonl": line(row("a")) + "\n" + line(row("b"))})
    assert validate(tmp_path).ok
    assert not validate(tmp_path, strict=True).ok
    assert validate(tmp_path).ok
    write(tmp_path, {"train.jsonl": [row("a")]})
    assert validate(tmp_path, strict=True).ok


def test_progress_goes_from_rows_to_images(tmp_path: Path) -> None:
    from validate_images import encoded, make_image

    write(tmp_path, {"train.jsonl": [row("a", turn(images=("a.png",)))], "images/a.png": encoded(make_image(1))})
    calls: list[tuple[str, int, int]] = []
    validate(tmp_path, progress=lambda *call: calls.append(call))
    size = (tmp_path / "train.jsonl").stat().st_size
    assert calls == [("rows", size, size), ("images", 1, 1)]


def test_a_split_has_at_most_a_hundred_letters() -> None:
    assert is_split_name(100 * "x")
    assert not is_split_name(101 * "x")
