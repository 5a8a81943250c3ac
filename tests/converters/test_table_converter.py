"""Plain tables and mapping files, as somebody without code would use them."""

import base64
import contextlib
import csv
import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from converter_sources import (
    embedded,
    encoded,
    findings,
    images,
    json_lines,
    put,
    rows,
    run,
    stored,
    turn,
    write_parquet,
)
from hypothesis import given
from hypothesis import strategies as st

import phi3v_data
from phi3v_data.converters.helpers.table_map import TableMap, fill, parse_map, placeholders
from phi3v_data.testing import check_converter

MAP = {"images": "picture", "user": "{question}?", "assistant": "{answer}"}
CELLS = [
    {"picture": "p/a.png", "question": "What", "answer": "A"},
    {"picture": "p/b.png", "question": 'Quote " and, comma', "answer": "two\nlines"},
    {"picture": "p/a.png", "question": "Ümlaut 日本", "answer": "C"},
]


def as_csv(cells: list[dict[str, Any]], delimiter: str = ",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(cells[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(cells)
    return text.getvalue()


def write_source(root: Path, name: str, content: str | bytes) -> Path:
    for letter, kind in (("a", "png"), ("b", "png"), ("jpeg", "jpeg")):
        put(root / "p" / f"{letter}.png", encoded(len(letter), kind))
    return put(root / name, content)


def convert(source: Path, out: Path, mapping: Any = None, **settings: Any) -> phi3v_data.ConvertResult:
    options = {"map": MAP if mapping is None else mapping, **settings.pop("options", {})}
    return run("table", source, out, options=options, **settings)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", as_csv(CELLS)),
        ("rows.csv", "\ufeff" + as_csv(CELLS)),
        ("rows.tsv", as_csv(CELLS, "\t")),
        ("rows.jsonl", json_lines(CELLS)),
        ("rows.json", json.dumps(CELLS)),
    ],
)
def test_every_kind_of_table_says_the_same(tmp_path: Path, name: str, content: str) -> None:
    result = convert(write_source(tmp_path / "s", name, content), tmp_path / "o")
    assert (result.samples, result.rejects, result.manifest.name) == (3, 0, "rows")
    made = rows(tmp_path / "o", "rows_train.jsonl")
    assert [turn(row) for row in made] == [(f"{cell['question']}?", cell["answer"]) for cell in CELLS]
    assert images(made[0]) == ["p/a.png"]
    assert stored(tmp_path / "o") == ["p/a.png", "p/b.png"]
    assert findings(tmp_path / "o") == {}


def test_parquet_with_embedded_images(tmp_path: Path) -> None:
    table = [{**cell, "picture": embedded(n), "n": n} for n, cell in enumerate(CELLS)]
    source = write_parquet(tmp_path / "s" / "mine.parquet", table)
    result = convert(source, tmp_path / "o", {**MAP, "name": "mine", "meta": "n"})
    assert (result.samples, result.images) == (3, 3)
    made = rows(tmp_path / "o", "mine_train.jsonl")
    assert made[1]["meta"] == {"source_id": "train[1]", "n": 1}
    assert (tmp_path / "o/images" / images(made[1])[0]).read_bytes() == encoded(1)


def test_everything_a_map_can_say(tmp_path: Path) -> None:
    cells = [
        {
            "a": "p/a.png",
            "more": "p/b.png;p/jpeg.png",
            "q": {"en": "Which", "de": "Welche"},
            "label": 1,
            "accepted": ["one", "uno"],
            "part": "validation",
            "shop": "s1",
            "key": "k1",
            "lang": "en",
            "sure": True,
        }
    ]
    mapping = {
        "name": "every",
        "task": "classification",
        "metrics": ["accuracy", "anls"],
        "classes": ["No", "Yes"],
        "images": ["a", "more"],
        "separator": ";",
        "user": "{{{q.en}}} {sure}",
        "assistant": "{label}",
        "values": {"label": {"0": "No", "1": "Yes"}},
        "system": "Be brief, {lang}.",
        "answers": ["label", "accepted"],
        "split": "part",
        "group": "shop",
        "id": "key",
        "meta": ["lang", "sure"],
        "source": "mine",
        "license": "CC0",
    }
    result = convert(write_source(tmp_path / "s", "rows.jsonl", json_lines(cells)), tmp_path / "o", mapping)
    [row] = rows(tmp_path / "o", "every_val.jsonl")
    assert images(row) == ["p/a.png", "p/b.png", "p/jpeg.jpg"]
    assert turn(row) == ("{Which} true", "Yes")
    assert (row["system"], row["answers"], row["group"]) == ("Be brief, en.", ["Yes", "one", "uno"], "s1")
    assert row["meta"] == {"source_id": "k1", "lang": "en", "sure": True}
    assert result.manifest.notes == {"image-suffix-mended": 1}
    assert (result.manifest.metrics, result.manifest.license) == (("accuracy", "anls"), "CC0")


