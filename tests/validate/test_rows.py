"""Checks of single rows: everything wrong is named, with the right line and field."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from validate_builders import found, line, places, row, turn, write
from validate_images import encoded, make_image

from phi3v_data.schema import Sample
from phi3v_data.validate import validate


@pytest.fixture(autouse=True, scope="module")
def alike() -> Iterator[None]:
    """Learn the shape of every row, not only where there are many alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("phi3v_data.validate.templates.MIN_ROWS", 1)
        yield


def codes(tmp_path: Path, text: str | bytes, **options: Any) -> dict[str, int]:
    write(tmp_path, {"train.jsonl": text})
    return validate(tmp_path, use_receipt=False, **options).summary.problems


def test_a_valid_directory_has_no_findings(tmp_path: Path) -> None:
    rows = [
        row("a"),
        row("b", turn("One?", "1"), turn("Two?", "2"), system="Be short.", group="g", answers=["2", "two"]),
        row("c", meta={"source_id": "x", "n": 1, "f": 0.5, "b": True, "z": None, "s": "t"}),
        row("d", turn('He said "hi" \\ "bye"\n\tä 😀 \\"', 'A "quoted" answer\\')),
        row("ü", turn("   Spaces before", "Answer")),
    ]
    report = validate(write(tmp_path, {"train.jsonl": rows}))
    assert report.problems == ()
    assert report.ok
    assert report.summary.samples == 5
    assert report.summary.turns == 6


def test_one_run_names_all_with_right_lines(tmp_path: Path) -> None:
    lines = [
        line(row("a")),
        "not json\n",
        line(row("b")).replace('"source"', '"sauce"'),
        "\n",
        line(row("c", turn("Say <|end|> now", ""))),
        "[1]\n",
        line(row("d")).replace('"user"', '"user": "x", "user"'),
        line(row("a", turn("again"))),
        line(row("e", meta={"deep": {"a": 1}})),
        line({**row("f"), "conversations": []}),
        line(row("g", meta={"score": 1})).replace('"score": 1', '"score": Infinity'),
        line({**row("h"), "id": 8}),
        '{"id": "i", "source": "test", "conversations": [{"images": [3], "user": 5}, 7]}\n',
        line(row("last")),
    ]
    report = validate(write(tmp_path, {"train.jsonl": "".join(lines)}))
    by_line: dict[int | None, set[str]] = {}
    for item in report.problems:
        by_line.setdefault(item.line, set()).add(item.code)
    assert by_line == {
        2: {"json-syntax"},
        3: {"unknown-field", "missing-field"},
        4: {"blank-line"},
        5: {"control-token", "empty-text"},
        6: {"json-not-object"},
        7: {"duplicate-key"},
        8: {"duplicate-id"},
        9: {"wrong-type"},
        10: {"no-turns"},
        11: {"non-finite-number"},
        12: {"wrong-type"},
        13: {"missing-field", "wrong-type"},
    }
    assert places(report, "duplicate-key") == [("train.jsonl", 7, "conversations[0].user")]
    assert {item.field for item in report.problems if item.line == 13} == {
        "conversations[0].images[0]",
        "conversations[0].user",
        "conversations[0].assistant",
        "conversations[1]",
    }
    assert found(report, "unknown-field")[0].hint == "did you mean 'source'?"
    assert report.summary.samples == 13
    assert found(report, "duplicate-id")[0].id == "a"


def test_an_id_that_is_not_text_repeats_none(tmp_path: Path) -> None:
    lines = line({**row("a"), "id": 5}) + line({**row("b"), "id": 5}) + line({**row("c"), "id": ""}) * 2
    report = validate(write(tmp_path, {"train.jsonl": lines}))
    assert places(report, "duplicate-id") == []
    assert [item.line for item in found(report, "wrong-type")] == [1, 2]


