"""preview and card: what a person, a browser and the Hub are shown."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from in_process import make_cli
from markdown_it import MarkdownIt
from processes import run_data
from set_builders import encoded, make_image, png, row, write_set

from phi3v_data.sets.card import MARK


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = {"train/a b.png": png(1), "c.jpg": encoded(make_image(2), "JPEG")}
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
    done = run_data("preview", folder, "--num_crops", 4)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "docs_train.jsonl:1  row 0 of 2 in split train"
    assert "image    train/a b.png  48 x 40 PNG, " in done.stdout
    assert "image    gone.png  (No such file or directory)" in done.stdout
    red = run_data("preview", folder, "--row", -1)
    assert "\x1b" not in red.stdout
    assert "answer   \\x1b[31mred" in red.stdout
    assert run_data("preview", folder, "--split", "dev-x", "--row", 2).stdout.startswith(
        "docs_dev-x.jsonl:3  row 2 of 3"
    )


def test_a_damaged_image_is_said_in_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_set(tmp_path / "in", {"train.jsonl": [row("a", "a.png")]}, {"a.png": b"<html></html>"})
    code, out, _ = make_cli(capsys, monkeypatch)("preview", folder)
    assert (code, [line for line in out.splitlines() if line.startswith("image")]) == (
        0,
        ["image    a.png  (is not an image (an HTML page))"],
    )


def test_rows_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    assert "no row 9 in split 'train', which has 2 rows" in run_data("preview", folder, "--row", 9).stderr
    assert "no split 'tran'" in run_data("preview", folder, "--split", "tran").stderr
    assert run_data("preview", folder, "--row", 1, "--html", tmp_path / "x.html").returncode == 2


def test_the_gallery(folder: Path, tmp_path: Path) -> None:
    done = run_data("preview", folder, "--html", tmp_path / "page.html")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/page.html\n")
    assert (tmp_path / "page.html").read_bytes().startswith(b"<!doctype html>")


def test_the_card_has_a_header_for_the_hub_and_plain_text(folder: Path) -> None:
    done = run_data("card", folder)
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
    assert run_data("validate", folder, "--json").stdout.count("README") == 0


def test_the_card_can_contain_its_images_and_never_replaces_a_readme_that_phi3v_did_not_write(folder: Path) -> None:
    assert run_data("card", folder, "--embed", "--license", "my own terms").returncode == 0
    text = (folder / "README.md").read_text()
    assert 'src="data:image/' in text
    assert yaml.safe_load(text.split("---\n")[1])["license_name"] == "my-own-terms"
    (folder / "README.md").write_text("mine")
    refused = run_data("card", folder)
    assert refused.returncode == 2
    assert (folder / "README.md").read_text() == "mine"
    assert run_data("card", folder, "--overwrite", "--samples", 0).returncode == 0
    assert "## Samples" not in (folder / "README.md").read_text()


def test_the_card_of_a_set_with_images_in_shards_contains_them(folder: Path, tmp_path: Path) -> None:
    (folder / "docs_train.jsonl").write_text(json.dumps(row("a", "c.jpg", answer="yes")) + "\n")
    assert run_data("store", folder, tmp_path / "shards", "--store", "shards").returncode == 0
    assert run_data("card", tmp_path / "shards").returncode == 0
    text = (tmp_path / "shards" / "README.md").read_text()
    assert "one JSON object per line, images in tar files under `shards/`." in text
    assert text.count("<img ") == text.count('<img src="data:image/') == 1
    code = text.partition("```python\n")[2].partition("```")[0].replace('"DIR"', repr(str(tmp_path / "shards")))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[<PIL.JpegImagePlugin.JpegImageFile ")


def test_the_readme_of_an_export_stays_as_it_is(folder: Path, tmp_path: Path) -> None:
    """A card names the files of a directory, which the export does not have: `load_dataset` would fail."""
    (folder / "docs_train.jsonl").write_text(json.dumps(row("a", "c.jpg", answer="yes")) + "\n")
    export = tmp_path / "export"
    assert run_data("export", "webdataset", folder, "--out", export).returncode == 0
    (export / "README.md").write_text(f"{MARK}\nof the export")
    refused = run_data("card", export)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: {export} is an export, and a card names the files of")
    assert (export / "README.md").read_text() == f"{MARK}\nof the export"


def test_no_name_or_text_makes_markup_in_the_card(tmp_path: Path) -> None:
    evil = "x`|# [a](javascript:1)<img src=x>\n\n---\nlicense: mit\n---\n# **big** \x1b[31m"
    plain = evil.replace("\n", " ").replace("/", "")
    rows = [row(f"r{n}", "a.png", answer=f"{n % 2} {evil}", user=evil) for n in range(6)]
    folder = write_set(
        tmp_path / "in",
        {f"{plain[:20]}_train.jsonl": rows},
        {"a.png": png(1)},
        name="x`|# [a](javascript:1)<img src=x> --- # **big**",
        source=evil,
        license=evil,
        metrics=[evil],
        rejects={evil: 2},
        notes={evil: 1},
        converter={"name": evil, "version": evil, "options": {evil: evil}},
        history=[{"name": evil, "version": evil, "options": {evil: evil}}],
        classes=[f"0 {evil}", f"1 {evil}"],
    )
    done = run_data("card", folder)
    assert done.returncode == 0, done.stderr
    text = (folder / "README.md").read_text()
    start, header, body = text.split("---\n", 2)
    assert start == ""
    known = yaml.safe_load(header)
    assert (known["license"], known["pretty_name"]) == ("other", "x`|# [a](javascript:1)<img src=x> --- # **big**")
    assert "\x1b" not in text
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    inline = [child for token in tokens for child in token.children or ()]
    kinds = {token.type for token in (*tokens, *inline)}
    assert not kinds & {"hr", "link_open", "image", "em_open", "code_block"}
    headings = [tokens[n + 1].content for n, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings[1:] == ["Labels", "Source and licence", "Samples", "Usage"]
    raw = [token.content for token in (*tokens, *inline) if token.type in ("html_inline", "html_block")]
    assert all(re.match(r'<img src="images/a\.png"|<!-- Written by', piece) for piece in raw), raw
