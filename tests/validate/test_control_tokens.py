"""Markers of any spelling, found in raw JSON lines however they are escaped."""

import json
from pathlib import Path

import pytest
from validate_builders import row, turn

from phi3v_data.validate.batch import text_bytes
from phi3v_data.validate.control import build_control_tokens
from phi3v_data.validate.findings import Findings
from phi3v_data.validate.rows import RowScan
from phi3v_data.validate.table import RowTable
from phi3v_data.validate.tree import ImageTree

OWN = ("«END»", "[E]", "@@img{number}@@", 'say"', "a\\b")
FOREIGN = ("</turn>", "{{user}}")


def lines_with_markers(directory: Path, lines: list[str]) -> dict[int, str]:
    """Severity by line of the findings in one file."""
    (directory / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    findings, table = Findings(1000), RowTable(directory)
    markers = build_control_tokens(OWN, FOREIGN)
    RowScan(table, ImageTree(directory / "images"), findings, text_bytes, frozenset(), markers).scan(
        "train.jsonl", "train", labelled=True
    )
    return {found.line or 0: found.severity for found in findings.listed if found.code == "control-token"}


@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_every_marker_is_found_among_rows_alike(tmp_path: Path, ensure_ascii: bool) -> None:
    texts = {
        5: ("Is «END» here", "error"),
        9: ("Is [E] here", "error"),
        13: ("Is @@img12@@ here", "error"),
        17: ('They say" here', "error"),
        21: ("Is a\\b here", "error"),
        25: ("Is </turn> here", "warning"),
        29: ("Is {{user}} here", "warning"),
        33: ("Is @@img@@ or [EE] or « or {user} here", ""),
    }
    users = {number: text for number, (text, _) in texts.items()}
    lines = [
        json.dumps(row(f"{n}", turn(users.get(n, f"Question {n}"), "x")), ensure_ascii=ensure_ascii) + "\n"
        for n in range(1, 60)
    ]
    assert lines_with_markers(tmp_path, lines) == {n: severity for n, (_, severity) in texts.items() if severity}


def test_escapes_do_not_hide_a_marker(tmp_path: Path) -> None:
    plain = json.dumps(row("a", turn("Is XX here", "x"))) + "\n"
    spelled = ["\\u00abEND\\u00bb", "\\u005bE]", "\\u0040@img1@@", "<\\/turn>", "\\u003c/turn>"]
    lines = [plain.replace("XX", text) for text in spelled]
    assert sorted(lines_with_markers(tmp_path, lines)) == [1, 2, 3, 4, 5]


def test_without_markers_none_is_found() -> None:
    tokens = build_control_tokens((), ())
    assert tokens.own.search("any text") is None
    assert tokens.foreign.search("any text") is None