@pytest.mark.parametrize(
    "position", ["id", "source", "conversations", "images", "user", "assistant", "meta", "answers"]
)
@pytest.mark.parametrize("escape", [False, True])
def test_a_key_given_twice_is_seen_everywhere(tmp_path: Path, position: str, escape: bool) -> None:
    value = row("a", turn('q \\ "x"', "a", images=()), meta={"k": "v"}, answers=["a"])
    text = line(value)
    start = text.index(f'"{position}"')
    name = f"\\u{ord(position[0]):04x}{position[1:]}" if escape else position
    other = {"conversations": [turn()], "images": [], "meta": {}, "answers": ["b"]}.get(position, "other")
    text = f'{text[:start]}"{name}" : {json.dumps(other)}, {text[start:]}'
    assert "duplicate-key" in codes(tmp_path, text * 1)


def test_a_key_twice_in_meta_and_among_many_rows(tmp_path: Path) -> None:
    rows = [line(row(f"r{n}", meta={"a": "b"})) for n in range(3000)]
    rows[1234] = rows[1234].replace('"a": "b"', '"a": "b", "a": "c"')
    report = validate(write(tmp_path, {"train.jsonl": "".join(rows)}))
    assert places(report, "duplicate-key") == [("train.jsonl", 1235, "meta.a")]
    assert set(report.summary.problems) == {"duplicate-key"}


@pytest.mark.parametrize(
    ("text", "severity"),
    [
        ("<|image_1|>", "error"),
        ("<|image_17|>", "error"),
        ("<|end|>", "error"),
        ("<|user|>", "error"),
        ("<|assistant|>", "error"),
        ("<|system|>", "error"),
        ("<|endoftext|>", "error"),
        ("<|placeholder7|>", "error"),
        ("<s>", "error"),
        ("</s>", "error"),
        ("<unk>", "error"),
        ("<image>", "warning"),
        ("[INST]", "warning"),
        ("[/INST]", "warning"),
        ("<<SYS>>", "warning"),
        ("<|im_end|>", "warning"),
        ("<start_of_turn>", "warning"),
        ("<|eot_id|>", "warning"),
    ],
)
@pytest.mark.parametrize("spelling", ["plain", "first", "all"])
def test_control_tokens_are_seen_in_any_spelling(tmp_path: Path, text: str, severity: str, spelling: str) -> None:
    plain = line(row("a", turn(f"see {text} here")))
    if spelling == "first":
        plain = plain.replace(text, f"\\u{ord(text[0]):04X}" + text[1:])
    elif spelling == "all":
        plain = plain.replace(text, "".join(f"\\u{ord(char):04x}" for char in text))
    report = validate(write(tmp_path, {"train.jsonl": line(row("b")) + plain + line(row("c"))}))
    assert [(item.line, item.field, item.severity) for item in found(report, "control-token")] == [
        (2, "conversations[0].user", severity)
    ]


def test_an_escaped_slash_spells_a_token_too(tmp_path: Path) -> None:
    text = line(row("a", turn("end </s> here"))).replace("</s>", "<\\/s>")
    assert codes(tmp_path, text) == {"control-token": 1}


@pytest.mark.parametrize(
    "text", ["a < b", "1 <2> 3", "x <|y|> z", "<div>", "[I think]", "<b>", "C:\\u003c", "<|", "<|image|"]
)
def test_harmless_text_is_left_alone(tmp_path: Path, text: str) -> None:
    assert codes(tmp_path, line(row("a", turn(text, text)))) == {}


def test_tokens_count_in_system_and_answer_but_not_elsewhere(tmp_path: Path) -> None:
    value = row("<s>", turn("q", "a </s>"), system="<|user|>", answers=["<s>"], group="<s>", meta={"m": "<s>"})
    report = validate(write(tmp_path, {"train.jsonl": [value]}))
    assert sorted(item.field or "" for item in report.problems) == ["conversations[0].assistant", "system"]


@pytest.mark.parametrize("escape", ["\\ud83d", "\\udc00", "\\u0000"])
@pytest.mark.parametrize("position", ["user", "assistant", "id", "meta", "answers", "system", "group", "metakey"])
def test_invalid_characters_are_seen_in_every_text(tmp_path: Path, escape: str, position: str) -> None:
    value = row(
        "a",
        turn("user@", "assistant@"),
        system="system@",
        group="group@",
        answers=["answers@"],
        meta={"metakey@": "meta@"},
    )
    value["id"] = "id@"
    text = line(value).replace(f"{position}@", f"x{escape}")
    report = validate(write(tmp_path, {"train.jsonl": text}))
    assert report.summary.problems == {"invalid-text": 1}
    report.model_dump_json()