def test_several_turns(tmp_path: Path) -> None:
    mapping = {
        "turns": [
            {"user": "{question}?", "assistant": "{answer}", "images": "picture"},
            {"user": "Sure?", "assistant": "Yes"},
        ]
    }
    convert(write_source(tmp_path / "s", "rows.csv", as_csv(CELLS)), tmp_path / "o", mapping)
    row = rows(tmp_path / "o", "rows_train.jsonl")[0]
    assert [turn(row, n) for n in (0, 1)] == [("What?", "A"), ("Sure?", "Yes")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"picture": "p/gone.png"}, "image-missing"),
        ({"picture": "../secret.png"}, "image-path-unsafe"),
        ({"picture": "/etc/secret.png"}, "image-path-unsafe"),
        ({"picture": "https://example.org/a.png"}, "image-missing"),
        ({"picture": "p"}, "image-unreadable"),
        ({"answer": None}, "empty-text"),
        ({"answer": {"a": 1}}, "field-not-text"),
    ],
)
def test_what_cannot_be_made_is_counted(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    put(tmp_path / "secret.png", encoded(9))
    source = write_source(tmp_path / "s", "rows.jsonl", json_lines([*CELLS, {**CELLS[0], **change}]))
    result = convert(source, tmp_path / "o")
    assert (result.samples, result.manifest.rejects) == (3, {reason: 1})
    [reject] = rows(tmp_path / "o", "rejects.jsonl")
    assert reject["item"] == "rows.jsonl:4"
    assert str(tmp_path) not in reject["message"]


def test_rows_that_are_broken_or_lack_a_field(tmp_path: Path) -> None:
    content = json_lines(CELLS) + '{"picture": "p/a.png", "answer": "x"}\nnot json\n[1]\n'
    result = convert(write_source(tmp_path / "s", "rows.jsonl", content), tmp_path / "o")
    assert result.manifest.rejects == {"field-missing": 1, "row-invalid": 2}
    ragged = as_csv(CELLS).encode() + b"p/a.png,too few\np/a.png,caf\xe9?,x\n"
    result = convert(write_source(tmp_path / "c", "rows.csv", ragged), tmp_path / "p")
    assert result.manifest.rejects == {"row-invalid": 2}
    assert [reject["item"] for reject in rows(tmp_path / "p", "rejects.jsonl")] == ["rows.csv:6", "rows.csv:7"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("images: picture\nuser: '{qestion}'\n", "line 2, user: .* no column 'qestion'; did you mean 'question'"),
        (
            "user: x\nimages:\n  - picture\n  - zzz\n",
            "line 2, images: .* no column 'zzz'; it has 'picture', 'question'",
        ),
        ("user: x\nturns:\n  - user: '{a}'\n", "the map:1: give either 'user'"),
        ("turns:\n  - user: x\n  - user: '{nope}'\n", r"line 3, turns\.1\.user: .* no column 'nope'"),
        ("user: x\nimage: picture\n", "the map:2: image is not a known key; the keys are name,"),
        ("user: 'a {b'\nname: x\n", "the map:1: user: a single '{' at character 3; write '{{' for one"),
        ("user: '{}'\nname: x\n", "an empty {}"),
        ("user: x\ntask: poem\n", "the map:2: task"),
        (
            "user: x\nmetrics: [anls, bleu]\n",
            "the map:2: metrics: there is no metric 'bleu'; there are accuracy, .* --metric FILE.py:NAME",
        ),
        ("user: x\nvalues:\n  label:\n    0: [1]\n", "the map:"),
        ("user: [\n", "is not YAML"),
        ("user: x\nname: a\nuser: y\n", "the map:3: the key 'user' is there twice; keep one of the two values"),
        ("user: x\nvalues:\n  label:\n    0: a\n    0: b\n", "the map:5: the key '0' is there twice"),
        ("- user\n- x\n", "must contain keys such as"),
        ("user: x\ndelimiter: ab\n", "the map:2: delimiter: it must be one character"),
        ("user: x\nname: a b\n", "the map:2: name: it becomes part of file names"),
    ],
)
def test_a_wrong_map_is_named_by_line_and_key(tmp_path: Path, text: str, words: str) -> None:
    source = write_source(tmp_path / "s", "rows.csv", as_csv(CELLS))
    file = put(tmp_path / "map.yaml", text)
    with pytest.raises(phi3v_data.UserError, match=words.replace("the map", "map.yaml")):
        run("table", source, tmp_path / "o", options={"map": str(file)})
    with pytest.raises(phi3v_data.UserError, match=words):
        run("table", source, tmp_path / "o", options={"map": text})


