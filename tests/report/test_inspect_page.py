"""`phi3v-train inspect --html`: images at their place, tokens by whether they are trained, nothing that can run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from in_process import Cli, make_cli
from PIL import Image
from report_browser import CHROMIUM, open_on_phone, open_page

from phi3v_data.schema import Sample, Turn
from phi3v_train.cli.app import main

EVIL = "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\"> \x1b[31m \u202e"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return make_cli(capsys, monkeypatch)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two turns with an image between words and one of weight 0; a row of markup; a row that trains nothing."""
    folder = tmp_path / "secret" / "set"
    (folder / "images").mkdir(parents=True)
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (64, 48), colour).save(folder / "images" / name)
    turns = (
        Turn(
            images=("a.png", "b.png"), user="left or right?", assistant="context only", image_offsets=(0, 5), weight=0
        ),
        Turn(user="Sure?", assistant="größer 火"),
    )
    rows = [
        Sample(id="two", source="s", conversations=turns, system="Be brief."),
        Sample(id=EVIL, source=EVIL, conversations=(Turn(user=EVIL, assistant=EVIL),)),
        Sample(id="none", source="s", conversations=(Turn(user="q", assistant="a", weight=0),)),
    ]
    (folder / "set_train.jsonl").write_text("".join(row.to_json() + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def page(cli: Cli, directory: Path, tmp_path: Path) -> Path:
    pytest.importorskip("torch")
    target = tmp_path / "out" / "inspected.html"
    code, out, err = cli(
        "inspect", directory, "--html", target, "--model_name_or_path", "tiny", "--num_crops", 1, main=main
    )
    assert code == 1
    assert re.fullmatch(rf"{target}: 3 rows, [\d,]+ tokens, \d+ of them trained\n", out)
    assert err == "1 of 3 rows would train nothing: set_train.jsonl:3\n"
    return target


def payload_of(page: Path) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert match is not None
    value: dict[str, Any] = json.loads(match[1])
    return value


def test_the_page_has_what_the_json_has(page: Path, cli: Cli, directory: Path) -> None:
    data = payload_of(page)
    _, out, _ = cli(
        "inspect", directory, "--rows", "0-2", "--json", "--model_name_or_path", "tiny", "--num_crops", 1, main=main
    )
    views = json.loads(out)
    assert (data["name"], data["ok"], data["headline"]) == ("set", False, "1 row would train nothing")
    for row, view in zip(data["rows"], views, strict=True):
        assert (row["id"], row["tokens"], row["image"]) == (view["id"], view["num_tokens"], view["num_image_tokens"])
        assert row["trained"] == view["num_supervised"]
        assert row["at"] == f"set_train.jsonl:{view['row'] + 1}"
        assert row["template"] == view["template"]
        ids = [number for span in row["spans"] if span["kind"] != "image" for number in span["ids"]]
        assert ids == [number for number in view["input_ids"] if number >= 0]
        trained = [number for span in row["spans"] if span["kind"] == "trained" for number in span["ids"]]
        assert trained == [label for label in view["labels"] if label != -100]
    first = data["rows"][0]
    assert [(image["path"], image["uri"][:11]) for image in first["images"]] == [
        ("a.png", "data:image/"),
        ("b.png", "data:image/"),
    ]
    kinds = [span["kind"] for span in first["spans"]]
    assert kinds == ["context", "image", "context", "image", "context", "trained"]
    assert [span["words"] for span in first["spans"] if span["kind"] == "image"] == [
        "[image 1: 313 tokens]",
        "[image 2: 313 tokens]",
    ]
    assert "".join(first["spans"][2]["texts"]).removeprefix("<s>") == " ⏎\nleft "
    start = "<|system|>\nBe brief.<|end|>\n<|user|>\n<|image_1|>\nleft <|image_2|>or right?"
    assert first["template"].startswith(start)
    assert [row["wrong"] for row in data["rows"]] == [False, False, True]
    assert "its only turn has weight 0" in data["rows"][2]["notes"][0]


def test_nothing_is_fetched_no_markup_comes_from_the_data_and_no_path(page: Path, directory: Path) -> None:
    text = page.read_text("utf-8")
    assert text.count("<script") == text.count("</script>") == 2
    assert "default-src 'none'" in text
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:|//)", text)
    assert "secret" not in text
    assert "\x1b" not in text


@needs_chromium
def test_images_stand_between_the_words_and_no_content_runs(page: Path, tmp_path: Path) -> None:
    opened = open_page(page, tmp_path / "profile")
    assert opened.console == ()
    assert "<title>set: inspected rows</title>" in opened.dom
    row, evil, none = opened.dom.split("data-row=")[1:]
    shown = re.sub(r"<figure.*?<b>(.*?)</b>.*?</figure>", r"\1", row)
    flow = re.sub(r"<[^>]*>", "", shown).replace("\n", "")
    assert "⏎[image 1: 313 tokens]&lt;s&gt; ⏎left [image 2: 313 tokens]&lt;s&gt; or right?" in flow
    trained = re.findall(r'<span class="trained">(.*?)</span></span>', row, re.DOTALL)
    assert len(trained) == 1
    assert "context only" not in re.sub(r"<[^>]*>", "", trained[0])
    assert "&lt;/script&gt;" in evil
    assert "trains nothing" in none


@needs_chromium
def test_the_page_fits_a_phone(page: Path, tmp_path: Path) -> None:
    script = "const e = frame.document.documentElement; document.title = e.scrollWidth - e.clientWidth;"
    opened = open_on_phone(page, tmp_path / "profile", script, width=400)
    assert "<title>0</title>" in opened.dom


def test_a_page_in_place_of_the_sets_own_file_and_too_many_rows_are_refused(
    cli: Cli, directory: Path, tmp_path: Path
) -> None:
    model = ("--model_name_or_path", "tiny")
    before = (directory / "set_train.jsonl").read_bytes()
    code, _, err = cli("inspect", directory, "--html", directory / "set_train.jsonl", *model, main=main)
    assert (code, "belongs to the set" in err) == (2, True)
    assert (directory / "set_train.jsonl").read_bytes() == before
    (tmp_path / "table.csv").write_text("from,to\n")
    code, _, err = cli("inspect", directory, "--html", tmp_path / "table.csv", *model, main=main)
    assert (code, "table.csv: is a file and no HTML page" in err) == (2, True)
    assert (tmp_path / "table.csv").read_text() == "from,to\n"
    line = before.splitlines(keepends=True)[1]
    (directory / "set_train.jsonl").write_bytes(line * 600)
    code, _, err = cli("inspect", directory, "--rows", "0-500", "--html", tmp_path / "x.html", *model, main=main)
    assert (code, "501 rows are too many for a page, which shows up to 500" in err) == (2, True)
    assert not (tmp_path / "x.html").exists()