def test_line_ends_and_marks_that_are_read_and_reported(tmp_path: Path) -> None:
    a, b = line(row("a")), line(row("b"))
    assert codes(tmp_path, a.replace("\n", "\r\n") + b.rstrip("\n")) == {}
    assert codes(tmp_path, "\ufeff" + a + b) == {"bom": 1}
    assert codes(tmp_path, a + "   \n\n" + b) == {"blank-line": 2}
    assert codes(tmp_path, a + b + "\n") == {"blank-line": 1}


def test_two_rows_on_a_line_and_one_over_two_lines(tmp_path: Path) -> None:
    a = line(row("a")).rstrip()
    b = line(row("b"))
    broken = b[: b.index('"source"')] + "\n" + b[b.index('"source"') :]
    write(tmp_path, {"train.jsonl": f"{a}{a}\n{broken}"})
    report = validate(tmp_path)
    assert [(item.line, item.code) for item in report.problems] == [(n, "json-syntax") for n in (1, 2, 3)]
    assert "two objects" in report.problems[0].hint


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    good = line(row("a", turn("caf#"))).encode()
    report = validate(write(tmp_path, {"train.jsonl": good.replace(b"#", b"\xe9") + line(row("b")).encode()}))
    assert [(item.line, item.code) for item in report.problems] == [(1, "invalid-utf8")]
    assert "0xe9" in report.problems[0].message


def test_raw_control_characters(tmp_path: Path) -> None:
    good = line(row("a", turn("tab#here")))
    report = validate(
        write(tmp_path, {"train.jsonl": good.replace("#", "\t") + line(row("b", turn("x"))).replace("x", "\0")})
    )
    assert [(item.line, item.code) for item in report.problems] == [
        (1, "json-syntax"),
        (2, "json-syntax"),
        (2, "invalid-text"),
    ]


def test_deep_and_huge_values_end_in_a_finding(tmp_path: Path) -> None:
    deep = '{"id": ' + "[" * 100_000 + "\n"
    digits = line(row("a", meta={"n": 1})).replace('"n": 1', '"n": ' + "9" * 6000)
    large = line(row("b", meta={"n": 1})).replace('"n": 1', '"n": 1e999')
    assert codes(tmp_path, deep + digits + large) == {"json-syntax": 1, "non-finite-number": 2}
    number = line({**row("c"), "source": 0}).replace('"source": 0', '"source": ' + "7" * 4000)
    report = validate(write(tmp_path, {"train.jsonl": number}), use_receipt=False)
    assert report.summary.problems == {"wrong-type": 1}
    assert len(report.problems[0].message) < 200


def test_messages_are_short_and_escaped(tmp_path: Path) -> None:
    value = row("x" * 5000, **{"k\n\x1b[31m" * 50: 1})
    report = validate(write(tmp_path, {"train.jsonl": [value]}))
    for item in report.problems:
        for text in (item.message, item.hint, item.field or "", item.id or ""):
            assert text.isprintable()
            assert len(text) < 600


def test_image_offsets_must_fit(tmp_path: Path) -> None:
    def offsets(values: list[int], images: int = 2) -> dict[str, Any]:
        return turn("0123456789", images=tuple("ab"[:images]), image_offsets=values)

    rows = [
        row("ok", offsets([0, 10])),
        row("few", offsets([1])),
        row("down", offsets([5, 2])),
        row("behind", offsets([0, 11])),
        row("negative", offsets([-1, 2])),
    ]
    report = validate(write(tmp_path, {"train.jsonl": rows}))
    assert [item.line for item in found(report, "wrong-type")] == [2, 3, 4, 5]
    assert found(report, "wrong-type")[0].field == "conversations[0].image_offsets"