def test_a_map_that_is_not_there_or_not_given(tmp_path: Path) -> None:
    source = write_source(tmp_path / "s", "rows.csv", as_csv(CELLS))
    with pytest.raises(phi3v_data.UserError, match=r"cannot read 'gone\.yaml'"):
        run("table", source, tmp_path / "o", options={"map": "gone.yaml"})
    source = write_source(tmp_path / "t", "rows.csv", "photo,frage,answer\np/a.png,Wer,Ich\n")
    words = r"without --map .* column question, .* has 'photo', 'frage', 'answer'; docs/converters\.md .* table-map"
    with pytest.raises(phi3v_data.UserError, match=words):
        run("table", source, tmp_path / "o")


def test_which_table_is_read_and_where_the_images_are(tmp_path: Path) -> None:
    write_source(tmp_path / "s", "one.csv", as_csv(CELLS))
    put(tmp_path / "s" / "two" / "two.csv", as_csv(CELLS))
    with pytest.raises(phi3v_data.UserError, match=r"choose one with --table: one\.csv, two/two\.csv"):
        convert(tmp_path / "s", tmp_path / "o")
    with pytest.raises(phi3v_data.NotFoundError, match=r"has no 'three\.csv'"):
        convert(tmp_path / "s", tmp_path / "o", options={"table": "three.csv"})
    options = {"table": "two/two.csv", "image_dir": str(tmp_path / "s")}
    assert convert(tmp_path / "s", tmp_path / "o", options=options).samples == 3
    assert str(tmp_path) not in (tmp_path / "o" / "dataset.json").read_text()
    with pytest.raises(phi3v_data.NotFoundError, match="contains no table"):
        convert(tmp_path / "s" / "p", tmp_path / "n")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("a,b,a\n", "has two columns 'a'"),
        ('a\nx\n"open\ny\n', "rows.csv:3 is not CSV: a quote that opens in this row is never closed"),
        ('a\n"open\ny\n"z"\n', "rows.csv:4 is not CSV: .*; its row begins in line 2, maybe with a quote"),
        ("a\n", "'rows.csv' has a header and no rows"),
    ],
)
def test_a_broken_csv_file_is_one_sentence(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(phi3v_data.UserError, match=words):
        convert(put(tmp_path / "s" / "rows.csv", content), tmp_path / "o", {"user": "{a}", "assistant": "x"})


def test_rows_without_answers(tmp_path: Path) -> None:
    cells = [{**cell, "part": part} for cell, part in zip(CELLS, ("train", "test", "train"), strict=True)]
    cells[1]["answer"] = ""
    source = write_source(tmp_path / "s", "rows.csv", as_csv(cells))
    result = convert(source, tmp_path / "o", {**MAP, "split": "part"}, unlabelled=True)
    assert {name: split.labelled for name, split in result.manifest.splits.items()} == {"train": True, "test": False}
    asked = convert(source, tmp_path / "p", {"images": "picture", "user": "{question}"}, unlabelled=True)
    assert not asked.manifest.splits["train"].labelled


def test_a_large_table_is_not_held_in_memory(tmp_path: Path) -> None:
    """Planning keeps no row: 20,000 rows of 1 kB and one image, converted up to the limit."""
    cells = [{"picture": "p/a.png", "question": "x" * 1000 + str(n), "answer": "y"} for n in range(20_000)]
    result = convert(write_source(tmp_path / "s", "rows.jsonl", json_lines(cells)), tmp_path / "o", limit=5)
    assert result.samples == 5


@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.text(), min_size=1))
def test_templates_put_every_cell_in_as_it_is(cells: dict[str, str]) -> None:
    template = "{{x}} " + "|".join(f"{{{name}}}" for name in cells)
    assert list(placeholders(template)) == list(cells)
    assert fill(template, cells) == "{x} " + "|".join(cells.values())


