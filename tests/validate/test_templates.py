"""Rows that are alike and are compared a block at a time: the same report as when each is parsed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from validate_builders import line, row, turn, write

from phi3v_data.schema import Report
from phi3v_data.validate import validate
from phi3v_data.validate.control import control_tokens
from phi3v_data.validate.hashes import PADDING, hash_spans, hash_texts
from phi3v_data.validate.templates import learn_template


def both(directory: Path, **options: Any) -> Report:
    """The report, which is the same with shapes learned from every row and with none learned."""
    with pytest.MonkeyPatch.context() as patch:
        reports = []
        for least in (1, 1 << 30):
            patch.setattr("phi3v_data.validate.templates.MIN_ROWS", least)
            reports.append(validate(directory, level="quick", use_receipt=False, **options))
    assert reports[0] == reports[1]
    return reports[0]


def mixed(text: str, number: int) -> dict[str, Any]:
    """One of several shapes, with a text of the caller's in one of its places."""
    name = f"r{number}"
    return [
        row(name, turn(text, "a", images=("x.png",))),
        row(name, turn("q", text)),
        row(name, turn("q", "a", images=(text, "y.png")), turn("again", "b")),
        row(name, turn("q", "a"), system=text, group=text),
        row(text or "x", turn("q", "a"), answers=[text], meta={"k": text, "n": 3}),
        row(name, turn("", text, images=("x.png",))),
        row(name, turn(text, "a", weight=0), turn("q", text, weight=1)),
        row(name, turn(text, "a", weight=0)),
    ][number % 8]


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(
        st.one_of(
            st.text(st.characters(codec="utf-8"), max_size=12),
            st.sampled_from(["", " ", "\u3000", "\u00a0x", "é", ", a", "] b", "} c", "<|end|>", '"', "\\", "\n"]),
            st.integers(250, 270).map("z".__mul__),
        ),
        min_size=6,
        max_size=40,
    ),
    spelling=st.booleans(),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_one_report_either_way(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], spelling: bool, ending: str
) -> None:
    lines = [json.dumps(mixed(text, n), ensure_ascii=spelling) + ending for n, text in enumerate(texts)]
    both(write(tmp_path_factory.mktemp("d"), {"train.jsonl": "".join(lines), "val.jsonl": lines[0]}))


def test_mistakes_among_rows_that_are_alike(tmp_path: Path) -> None:
    lines = [line(row(f"r{n}", turn(f"Question {n}?", f"label {n % 5}"))) for n in range(400)]
    lines[20] = lines[20].replace('"source"', '"source": "x", "source"')
    lines[40] = lines[40].replace("Question", "<|end|> Question")
    lines[60] = lines[60].replace("Question", "[INST] Question")
    lines[80] = lines[80].replace("Question 80?", "")
    lines[100] = lines[100].replace("label 0", "\u3000")
    lines[120] = line(row("r3", turn("Question 4?", "label 4")))
    lines[140] = lines[140].replace('"r140"', '""')
    lines[160] = lines[160].replace('"source"', '"sauce"')
    lines[180] = lines[180].replace("Question", "Ques\ttion")
    lines[200] = lines[200].replace("Question", 'Ques"tion')
    lines[220] = lines[220].replace("Question", "\\u003c|end|>")
    report = both(write(tmp_path, {"train.jsonl": "".join(lines)}))
    assert {(found.code, found.line) for found in report.problems} == {
        ("duplicate-key", 21),
        ("control-token", 41),
        ("control-token", 61),
        ("empty-text", 81),
        ("empty-text", 101),
        ("duplicate-id", 121),
        ("duplicate-sample", 121),
        ("empty-text", 141),
        ("missing-field", 161),
        ("unknown-field", 161),
        ("json-syntax", 181),
        ("json-syntax", 201),
        ("control-token", 221),
    }


def test_turns_with_images_and_no_text_among_rows_that_are_alike(tmp_path: Path) -> None:
    lines = [line(row(f"r{n}", turn(f"Question {n}?", "label", images=("a.png",)))) for n in range(400)]
    for n, blank in ((20, ""), (40, " "), (60, "\u3000"), (80, "\u00a0\u2003"), (100, "\u1680"), (120, "\x85")):
        lines[n] = lines[n].replace(f"Question {n}?", blank)
    report = both(write(tmp_path, {"train.jsonl": "".join(lines)}))
    assert [found.line for found in report.problems if found.code == "image-only-turn"] == [*(21, 41, 61, 81, 101, 121)]


def test_what_has_more_to_check_than_strings_has_no_shape() -> None:
    plain = row("a", turn("q", "a", images=("x.png",)))
    assert learn_template(line(plain).encode(), control_tokens()) is not None
    for other in (
        row("a", turn("q", "a", images=("x.png",), image_offsets=[0])),
        row("a", turn("a\nb", "a")),
        row("a", turn("<|end|>", "a")),
        {**plain, "extra": 1},
    ):
        assert learn_template(line(other).encode(), control_tokens()) is None


@given(st.lists(st.one_of(st.text(max_size=30), st.integers(240, 300).map("ab".__mul__)), min_size=1))
def test_a_text_has_one_hash(texts: list[str]) -> None:
    together = hash_texts(texts)
    assert together.tolist() == [int(hash_texts([text])[0]) for text in texts]
    assert len(set(together.tolist())) == len(set(texts))
    data = b"?" + "ä€".encode() + PADDING
    assert hash_spans(data, np.array([1]), np.array([5]))[0] == hash_texts(["ä€"])[0]