def test_empty_answers_are_fine_where_the_split_has_none(tmp_path: Path) -> None:
    rows = [row("a", turn("q", "")), row("b", turn("r", ""))]
    splits = {"test": {"rows": 2, "images": 0, "files": {"test.jsonl": ""}, "labelled": False}}
    text = "".join(map(line, rows))
    import hashlib

    splits["test"]["files"] = {"test.jsonl": f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"}
    manifest = {"format": 1, "name": "x", "task": "vqa", "splits": splits}
    report = validate(write(tmp_path, {"test.jsonl": text, "dataset.json": json.dumps(manifest)}))
    assert report.problems == ()
    (tmp_path / "dataset.json").unlink()
    assert validate(tmp_path).summary.problems == {"empty-text": 2}


def test_a_turn_with_images_and_no_text_is_a_warning_with_neither_an_error(tmp_path: Path) -> None:
    png = encoded(make_image())
    rows = [
        row("a", turn("", images=("a.png",))),
        row("b", turn("What is it?", images=("a.png",)), turn(" \u3000\n", images=("b.png",)), turn("And now?")),
        row("c", turn("\t")),
        row("d", turn("Again?", images=("a.png",))),
        row("e", turn("", "", images=("b.png",))),
    ]
    report = validate(write(tmp_path, {"train.jsonl": rows, "images/a.png": png, "images/b.png": png + b"x"}))
    assert places(report, "image-only-turn") == [
        ("train.jsonl", 1, "conversations[0].user"),
        ("train.jsonl", 2, "conversations[1].user"),
        ("train.jsonl", 5, "conversations[0].user"),
    ]
    assert {item.severity for item in found(report, "image-only-turn")} == {"warning"}
    assert places(report, "empty-text") == [
        ("train.jsonl", 3, "conversations[0].user"),
        ("train.jsonl", 5, "conversations[0].assistant"),
    ]


def test_a_set_of_captions_without_an_instruction_trains_but_not_under_strict(tmp_path: Path) -> None:
    rows = [row(f"r{n}", turn("", f"caption {n}", images=("a.png",))) for n in range(50)]
    write(tmp_path, {"train.jsonl": rows, "images/a.png": encoded(make_image())})
    report = validate(tmp_path)
    assert report.ok
    assert report.summary.problems == {"image-only-turn": 50}
    assert not validate(tmp_path, strict=True).ok


def test_all_are_counted_and_the_first_listed(tmp_path: Path) -> None:
    write(tmp_path, {"train.jsonl": "{\n" * 50 + "[]\n" * 7})
    report = validate(tmp_path, max_problems=5)
    assert report.summary.problems == {"json-syntax": 50, "json-not-object": 7}
    assert [item.line for item in found(report, "json-syntax")] == [1, 2, 3, 4, 5]
    assert len(report.problems) == 10


def test_duplicate_ids_across_splits_and_shards(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "x_train-00000-of-00002.jsonl": [row("a"), row("b")],
            "x_train-00001-of-00002.jsonl": [row("b", turn("other"))],
            "x_val.jsonl": [row("a", turn("another")), row("a", turn("third"))],
        },
    )
    report = validate(tmp_path)
    assert sorted(places(report, "duplicate-id")) == [
        ("x_train-00001-of-00002.jsonl", 1, "id"),
        ("x_val.jsonl", 1, "id"),
        ("x_val.jsonl", 2, "id"),
    ]
    assert report.summary.splits == {"train": 3, "val": 2}