@given(st.text(max_size=60))
def test_any_text_as_a_map_is_a_map_or_a_user_error(text: str) -> None:
    with contextlib.suppress(phi3v_data.UserError):
        assert parse_map(text).all_turns()


def test_check_converter(tmp_path: Path) -> None:
    write_source(tmp_path / "s", "rows.csv", as_csv([*CELLS, {**CELLS[0], "picture": "gone.png"}]))
    result = check_converter("table", tmp_path / "s", {"map": MAP})
    assert (result.samples, result.rejects) == (3, 1)


def plain(out: Path, name: str = "rows") -> list[tuple[str, str, list[str]]]:
    return [(*turn(row), images(row)) for row in rows(out, f"{name}_train.jsonl")]


@pytest.mark.parametrize(
    "columns",
    [
        ("image", "question", "answer"),
        ("Image_Path", "query", "label"),
        ("file_name", "prompt", "response"),
        ("picture", "instruction", "output"),
    ],
)
def test_usual_columns_need_no_map(tmp_path: Path, columns: tuple[str, ...]) -> None:
    cells = [dict(zip(columns, cell.values(), strict=True)) | {"extra": "x"} for cell in CELLS]
    result = run("table", write_source(tmp_path / "s", "rows.csv", as_csv(cells)), tmp_path / "o")
    assert plain(tmp_path / "o") == [(cell["question"], cell["answer"], [cell["picture"]]) for cell in CELLS]
    image, question, answer = columns
    assert result.notes == (
        f"columns: images from '{image}', question from '{question}', answer from '{answer}'; not used: 'extra'",
    )
    assert rows(tmp_path / "o", "rows_train.jsonl")[0]["answers"] == ["A"]


def test_several_answers_and_images_in_a_cell_need_no_map(tmp_path: Path) -> None:
    cells = [{"images": "['p/a.png', 'p/b.png']", "question": "Which?", "answers": ["one", "eins"], "split": "test"}]
    result = run("table", write_source(tmp_path / "s", "rows.jsonl", json_lines(cells)), tmp_path / "o")
    [row] = rows(tmp_path / "o", "rows_test.jsonl")
    assert (turn(row), images(row)) == (("Which?", "one"), ["p/a.png", "p/b.png"])
    assert row["answers"] == ["one", "eins"]
    assert result.rejects == 0


@pytest.mark.parametrize("delimiter", [";", "\t", "|", ","])
@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
def test_the_delimiter_is_found(tmp_path: Path, delimiter: str, name: str) -> None:
    convert(write_source(tmp_path / "s", name, as_csv(CELLS, delimiter)), tmp_path / "o")
    assert [question for question, _, _ in plain(tmp_path / "o")] == ["What?", 'Quote " and, comma?', "Ümlaut 日本?"]


