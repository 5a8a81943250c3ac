"""preview and card: what a person, a browser and the Hub are shown."""

from pathlib import Path

import pytest
import yaml
from set_builders import encoded, picture, png, row, run, write_set


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = {"train/a b.png": png(1), "c.jpg": encoded(picture(2), "JPEG")}
    train = [row("a", "train/a b.png", "gone.png", answer="A | `b`\n<script>"), row("b", "c.jpg", answer="\x1b[31mred")]
    val = [row(f"v{n}", answer="yes") for n in range(3)]
    return write_set(
        tmp_path / "in",
        {"docs_train.jsonl": train, "docs_dev-x.jsonl": val},
        images,
        name="docs",
        metrics=["anls"],
        license="CC-BY-4.0",
        source="made up",
    )


def test_a_row_in_the_terminal(folder: Path) -> None:
    done = run("preview", folder, "--num_crops", 4)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "docs_train.jsonl:1  row 0 of 2 in split train"
    assert "image    train/a b.png  48 x 40 PNG, " in done.stdout
    assert "image    gone.png  (No such file or directory)" in done.stdout
    red = run("preview", folder, "--row", -1)
    assert "\x1b" not in red.stdout
    assert "answer   \\x1b[31mred" in red.stdout
    assert run("preview", folder, "--split", "dev-x", "--row", 2).stdout.startswith("docs_dev-x.jsonl:3  row 2 of 3")


def test_rows_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    assert "no row 9 in split 'train', which has 2 rows" in run("preview", folder, "--row", 9).stderr
    assert "no split 'tran'" in run("preview", folder, "--split", "tran").stderr
    assert run("preview", folder, "--row", 1, "--html", tmp_path / "x.html").returncode == 2


def test_the_gallery(folder: Path, tmp_path: Path) -> None:
    done = run("preview", folder, "--html", tmp_path / "page.html")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/page.html\n")
    assert (tmp_path / "page.html").read_bytes().startswith(b"<!doctype html>")


def test_the_card_has_a_header_for_the_hub_and_plain_text(folder: Path) -> None:
    done = run("card", folder)
    assert (done.returncode, done.stdout) == (0, f"{folder}/README.md\n"), done.stderr
    text = (folder / "README.md").read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["license"] == "cc-by-4.0"
    assert header["task_categories"] == ["visual-question-answering"]
    assert header["size_categories"] == ["n<1K"]
    assert header["configs"][0]["data_files"] == [
        {"split": "train", "path": "docs_train.jsonl"},
        {"split": "dev_x", "path": "docs_dev-x.jsonl"},
    ]
    assert "| train | 2 | 2 | 3 | yes |" in text
    assert '<img src="images/train/a%20b.png"' in text
    assert "<script>" not in text
    assert "Source: made up" in text
    assert run("validate", folder, "--json").stdout.count("README") == 0


def test_the_card_can_hold_its_pictures_and_never_replaces_a_readme_of_another_hand(folder: Path) -> None:
    assert run("card", folder, "--embed", "--license", "my own terms").returncode == 0
    text = (folder / "README.md").read_text()
    assert 'src="data:image/' in text
    assert yaml.safe_load(text.split("---\n")[1])["license_name"] == "my-own-terms"
    (folder / "README.md").write_text("mine")
    refused = run("card", folder)
    assert refused.returncode == 2
    assert (folder / "README.md").read_text() == "mine"
    assert run("card", folder, "--overwrite", "--samples", 0).returncode == 0
    assert "## Samples" not in (folder / "README.md").read_text()