def test_equal_hashes_are_confirmed_on_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a hash that says the same of every id and text, no row is called a repetition that is none."""
    import phi3v_data.validate.hashes as hashes

    monkeypatch.setattr(hashes, "FACTOR", np.uint64(0))
    assert len(set(hashes.hash_texts(["a", "b", "longer than a word", ""]).tolist())) == 1
    report = validate(
        write(tmp_path, {"train.jsonl": [row("a"), row("b"), row("a", turn("x"))], "val.jsonl": [row("c")]})
    )
    assert report.summary.problems == {"duplicate-id": 1}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PATHS: list[tuple[str | int, ...]] = [
    (),
    ("id",),
    ("source",),
    ("conversations",),
    ("conversations", 0),
    ("conversations", 0, "images"),
    ("conversations", 0, "images", 0),
    ("conversations", 0, "user"),
    ("conversations", 0, "assistant"),
    ("conversations", 0, "image_offsets"),
    ("conversations", 0, "weight"),
    ("conversations", 0, "extra"),
    ("system",),
    ("answers",),
    ("answers", 0),
    ("group",),
    ("meta",),
    ("meta", "k"),
    ("extra",),
]


def with_value(path: tuple[str | int, ...], value: object) -> object:
    base: Any = row(
        "a", turn("q", "a", images=("x.png",), image_offsets=[0]), system="s", answers=["a"], group="g", meta={"k": 1}
    )
    if not path:
        return value
    place = base
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return base


@given(st.sampled_from(PATHS), json_values)
@settings(max_examples=400, deadline=None)
def test_any_value_anywhere_gives_findings_and_never_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, path: tuple[str | int, ...], value: object
) -> None:
    """And the verdict is the model's: a row that it refuses has an error, one that it takes has none of these codes."""
    directory = tmp_path_factory.mktemp("any")
    text = json.dumps(with_value(path, value)) + "\n"
    write(directory, {"train.jsonl": text + line(row("last"))})
    report = validate(directory, use_receipt=False)
    report.model_dump_json()
    try:
        Sample.model_validate(json.loads(text))
        refused = False
    except ValueError:
        refused = True
    schema_codes = {
        "json-not-object", "non-finite-number", "missing-field", "unknown-field", "wrong-type", "no-turns",
        "invalid-text",
    }  # fmt: skip
    own = {item.code for item in report.problems if item.line == 1}
    if refused:
        assert own & (schema_codes | {"empty-text"})
    else:
        assert not own & (schema_codes - {"wrong-type", "invalid-text"})
        assert "wrong-type" not in own or "image_offsets" in path or path[-1:] == ("images",)


fragments = st.sampled_from(
    [
        b"{", b"}", b"[", b"]", b'"', b"\\", b"\n", b"\r", b":", b",", b" ", b"\0", b"\xff", b"\xef\xbb\xbf", b"1",
        b"NaN",
        b"null", b'"id"', b'"conversations"', b"\\u0000", b"\\ud800", b"<|end|>", line(row("z")).encode(),
        line(row("z")).strip().encode(),
    ]
)  # fmt: skip


@given(st.binary(max_size=200) | st.lists(fragments, max_size=25).map(b"".join))
@settings(max_examples=400, deadline=None)
def test_any_bytes_give_findings_and_never_a_traceback(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    directory = tmp_path_factory.mktemp("bytes")
    (directory / "train.jsonl").write_bytes(data)
    report = validate(directory, use_receipt=False)
    report.model_dump_json()
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    if "file-encoding" in report.summary.problems:  # one finding in place of the lines
        heads = (b"\x1f\x8b", b"PK", b"BZh", b"\xfd7z", b"\x28\xb5", b"PAR1", b"\xff\xfe", b"\xfe\xff")
        assert b"\0" in data or data.startswith(heads)
        assert report.summary.samples == 0
    else:
        assert report.summary.samples == sum(not is_blank(part) for part in lines)


def is_blank(part: bytes) -> bool:
    """As the reader has it: nothing but spaces, behind a byte order mark at most."""
    return not part.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r\v\f")


def test_several_processes_read_a_large_file_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line numbers, ids, samples, labels and groups across the cuts."""
    import phi3v_data.validate.rows as rows_module

    lines = [line(row(f"r{n}", turn(f"Question {n}?", f"label {n % 5}"))) for n in range(3000)]
    lines[700] = "broken\n"
    lines[1400] = "\n"
    lines[2100] = line(row("r3", turn("new")))
    lines[2500] = line(row("again", turn("Question 4?", "label 4")))
    lines[2600] = line(row("grouped", group="g"))
    lines[2700] = lines[2700].replace('"source"', '"source": "x", "source"')
    write(tmp_path, {"train.jsonl": "".join(lines).rstrip("\n"), "val.jsonl": [row("v", turn("held out"), group="g")]})
    alone = validate(tmp_path, use_receipt=False)
    monkeypatch.setattr(rows_module, "PART_BYTES", 20_000)
    for workers in (2, 3):
        assert validate(tmp_path, use_receipt=False, workers=workers) == alone
    assert {(item.code, item.line) for item in alone.problems} == {
        ("json-syntax", 701),
        ("blank-line", 1401),
        ("duplicate-id", 2101),
        ("duplicate-sample", 2501),
        ("duplicate-key", 2701),
        ("leak-group", 1),
    }