def test_the_usual_delimiter_of_a_suffix_wins_over_commas_in_the_header(tmp_path: Path) -> None:
    text = "picture\tquestion, as it was asked, in full, at the start, and so on\tanswer\np/a.png\tWhat?\tone\n"
    mapping = {**MAP, "user": "{question, as it was asked, in full, at the start, and so on}"}
    convert(write_source(tmp_path / "s", "rows.tsv", text), tmp_path / "o", mapping)
    assert [question for question, _, _ in plain(tmp_path / "o")] == ["What?"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.csv", as_csv(CELLS)),
        ("rows.tsv", as_csv(CELLS, "\t")),
        ("rows.jsonl", json_lines(CELLS)),
        ("rows.json", json.dumps(CELLS)),
    ],
)
def test_gzip_and_utf_16_are_read(tmp_path: Path, name: str, text: str) -> None:
    convert(write_source(tmp_path / "s", f"{name}.gz", gzip.compress(text.encode())), tmp_path / "o")
    convert(write_source(tmp_path / "t", name, text.encode("utf-16")), tmp_path / "p")
    expected = [(f"{cell['question']}?", cell["answer"], [cell["picture"]]) for cell in CELLS]
    assert plain(tmp_path / "o") == plain(tmp_path / "p") == expected


def test_base64_cells_are_images(tmp_path: Path) -> None:
    whole = {"png": encoded(1), "jpeg": encoded(2, "jpeg"), "webp": encoded(3, "webp")}
    text = {kind: base64.b64encode(data).decode() for kind, data in whole.items()}
    cells = [
        {"image": text["png"], "question": "1", "answer": "a"},
        {"image": text["jpeg"], "question": "2", "answer": "a"},
        {"image": f"data:image/webp;base64,{text['webp']}", "question": "3", "answer": "a"},
        {"image": f"['{text['png']}', '{text['jpeg']}']", "question": "4", "answer": "a"},
        {"image": text["png"][:-40], "question": "5", "answer": "a"},
        {"image": text["png"][:101], "question": "6", "answer": "a"},
        {"image": "A" * 9000, "question": "7", "answer": "a"},
    ]
    source = put(tmp_path / "s" / "rows.tsv", as_csv(cells, "\t"))
    result = run("table", source, tmp_path / "o")
    made = rows(tmp_path / "o", "rows_train.jsonl")
    assert [turn(row)[0] for row in made] == ["1", "2", "3", "4"]
    assert [len(images(row)) for row in made] == [1, 1, 1, 2]
    kept = {(tmp_path / "o" / "images" / name).read_bytes() for row in made for name in images(row)}
    assert kept == set(whole.values())
    assert result.manifest.rejects == {"image-missing": 1, "image-unreadable": 2}
    lines = (tmp_path / "o" / "rejects.jsonl").read_text().splitlines()
    messages = [json.loads(line)["message"] for line in lines]
    assert [message.partition("'image'")[0] for message in messages] == ["rows.tsv:6: ", "rows.tsv:7: ", "rows.tsv:8: "]
    for line in lines:
        assert len(json.loads(line)["message"]) <= 300
        assert "A" * 50 not in line
        assert text["png"][:50] not in line


def test_an_image_that_cannot_be_read_is_a_reject(tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "sector.png").symlink_to("/proc/self/mem")  # its digest cannot be made: EIO, as on a damaged disk
    put(tmp_path / "plain.png", encoded(1))
    names = ["loop.png", "sector.png", "n" * 300 + ".png", "plain.png"]
    rows = "".join(f"{name},q{number},a\n" for number, name in enumerate(names))
    (tmp_path / "t.csv").write_text("image,question,answer\n" + rows)
    result = run("table", tmp_path / "t.csv", tmp_path / "out")
    assert (result.samples, result.rejects) == (1, 3)
    lines = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert [(line["reason"], line["message"]) for line in lines] == [
        ("image-unreadable", "t.csv:2: 'image': 'loop.png': Too many levels of symbolic links"),
        ("image-unreadable", "t.csv:3: 'image': 'sector.png' is empty (0 bytes)"),
        ("image-unreadable", f"t.csv:4: 'image': '{'n' * 80}…': File name too long"),
    ]


