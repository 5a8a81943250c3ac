"""The report as text."""

import io
from pathlib import Path

import pytest

from phi3v_data.console import make_console
from phi3v_data.report.console import print_report
from phi3v_data.schema import Diagnostic, Report


def text_of(report: Report, **options: int) -> str:
    stream = io.StringIO()
    print_report(report, make_console(stream), **options)
    return stream.getvalue()


def test_a_finding_is_place_field_code_message_then_hint_and_explain(report: Report) -> None:
    lines = text_of(report).splitlines()
    start = next(n for n, line in enumerate(lines) if "image-missing" in line)
    assert lines[start : start + 2] == [
        "tiny_val.jsonl:2 conversations[1].images[0] image-missing: 'val/1.png' is not under images/",
        "  did you mean 'val/0.png'?; phi3v-data explain image-missing",
    ]
    assert "images/old.png image-orphan: no row uses it" in lines


def test_errors_come_first_and_counts_are_of_all_occurrences(report: Report) -> None:
    lines = text_of(report).splitlines()
    codes = [line.split(": ")[0].split()[-1] for line in lines if "explain" not in line and ": " in line]
    assert codes[:4] == ["image-missing", "json-syntax", "duplicate-sample", "image-orphan"]
    assert "  ... and 2 more duplicate-sample" in lines
    assert any(line.split() == ["duplicate-sample", "warning", "3"] for line in lines)
    assert any(line.split() == ["train", "20"] for line in lines)
    assert lines[-1] == f"problems: {report.dir}, 27 samples, level full; 2 errors, 3 warnings, 1 note"


def test_a_valid_directory_ends_in_ok(report: Report, directory: Path) -> None:
    summary = report.summary.model_copy(update={"problems": {}, "samples": 1})
    valid = report.model_copy(update={"ok": True, "problems": (), "summary": summary})
    assert text_of(valid).splitlines()[-1] == f"ok: {directory}, 1 sample, level full; no findings"


@pytest.mark.parametrize(("number", "more"), [(3, []), (4, ["  ... and 1 more bom"]), (39, ["  ... and 36 more bom"])])
def test_lists_are_shortened(report: Report, number: int, more: list[str]) -> None:
    problem = Diagnostic(code="bom", severity="warning", file="a.jsonl", line=1, message="m")
    many = tuple(problem.model_copy(update={"line": n}) for n in range(1, number + 1))
    summary = report.summary.model_copy(update={"problems": {"bom": number}})
    lines = text_of(report.model_copy(update={"problems": many, "summary": summary}), shown_per_code=3).splitlines()
    assert sum(line.startswith("a.jsonl:") for line in lines) == 3
    assert [line for line in lines if "more bom" in line] == more


def test_a_code_of_two_severities_has_a_line_for_each_in_the_table(report: Report) -> None:
    wrong = Diagnostic(code="control-token", severity="error", file="a.jsonl", line=1, message="m")
    doubtful = wrong.model_copy(update={"severity": "warning"})
    summary = report.summary.model_copy(update={"problems": {"control-token": 7, "bom": 1}})
    bom = Diagnostic(code="bom", severity="warning", file="a.jsonl", line=1, message="m")
    problems = (doubtful, wrong, doubtful, wrong, doubtful, doubtful, bom)  # one of control-token is not listed
    lines = text_of(report.model_copy(update={"problems": problems, "summary": summary})).splitlines()
    head = next(n for n, line in enumerate(lines) if line.split() == ["problem", "severity", "count"])
    assert [line.split() for line in lines[head + 1 : head + 4]] == [
        ["control-token", "error", "3"],
        ["bom", "warning", "1"],
        ["control-token", "warning", "4"],
    ]
    assert lines[-1].endswith("; 3 errors, 5 warnings")


@pytest.mark.parametrize("text", ["[bold]x[/bold]", "[/x]", "\\[", ":smile: \x1b"])
def test_text_of_the_data_is_not_taken_for_markup(report: Report, text: str) -> None:
    problem = Diagnostic(code="bom", severity="warning", file="a.jsonl", line=1, message=text, hint=text)
    shown = text_of(report.model_copy(update={"problems": (problem,)}))
    assert f"bom: {text}" in shown or "\x1b" in text
