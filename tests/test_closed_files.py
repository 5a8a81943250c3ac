"""A file that cannot be read is reported, and never taken for missing: no command continues with the rest."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from in_process import Cli, make_cli
from permissions import bound_by_permissions
from sets.set_builders import png, row, write_set

import phi3v_data

FIX = "fix its permissions (chmod -R u+rX)"
IMAGES = {"train/a.png": png(1), "train/b.png": png(2), "val/c.png": png(3)}


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Two rows to train on and one held out, all in order; readable again after the test."""
    splits = {
        "x_train.jsonl": [row("a", "train/a.png"), row("b", "train/b.png")],
        "x_val.jsonl": [row("c", "val/c.png")],
    }
    root = write_set(tmp_path / "set", splits, IMAGES, task="vqa")
    with bound_by_permissions():
        yield root
    for path in (root / "images", root / "images/val", root):
        path.chmod(0o755)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return make_cli(capsys, monkeypatch)


def commands(directory: Path) -> list[list[object]]:
    out = directory.parent / "out"
    return [
        ["split", directory, out, "--split", "train=0.5,val=0.5"],
        ["merge", directory, out],
        ["clean", directory, out],
        ["stats", directory],
        ["stats", directory, "--level", "quick"],
    ]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("images", 0o000),
        ("images/val", 0o000),
        ("images/val", 0o444),
        ("x_val.jsonl", 0o000),
        ("dataset.json", 0o000),
    ],
)
def test_what_may_not_be_read_stops_every_command_on_sets(cli: Cli, directory: Path, name: str, mode: int) -> None:
    (directory / name).chmod(mode)
    for args in commands(directory):
        code, out, err = cli(*args, "--quiet")
        assert (code, out) == (2, ""), args
        assert err == f"error: {directory}/{name}: cannot be read (Permission denied); {FIX}\n"
    assert not (directory.parent / "out").exists()


def test_an_image_that_may_not_be_read_is_not_cleaned_away(cli: Cli, directory: Path) -> None:
    (directory / "images/val/c.png").chmod(0o000)
    for args in (commands(directory)[2], commands(directory)[3]):
        code, out, err = cli(*args, "--quiet")
        assert (code, out) == (2, "")
        assert err == f"error: {directory}/images/val/c.png: cannot be read (Permission denied); {FIX}\n"
    assert not (directory.parent / "out").exists()


def findings(cli: Cli, directory: Path) -> dict[str, list[str]]:
    """Messages and hints by code, as `validate --json` lists them."""
    code, out, _ = cli("validate", directory, "--json", "--quiet")
    assert code == 1
    result: dict[str, list[str]] = {}
    for problem in json.loads(out)["problems"]:
        result.setdefault(problem["code"], []).append(f"{problem['message']} / {problem['hint']}")
    return result


def test_validate_has_one_word_on_a_file_that_may_not_be_read(cli: Cli, directory: Path) -> None:
    (directory / "x_val.jsonl").chmod(0o000)
    assert findings(cli, directory) == {"shard-missing": [f"the file cannot be read: Permission denied / {FIX}"]}


def test_validate_says_what_to_do_about_a_closed_manifest(cli: Cli, directory: Path) -> None:
    (directory / "dataset.json").chmod(0o000)
    assert findings(cli, directory) == {"manifest-invalid": [f"cannot be read: Permission denied / {FIX}"]}


def test_validate_points_at_permissions_where_images_may_not_be_read(cli: Cli, directory: Path) -> None:
    (directory / "images/val").chmod(0o000)
    (directory / "images/train/a.png").chmod(0o000)
    assert findings(cli, directory) == {
        "check-skipped": [
            f"the folder cannot be read (Permission denied), so the images in it are not checked / {FIX}"
        ],
        "image-unreadable": [
            "'train/a.png' cannot be opened: Permission denied / fix its permissions (chmod u+r), or copy it again",
            f"'val/c.png' cannot be read: 'images/val' cannot (Permission denied) / {FIX}",
        ],
    }


def test_an_unreadable_folder_behind_a_link_is_not_a_loop_of_links(cli: Cli, directory: Path) -> None:
    (directory / "images/train/b.png").unlink()
    (directory / "images/train/b.png").symlink_to("../val/c.png")
    (directory / "images/val").chmod(0o000)
    problems = findings(cli, directory)
    assert not any("loop" in text for text in problems["image-unreadable"])
    assert len(problems["image-unreadable"]) == 2


def test_a_dataset_says_what_to_do_about_a_closed_file(directory: Path) -> None:
    (directory / "x_val.jsonl").chmod(0o000)
    with pytest.raises(phi3v_data.UserError) as caught:
        phi3v_data.Dataset(directory)["val"]
    assert str(caught.value) == f"{directory}/x_val.jsonl: cannot be read (Permission denied); {FIX}"
