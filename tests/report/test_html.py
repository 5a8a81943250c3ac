"""The page: what is in it, how large it gets, and that nothing from the data can run."""

import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import make_cli
from PIL import Image
from report_browser import CHROMIUM, Opened, open_on_phone, open_page
from report_samples import EVIL, make_image, make_sample

from phi3v_data.dataset import Dataset
from phi3v_data.report.gallery import collect
from phi3v_data.report.html import make_html, write_html
from phi3v_data.report.thumbnails import Thumbnailer
from phi3v_data.schema import Diagnostic, Report, Sample, Summary, Turn

ROW_KEYS = st.sampled_from(["id", "source", "conversations", "images", "user", "image_offsets", "answers", "meta"])
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def payload_of(page: bytes) -> dict[str, Any]:
    match = re.search(rb'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert match is not None
    value = json.loads(match[1])
    assert isinstance(value, dict)
    return value


@pytest.fixture
def page(report: Report, directory: Path, tmp_path: Path) -> Path:
    target = tmp_path / "out" / "report.html"
    write_html(report, directory, target)
    return target


def test_everything_is_in_the_page(report: Report, directory: Path) -> None:
    data = payload_of(make_html(report, directory))
    assert data["name"] == "tiny"
    assert data["counts"] == {"samples": 27, "turns": 28, "images": 25, "error": 2, "warning": 3, "info": 1}
    titles = ["Tokens", "Image tokens", "Images", "Turns", "Image sizes", "Splits", "Labels"]
    assert [chart["title"] for chart in data["charts"]] == titles
    assert data["charts"][4]["bars"] == [["64 x 48", 25]]
    assert data["charts"][0]["note"] == "text estimated, images exact at num_crops 4"
    assert [problem["code"] for problem in data["problems"]][:2] == ["image-missing", "json-syntax"]
    missing = data["problems"][0]["list"][0]
    assert '"val/1.png"' in data["rows"][missing["row"]]
    assert data["samples"][missing["s"]]["id"] == "val-0000000001"
    assert len(data["samples"]) == 27
    assert {sample["label"] for sample in data["samples"]} == {"Archery", "Bowling", "Diving", ""}
    assert data["gallery_note"] == "Every sample of the directory."


def test_samples_with_problems_come_first_errors_before_warnings(report: Report, directory: Path) -> None:
    samples = payload_of(make_html(report, directory))["samples"]
    assert [sample["at"] for sample in samples[:3]] == ["tiny_val.jsonl:2", "tiny_val.jsonl:7", "tiny_train.jsonl:4"]
    assert samples[1]["turns"] == []
    assert samples[1]["raw"].startswith('{"id": "broken"')
    assert all(not sample["problems"] for sample in samples[3:])


def test_images_are_small_copies_and_holes_say_why(report: Report, directory: Path) -> None:
    images = {image[0]: image for image in payload_of(make_html(report, directory))["images"]}
    assert images["train/3.png"][1:3] == [64, 48]
    assert images["train/3.png"][3].startswith("data:image/webp;base64,")
    assert images["val/1.png"][3:] == ["", "missing"]


def test_the_page_is_the_same_every_time_and_written_whole(page: Path, report: Report, directory: Path) -> None:
    assert make_html(report, directory) == page.read_bytes()
    assert [path.name for path in page.parent.iterdir()] == ["report.html"]


def test_nothing_is_fetched_and_no_markup_comes_from_the_data(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("<script") == 2
    assert text.count("</script>") == 2
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", text)
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert "url(" not in text


def test_broken_images_of_every_kind(directory: Path) -> None:
    images = directory / "images"
    (images / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 not whole")
    (images / "empty.png").touch()
    (images / "folder.png").mkdir()
    (images / "loop.png").symlink_to("loop.png")
    (images.parent.parent / "secret.png").write_bytes((images / "train/0.png").read_bytes())
    (images / "out.png").symlink_to("../../secret.png")
    Image.new("I;16", (20, 10), 3000).save(images / "deep.png")
    Image.new("CMYK", (20, 10)).save(images / "cmyk.jpg")
    Image.new("RGBA", (20, 10), (255, 0, 0, 0)).save(images / "clear.png")
    thumbnailer = Thumbnailer(directory, 10)
    reasons = {
        "cut.jpg": "cannot be decoded",
        "empty.png": "cannot be decoded",
        "folder.png": "not a file",
        "loop.png": "unreadable",
        "out.png": "a link to outside images/",
        "../secret.png": "its path has '..'",
        "absent.png": "missing",
    }
    for name, reason in reasons.items():
        assert (thumbnailer.make(name).uri, thumbnailer.make(name).reason) == ("", reason)
    for name in ("deep.png", "cmyk.jpg", "clear.png"):
        assert thumbnailer.make(name).uri, name


def write_many(directory: Path, rows: int, problems: int) -> Report:
    """`rows` rows with 8 noisy images each out of 200 files, and problems in the first of them."""
    rng = random.Random(5)
    (directory / "images").mkdir(parents=True)
    for n in range(200):
        Image.frombytes("RGB", (160, 120), rng.randbytes(57600)).save(directory / "images" / f"{n}.jpg", quality=50)
    with open(directory / "many_train.jsonl", "w", encoding="utf-8") as file:
        for n in range(rows):
            images = tuple(f"{rng.randrange(200)}.jpg" for _ in range(8))
            turn = Turn(images=images, user="What is done here? " * 10, assistant=f"class {n % 101}")
            file.write(Sample(id=f"train-{n:010d}", source="many", conversations=(turn,)).to_json() + "\n")
    found = tuple(
        Diagnostic(code=f"code-{n % 40}", severity="error", file="many_train.jsonl", line=1 + n, message="x" * 300)
        for n in range(problems)
    )
    counts = {f"code-{n}": problems // 40 for n in range(40)}
    summary = Summary(samples=rows, turns=rows, images=200, splits={"train": rows}, problems=counts)
    return Report(dir=str(directory), ok=False, level="full", summary=summary, problems=found)


@pytest.mark.slow
def test_a_hundred_thousand_rows_give_a_page_under_thirty_megabytes(tmp_path: Path) -> None:
    report = write_many(tmp_path / "many", 100_000, 40_000)
    page = make_html(report, tmp_path / "many")
    data = payload_of(page)
    assert len(page) < 30e6
    assert len(data["samples"]) == 500
    assert {code for sample in data["samples"] for code in sample["problems"]} == set(report.summary.problems)
    assert all(len(problem["list"]) >= 100 for problem in data["problems"])
    assert len({finding["row"] for problem in data["problems"] for finding in problem["list"]}) > 1000


@pytest.mark.slow
def test_the_largest_rows_and_messages_stay_under_thirty_megabytes(tmp_path: Path) -> None:
    long = '\u6587\u5b57<"\\' * 1000
    meta = {f"{k}{long}": long for k in range(9)}
    with open(tmp_path / "train.jsonl", "w", encoding="utf-8") as file:
        for n in range(600):
            turns = tuple(Turn(images=(long,) * 9, user=long, assistant=long) for _ in range(8))
            sample = Sample(id=f"{n}{long}", source=long, conversations=turns, meta=meta)
            file.write(sample.to_json() + "\n")
    problems = tuple(
        Diagnostic(
            code=f"code-{n % 9}", severity="error", file="train.jsonl", line=1 + n % 600, message=long, hint=long
        )
        for n in range(9000)
    )
    counts = {f"code-{n}": 1000 for n in range(9)}
    summary = Summary(samples=600, turns=4800, images=0, splits={"train": 600}, problems=counts)
    report = Report(dir=str(tmp_path), ok=False, level="quick", summary=summary, problems=problems)
    page = make_html(report, tmp_path)
    assert len(page) < 30e6
    assert len(payload_of(page)["samples"]) == 500


def test_values_nested_too_deeply_are_shown_as_such(tmp_path: Path) -> None:
    deep = "[" * 900 + "]" * 900
    (tmp_path / "train.jsonl").write_text(f'{{"id": {deep}, "conversations": [{{"user": {deep}}}]}}\n')
    summary = Summary(samples=1, turns=0, images=0, splits={"train": 1}, problems={})
    report = Report(dir=str(tmp_path), ok=False, level="quick", summary=summary, problems=())
    assert len(payload_of(make_html(report, tmp_path))["samples"]) == 1


def test_when_images_use_up_the_budget_the_rest_say_so(directory: Path) -> None:
    thumbnailer = Thumbnailer(directory, 10, budget=1)
    assert thumbnailer.make("train/0.png").uri
    assert thumbnailer.make("train/1.png").reason == "left out to keep this page small"


def test_the_choice_is_spread_over_splits_and_labels_and_repeats(tmp_path: Path) -> None:
    with open(tmp_path / "train.jsonl", "w", encoding="utf-8") as file:
        for n in range(3000):
            turn = Turn(user="q", assistant="rare" if n % 1000 == 5 else "often")
            file.write(Sample(id=f"train-{n}", source="s", conversations=(turn,)).to_json() + "\n")
    (tmp_path / "val.jsonl").write_text(make_sample("val", 0).to_json() + "\n", encoding="utf-8")
    summary = Summary(samples=3001, turns=3001, images=0, splits={"train": 3000, "val": 1}, problems={})
    report = Report(dir=str(tmp_path), ok=True, level="quick", summary=summary, problems=())
    first = collect(Dataset(tmp_path), report, limit=20).samples
    again = collect(Dataset(tmp_path), report, limit=20).samples
    assert [sample.location for sample in first] == [sample.location for sample in again]
    assert sum(sample.label == "rare" for sample in first) == 3
    assert sum(sample.split == "val" for sample in first) == 1
    assert len(first) == len({sample.location for sample in first}) == 20


def test_free_text_is_not_a_label(tmp_path: Path) -> None:
    with open(tmp_path / "train.jsonl", "w", encoding="utf-8") as file:
        for n in range(1500):
            file.write(
                Sample(id=f"t-{n}", source="s", conversations=(Turn(user="q", assistant=f"a{n}"),)).to_json() + "\n"
            )
    summary = Summary(samples=1500, turns=1500, images=0, splits={"train": 1500}, problems={})
    report = Report(dir=str(tmp_path), ok=True, level="quick", summary=summary, problems=())
    found = collect(Dataset(tmp_path), report)
    assert found.labels == {}
    assert {sample.label for sample in found.samples} == {""}
    assert len(found.samples) == 500


@pytest.mark.parametrize(
    "row", ["[]", "{}", '{"conversations": 3}', '{"conversations": [4, {"images": [1, "a"]}]}', "1" * 5000]
)
def test_rows_of_any_shape_are_shown(tmp_path: Path, row: str) -> None:
    (tmp_path / "train.jsonl").write_text(row + "\n" + '{"id": {"x": 1}, "meta": [], "answers": [[1]], "group": 3}\n')
    problem = Diagnostic(code="wrong-type", severity="error", file="train.jsonl", line=1, message="m")
    summary = Summary(samples=2, turns=0, images=0, splits={"train": 2}, problems={"wrong-type": 1})
    report = Report(dir=str(tmp_path), ok=False, level="quick", summary=summary, problems=(problem,))
    assert len(payload_of(make_html(report, tmp_path))["samples"]) == 2


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ROW_KEYS | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(st.binary(max_size=200) | st.dictionaries(ROW_KEYS, json_values).map(lambda row: json.dumps(row).encode()))
@settings(max_examples=60, deadline=None)
def test_no_file_is_too_odd_to_be_shown(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    directory = tmp_path_factory.mktemp("odd")
    (directory / "train.jsonl").write_bytes(content)
    problem = Diagnostic(code="json-syntax", severity="error", file="train.jsonl", line=1, message="m")
    summary = Summary(samples=1, turns=0, images=0, splits={"train": 1}, problems={"json-syntax": 1})
    report = Report(dir=str(directory), ok=False, level="quick", summary=summary, problems=(problem,))
    payload_of(make_html(report, directory))


def test_a_directory_without_splits(tmp_path: Path) -> None:
    summary = Summary(samples=0, turns=0, images=0, splits={}, problems={"split-name": 1})
    problem = Diagnostic(code="split-name", severity="error", file="data.jsonl", message="no split")
    report = Report(dir=str(tmp_path), ok=False, level="quick", summary=summary, problems=(problem,))
    assert payload_of(make_html(report, tmp_path))["samples"] == []


@needs_chromium
def test_the_page_opens_without_a_word_on_the_console(page: Path, tmp_path: Path) -> None:
    opened = open_page(page, tmp_path / "profile")
    assert opened.console == ()
    assert opened.found == "27 of 27 samples shown here"
    assert len(opened.cards) == 27
    assert "<title>tiny: validation report</title>" in opened.dom
    assert 'class="chart"' in opened.dom
    assert 'data-code="image-missing"' in opened.dom


@needs_chromium
@pytest.mark.parametrize(
    ("fragment", "shown"),
    [
        ("#problem=image-missing", ["val-0000000001"]),
        ("#split=val&label=%3DArchery", ["val-0000000000", "val-0000000003"]),
        ("#split=train&label=%3DBowling&text=train-0000000019", ["train-0000000019"]),
        ("#problem=*&split=train", ["train-0000000003"]),
        ("#problem=image-missing&split=train", []),
    ],
)
def test_filters_by_problem_split_label_and_text(page: Path, tmp_path: Path, fragment: str, shown: list[str]) -> None:
    opened = open_page(page, tmp_path / "profile", fragment)
    assert opened.console == ()
    assert sorted(opened.cards) == shown
    assert opened.found.startswith(f"{len(shown)} of 27")


def drive(page: Path, tmp_path: Path, script: str) -> tuple[Any, Opened]:
    """Run `script`, an expression's body that returns a value, and give the value back."""
    wrapped = (
        "(async () => { const $ = id => document.getElementById(id);"
        "const named = id => document.querySelector(`.sample[aria-label^='Sample ${id},']`);"
        "const choose = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event('change')); };"
        "const key = name => $('sample').dispatchEvent(new KeyboardEvent('keydown', {key: name, bubbles: true}));"
        f"const value = await (async () => {{ {script} }})();"
        "const out = document.createElement('pre'); out.id = 'driven'; out.textContent = JSON.stringify(value);"
        "document.body.append(out); })()"
    )
    opened = open_page(page, tmp_path / "profile", script=wrapped)
    match = re.search(r'<pre id="driven">(.*?)</pre>', opened.dom, re.DOTALL)
    assert match is not None, opened.console
    return json.loads(match[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")), opened


@needs_chromium
def test_the_controls_work_as_a_user_works_them(page: Path, tmp_path: Path) -> None:
    seen, opened = drive(
        page,
        tmp_path,
        """
        const seen = {};
        choose('f-split', 'val');
        seen.val = document.querySelectorAll('.sample').length;
        choose('f-problem', '-');
        seen.clean = document.querySelectorAll('.sample').length;
        seen.hash = location.hash;
        $('f-reset').click();
        seen.all = document.querySelectorAll('.sample').length;
        const box = document.querySelector('[data-code=image-missing]');
        box.open = true;
        await new Promise(done => setTimeout(done, 50));
        seen.row = box.querySelector('pre').textContent.includes('val/1.png');
        [...box.querySelectorAll('button')].find(b => b.textContent.includes('gallery')).click();
        seen.from_problem = document.querySelectorAll('.sample').length;
        $('f-reset').click();
        document.querySelectorAll('.sample')[3].click();
        seen.open = $('sample').open;
        const first = $('d-title').textContent;
        key('ArrowRight'); seen.moved = $('d-title').textContent !== first;
        key('ArrowLeft'); seen.back = $('d-title').textContent === first;
        $('d-close').click(); seen.closed = !$('sample').open;
        const before = document.documentElement.dataset.theme;
        $('theme').click(); seen.theme = document.documentElement.dataset.theme !== before;
        seen.wide = document.documentElement.scrollWidth <= innerWidth;
        return seen;
        """,
    )
    assert opened.console == ()
    assert seen == {
        "val": 7,
        "clean": 5,
        "hash": "#problem=-&split=val",
        "all": 27,
        "row": True,
        "from_problem": 1,
        "open": True,
        "moved": True,
        "back": True,
        "closed": True,
        "theme": True,
        "wide": True,
    }


@needs_chromium
def test_the_number_of_problems_is_that_of_the_findings_listed_below_it(page: Path, tmp_path: Path) -> None:
    """Two errors, three warnings and a note."""
    dom = open_page(page, tmp_path / "profile").dom
    assert re.search(r'id="nav-problems">6<', dom)
    assert sum(map(int, re.findall(r'class="num">(\d+)<', dom))) == 6
    assert "6 findings of 4 kinds" in dom


CLASSES_PROMPT = "Classify the video into one of the following classes: Archery, Bowling, Diving."


@pytest.fixture
def prompted(tmp_path: Path) -> Path:
    """The page of 30 clips of 8 frames whose one prompt names all classes, and of 12 questions with one ending."""
    root = tmp_path / "prompted"
    for n in range(8):
        make_image(root / "images" / f"{n}.png", n)
    frames = tuple(f"{n}.png" for n in range(8))
    rows = []
    for n in range(30):
        turn = Turn(images=frames, user=CLASSES_PROMPT, assistant=("Archery", "Bowling", "Diving")[n % 3])
        rows.append(Sample(id=f"clip-{n}", source="clips", conversations=(turn,)))
    for n in range(12):
        user = f"What is on shelf {n} of {['the kitchen', 'the cellar'][n % 2]}?\nAnswer with a single word or Diving."
        turn = Turn(images=frames[:1], user=user, assistant=f"jar{n}")
        rows.append(Sample(id=f"doc-{n}", source="docs", conversations=(turn,)))
    (root / "train.jsonl").write_text("".join(row.to_json() + "\n" for row in rows), encoding="utf-8")
    summary = Summary(samples=42, turns=42, images=8, splits={"train": 42}, problems={"rope-switch": 1})
    problem = Diagnostic(code="rope-switch", severity="info", file="train.jsonl", line=1, message="long")
    target = tmp_path / "prompted.html"
    write_html(Report(dir=str(root), ok=True, level="quick", summary=summary, problems=(problem,)), root, target)
    return target


@needs_chromium
def test_search_finds_samples_by_their_own_text_and_not_by_the_prompt_they_share(
    prompted: Path, tmp_path: Path
) -> None:
    found, opened = drive(
        prompted,
        tmp_path,
        """
        const found = {};
        const words = ["archery", "shelf 7", "CELLAR", "jar11", "clip-3", "single word", "classify", "5.png"];
        words.push("what is");
        for (const word of words) {
          $('f-text').value = word;
          $('f-text').dispatchEvent(new Event('input'));
          await new Promise(done => setTimeout(done, 200));
          found[word] = $('found').textContent;
        }
        return found;
        """,
    )
    assert opened.console == ()
    shared = "; the prompt that samples share is not searched"
    assert found == {
        "archery": f"10 of 42 samples shown here{shared}",
        "shelf 7": "1 of 42 samples shown here",
        "CELLAR": "6 of 42 samples shown here",
        "jar11": "1 of 42 samples shown here",
        "clip-3": "1 of 42 samples shown here",
        "single word": f"0 of 42 samples shown here{shared}",
        "classify": f"0 of 42 samples shown here{shared}",
        "what is": f"0 of 42 samples shown here{shared}",
        "5.png": "30 of 42 samples shown here",
    }


@needs_chromium
def test_frames_are_in_a_row_on_a_phone(prompted: Path, tmp_path: Path) -> None:
    opened = open_on_phone(
        prompted,
        tmp_path / "profile",
        """
        const $ = name => frame.document.querySelector(name);
        const tops = nodes => new Set([...nodes].map(node => Math.round(node.getBoundingClientRect().top))).size;
        const card = $(".sample[aria-label^='Sample clip-']");
        const seen = {width: frame.innerWidth, card: card.querySelectorAll("img").length};
        seen.card_rows = tops(card.querySelectorAll("img"));
        card.click();
        seen.open = $("#d-body").querySelectorAll("img").length;
        seen.open_rows = tops($("#d-body").querySelectorAll("img"));
        seen.wide = frame.document.documentElement.scrollWidth <= frame.innerWidth;
        const out = document.createElement("pre");
        out.id = "driven";
        out.textContent = JSON.stringify(seen);
        document.body.append(out);
        """,
    )
    match = re.search(r'<pre id="driven">(.*?)</pre>', opened.dom)
    assert match is not None, opened.console
    assert json.loads(match[1]) == {
        "width": 390, "card": 8, "card_rows": 1, "open": 8, "open_rows": 1, "wide": True,
    }  # fmt: skip


@needs_chromium
def test_markup_in_a_row_is_shown_as_text(page: Path, tmp_path: Path) -> None:
    seen, opened = drive(
        page,
        tmp_path,
        """
        named('train-0000000001').click();
        return [document.title, $('d-body').textContent, document.querySelectorAll('img[src="x"]').length];
        """,
    )
    assert opened.console == ()
    assert seen[0] == "tiny: validation report"
    assert f"Say {EVIL}" in seen[1]
    assert seen[2] == 0


@needs_chromium
def test_images_stand_where_their_offsets_say(page: Path, tmp_path: Path) -> None:
    seen, _ = drive(
        page,
        tmp_path,
        """
        named('train-0000000002').click();
        return $('d-body').querySelector('.say').textContent;
        """,
    )
    assert seen == "Between image 1and image 2again."


OWN = [
    "dataset.json",
    "tiny_train.jsonl",
    "new_val.jsonl",
    "images/train/0.png",
    "images/page.html",
    ".phi3v/page.html",
]


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("command", ["validate", "preview"])
def test_a_page_in_place_of_the_sets_own_file_is_refused_before_anything_is_done(
    command: str, name: str, directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "dataset.json").write_text("{}")
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    code, out, err = make_cli(capsys, monkeypatch)(command, directory, "--html", directory / name)
    assert (code, out) == (2, "")
    assert "belongs to the set in" in err
    assert err.endswith(f"{directory.name}/report.html\n")
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before
    assert not (directory / ".phi3v").exists()


def test_a_file_of_the_set_is_known_behind_links(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = make_cli(capsys, monkeypatch)
    (directory / "tiny_val.jsonl").rename(tmp_path / "rows")
    (directory / "tiny_val.jsonl").symlink_to(tmp_path / "rows")
    (tmp_path / "way").symlink_to(directory)
    (tmp_path / "page.html").symlink_to(directory / "tiny_train.jsonl")
    for name in ("rows", "way/tiny_train.jsonl", "way/images/page.html", "page.html"):
        code, _, err = cli("validate", directory, "--level", "quick", "--html", tmp_path / name)
        assert code == 2, name
        assert "belongs to the set in" in err
    assert (tmp_path / "rows").read_bytes().startswith(b'{"id": "val-0000000000"')


def test_a_page_may_be_in_the_set_under_another_name_and_contains_no_path(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = make_cli(capsys, monkeypatch)
    assert cli("validate", directory, "--level", "quick", "--html", directory / "report.html")[0] == 1
    page = (directory / "report.html").read_bytes()
    assert payload_of(page)["verdict"].startswith("tiny, 27 samples, level quick; ")
    assert str(directory.parent).encode() not in page


TAKEN = {
    "data.json": "is the file that is checked, which the page would replace; name another file, such as ",
    "link.html": "is the file that is checked, which the page would replace; name another file, such as ",
    "hard.html": "is the file that is checked, which the page would replace; name another file, such as ",
    "a.png": "is a file and no HTML page, so it is not replaced; name another one, or remove it\n",
    "notes.html": "is a file and no HTML page, so it is not replaced; name another one, or remove it\n",
    "pipe": "exists and cannot be read (it is not a regular file); name another file\n",
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_page_never_replaces_the_checked_file_or_another_that_is_not_a_page(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A shape."}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": "a", "image": "a.png", "conversations": turns}]))
    make_image(tmp_path / "a.png", 0)
    (tmp_path / "notes.html").write_text("a page would be <html>")
    (tmp_path / "link.html").symlink_to(tmp_path / "data.json")
    (tmp_path / "hard.html").hardlink_to(tmp_path / "data.json")
    os.mkfifo(tmp_path / "pipe")
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    code, out, err = make_cli(capsys, monkeypatch)("validate", tmp_path / "data.json", "--html", tmp_path / name)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {tmp_path / name}: {TAKEN[name]}")
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("command", ["validate", "preview"])
def test_a_page_replaces_a_page_and_an_empty_file_but_no_other(
    command: str, directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli, page = make_cli(capsys, monkeypatch), tmp_path / "page"
    for text in ("", "\ufeff\n <!DOCTYPE html>\n", "<HTML>", None):
        if text is not None:
            page.write_text(text)
        assert cli(command, directory, "--html", page)[0] == (1 if command == "validate" else 0), text
        assert payload_of(page.read_bytes())["name"] == "tiny"
    page.write_text("from,to\n")
    assert cli(command, directory, "--html", page)[::2] == (
        2,
        f"error: {page}: is a file and no HTML page, so it is not replaced; name another one, or remove it\n",
    )
    assert page.read_text() == "from,to\n"


def test_a_page_makes_no_folder_for_a_set_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = make_cli(capsys, monkeypatch)("validate", tmp_path / "no", "--html", tmp_path / "no/report.html")
    assert (code, err) == (2, f"error: {tmp_path}/no: no such file or directory\n")
    assert not (tmp_path / "no").exists()