def test_an_image_that_is_the_index_of_another_row_is_that_rows_image(tmp_path: Path) -> None:
    text = base64.b64encode(encoded(1)).decode()
    cells = [
        {"index": "1000001", "image": "1", "question": "1", "answer": "a"},
        {"index": "1", "image": text, "question": "2", "answer": "a"},
        {"index": "2", "image": "77", "question": "3", "answer": "a"},
    ]
    result = run("table", put(tmp_path / "s" / "rows.tsv", as_csv(cells, "\t")), tmp_path / "o")
    made = rows(tmp_path / "o", "rows_train.jsonl")
    assert [turn(row)[0] for row in made] == ["1", "2"]
    assert images(made[0]) == images(made[1])
    assert result.manifest.rejects == {"image-missing": 1}


def test_a_path_without_bytes_in_parquet_starts_beside_the_file(tmp_path: Path) -> None:
    table = [
        {"image": {"bytes": None, "path": "p/a.png"}, "question": "1", "answer": "x"},
        {"image": {"bytes": None, "path": "p/gone.png"}, "question": "2", "answer": "x"},
        {"image": {"bytes": None, "path": "../../etc/passwd"}, "question": "3", "answer": "x"},
    ]
    write_parquet(tmp_path / "s" / "data" / "train.parquet", table)
    put(tmp_path / "s" / "data" / "p" / "a.png", encoded(5))
    result = run("table", tmp_path / "s", tmp_path / "o")
    assert result.manifest.rejects == {"image-missing": 1, "image-path-unsafe": 1}
    [row] = rows(tmp_path / "o", "table_train.jsonl")
    assert (tmp_path / "o" / "images" / images(row)[0]).read_bytes() == encoded(5)
    pages = [
        {"id": f"q{n}", "question": f"Q{n}", "answers": ["x"], "image": {"bytes": None, "path": f"p/{name}.png"}}
        for n, name in enumerate("aab")
    ]
    write_parquet(tmp_path / "d" / "train.parquet", pages)
    for name in "ab":
        put(tmp_path / "d" / "p" / f"{name}.png", encoded(ord(name)))
    result = run("docvqa", tmp_path / "d", tmp_path / "e")
    assert (result.samples, result.images, result.rejects) == (3, 2, 0)
    groups = [row["group"] for row in rows(tmp_path / "e", "docvqa_train.jsonl")]
    assert groups[0] == groups[1] != groups[2]


def test_images_in_an_archive_beside_the_table(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with zipfile.ZipFile(tmp_path / "s" / "images.zip", "w") as archive:
        archive.writestr("p/a.png", encoded(1))
        archive.writestr("p/b.png", encoded(2))
    put(tmp_path / "s" / "rows.csv", "image,question,answer\np/a.png,Why,So\n")
    result = run("table", tmp_path / "s", tmp_path / "o")
    assert plain(tmp_path / "o") == [("Why", "So", ["p/a.png"])]
    assert result.warnings[0] == "left out 1 file of the source, not used by any sample: 1 .png ('images.zip: p/b.png')"


def test_empty_cells_are_counted(tmp_path: Path) -> None:
    cells = [
        {"picture": "p/a.png", "question": "", "answer": "x"},
        {"picture": "", "question": "Why", "answer": "x"},
        {"picture": "", "question": " ", "answer": "x"},
        {"picture": "p/a.png", "question": "Why", "answer": ""},
    ]
    mapping = {**MAP, "user": "{question}"}
    result = convert(write_source(tmp_path / "s", "rows.csv", as_csv(cells)), tmp_path / "o", mapping)
    assert result.manifest.notes == {"image-cell-empty": 1, "question-cell-empty": 1}
    assert result.manifest.rejects == {"empty-text": 2}


def test_a_table_in_latin_1_is_told_to_be_saved_again(tmp_path: Path) -> None:
    put(tmp_path / "s" / "l1.csv", "image,question,answer\na.png,caf\u00e9,x\n".encode("latin-1"))
    with pytest.raises(phi3v_data.UserError) as error:
        run("table", tmp_path / "s", tmp_path / "o")
    assert str(error.value) == (
        "none of 1 planned sample could be converted (1 row-invalid); the first, l1.csv:2 is not UTF-8; save the file "
        "again as UTF-8"
    )
    for header in ("b\xeeld,frage,antwort\n".encode("latin-1"), b"\x9b\xff\x01\x02" * 200):
        put(tmp_path / "s" / "l1.csv", header)
        with pytest.raises(phi3v_data.UserError) as error:
            run("table", tmp_path / "s", tmp_path / "o")
        assert str(error.value) == "l1.csv:1 is not UTF-8; save the file again as UTF-8"


def test_a_row_whose_split_cannot_be_one_is_a_reject(tmp_path: Path) -> None:
    parts = ["train", "../evil", "", None, "validation", "a b", " "]
    cells = [{**CELLS[0], "part": part} for part in parts]
    source = write_source(tmp_path / "s", "rows.jsonl", json_lines(cells))
    result = convert(source, tmp_path / "o", {**MAP, "split": "part"})
    assert {name: split.rows for name, split in result.manifest.splits.items()} == {"train": 4, "val": 1}
    rule = "cannot name a split; use up to 100 letters, digits, ., _ and -, first a letter or digit"
    assert [reject["message"] for reject in rows(tmp_path / "o", "rejects.jsonl")] == [
        f"rows.jsonl:2: the split '../evil' {rule}",
        f"rows.jsonl:6: the split 'a b' {rule}",
    ]
    assert result.manifest.rejects == {"row-invalid": 2}
    source = write_source(tmp_path / "t", "rows.jsonl", json_lines([cells[1], cells[1]]))
    words = (
        r"none of 2 planned samples could be converted \(2 row-invalid\).*rows\.jsonl:1: the split '\.\./evil' cannot"
    )
    with pytest.raises(phi3v_data.UserError, match=words):
        convert(source, tmp_path / "p", {**MAP, "split": "part"})


@pytest.mark.parametrize(
    ("files", "split"),
    [
        (["data.parquet"], "train"),
        (["data/data-00000-of-00002.parquet", "data/data-00001-of-00002.parquet"], "train"),
        (["my rows.parquet"], "train"),
        (["val.parquet"], "val"),
        (["docs_validation.parquet"], "val"),
        (["memes_dev_unseen.parquet"], "dev_unseen"),
        (["test-rows.parquet"], "test"),
    ],
)
def test_a_lone_parquet_table_is_train_unless_its_name_has_a_split(
    tmp_path: Path, files: list[str], split: str
) -> None:
    for file in files:
        write_parquet(tmp_path / "s" / file, [{"question": "Q", "answer": "A"}])
    result = run(
        "table", tmp_path / "s", tmp_path / "o", options={"map": {"user": "{question}", "assistant": "{answer}"}}
    )
    assert {name: found.rows for name, found in result.manifest.splits.items()} == {split: len(files)}


def test_a_spreadsheet_is_to_be_saved_as_csv(tmp_path: Path) -> None:
    sheet = put(tmp_path / "s" / "rows.xlsx", b"PK\x03\x04")
    with pytest.raises(phi3v_data.UserError) as error:
        run("table", sheet, tmp_path / "o")
    assert str(error.value) == (
        f"the source '{sheet}' is a spreadsheet; save the sheet as CSV (UTF-8) and give that file"
    )
    with pytest.raises(phi3v_data.UserError, match=r"no table but the spreadsheet 'rows\.xlsx'; save the sheet as"):
        run("table", tmp_path / "s", tmp_path / "o")


def test_the_columns_of_a_map_are_those_of_its_fields() -> None:
    mapping = TableMap(
        user="{q} {hint}", assistant="{a}", images=("left", "right"), system="{rule}", answers=("all",), id="number",
        meta=("year",),
    )  # fmt: skip
    assert list(mapping.columns()) == [
        ("user", "q"), ("user", "hint"), ("assistant", "a"), ("images", "left"), ("images", "right"),
        ("system", "rule"), ("answers", "all"), ("meta", "year"), ("id", "number"),
    ]  # fmt: skip
