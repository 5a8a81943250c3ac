"""The catalogue: every code of the validator is in it, and every example has the problem that it shows."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from in_process import make_cli
from PIL import Image

import phi3v_data
from phi3v_data.lint import lint_file
from phi3v_data.problems import GROUPS, PROBLEMS, Problem, write_example
from phi3v_data.schema import Report
from phi3v_data.validate import validate

ALL_CODES = {
    "rows": "json-syntax json-not-object invalid-utf8 file-encoding bom blank-line duplicate-key non-finite-number "
    "missing-field unknown-field wrong-type empty-text image-only-turn no-turns nothing-trained duplicate-id "
    "line-too-long",
    "images": "image-missing image-unreadable image-path-unsafe image-name-mismatch image-format-mismatch "
    "image-animated image-mode image-orientation image-stray-bytes image-aspect image-too-large image-orphan",
    "text": "control-token invalid-text",
    "tokens": "too-long rope-switch",
    "splits": "split-empty split-name shard-missing leak-sample leak-group leak-image leak-near-image duplicate-sample "
    "label-unknown label-missing-in-train manifest-invalid manifest-stale",
    "formats": "turn-order system-message-place system-message image-in-answer last-turn-open image-count role-unknown "
    "placeholder-in-text image-moved image-ignored image-source text-stripped assistant-word trained-as-answer "
    "answer-newline end-trained key-ignored column-mistaken mixed-types text-only-set over-limit system-text-added "
    "settings-invalid",
    "runs": "check-skipped",
}
WARNINGS = {
    "bom", "blank-line", "image-only-turn", "image-format-mismatch", "image-animated", "image-mode",
    "image-orientation", "image-stray-bytes", "leak-near-image", "duplicate-sample", "label-missing-in-train",
    "check-skipped", "assistant-word", "answer-newline", "key-ignored", "column-mistaken",
}  # fmt: skip
INFOS = {"image-orphan", "rope-switch", "text-stripped", "end-trained"}


def options_of(problem: Problem, directory: Path) -> Mapping[str, Any]:
    options = dict(problem.example.options)
    if "tokenizer" in options:
        options["tokenizer"] = directory / options["tokenizer"]
    return options


def check(problem: Problem, directory: Path) -> Report:
    options = options_of(problem, directory)
    if not problem.example.file:
        return validate(directory, **options)
    return lint_file(directory / problem.example.file, format=options.get("format"), consumer=options.get("for"))


def test_the_catalogue_has_every_code_in_order() -> None:
    assert [(problem.group, problem.code) for problem in PROBLEMS.values()] == [
        (group, code) for group in GROUPS for code in ALL_CODES[group].split()
    ]


def test_severities_are_as_documented() -> None:
    for code, problem in PROBLEMS.items():
        expected = "warning" if code in WARNINGS else "info" if code in INFOS else "error"
        assert problem.severity == expected, code


@pytest.mark.parametrize("code", PROBLEMS)
def test_the_example_gives_its_code(code: str, tmp_path: Path) -> None:
    problem = PROBLEMS[code]
    write_example(problem.example, tmp_path)
    report = check(problem, tmp_path)
    assert report.summary.problems.get(code) == 1 or code == "manifest-invalid"
    found = [item for item in report.problems if item.code == code]
    assert found[0].severity == problem.severity or problem.severity_note
    assert report.ok is not any(item.severity == "error" for item in report.problems)
    # What comes along is a consequence of the problem, not another mistake in the example.
    allowed = {code, "image-orphan", "leak-image", "check-skipped"}
    assert set(report.summary.problems) <= allowed


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_texts_are_complete(problem: Problem) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z0-9]+)+|bom", problem.code)
    for text in (problem.what, problem.why, problem.how_to_fix):
        assert text.endswith((".", ")", "`."))
        assert len(text) > 25
    assert not problem.title.endswith(".")
    assert problem.example.files
    assert all(content.describe() is not None for content in problem.example.files.values())
    assert problem.example.command.startswith(f"phi3v-data validate {problem.example.file or 'DIR'}")


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("image-name-mismatch", "corrects the path in a copy if one file only can be meant"),
        ("image-format-mismatch", "makes a copy in which file and path have the extension of the format"),
        ("image-orientation", "makes a copy with the pixels rotated and the tag removed"),
        ("image-mode", "makes a copy in which CMYK is RGB, with the values that the processor of the model would use"),
    ],
)
def test_what_clean_fixes_is_said_by_explain_and_by_the_report(
    code: str, advice: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = make_cli(capsys, monkeypatch)
    advice = f"`phi3v-data clean DIR OUT --fix` {advice}"
    status, out, _ = cli("explain", code)
    assert (status, advice in " ".join(out.split())) == (0, True)
    write_example(PROBLEMS[code].example, tmp_path / "in")
    _, out, _ = cli("validate", tmp_path / "in")
    assert f"{advice}; phi3v-data explain {code}" in out
    status, out, _ = cli("clean", tmp_path / "in", tmp_path / "out", "--fix")
    assert (status, f"fixed: 1 {code}" in out) == (0, True)


def test_clean_is_not_named_for_a_mode_that_it_does_not_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_example(PROBLEMS["image-mode"].example, tmp_path)
    Image.new("I;16", (64, 48), 40_000).save(tmp_path / "images/a.jpg", "PNG")
    (tmp_path / "images/a.jpg").rename(tmp_path / "images/a.png")
    rows = tmp_path / "train.jsonl"
    rows.write_text(rows.read_text().replace("a.jpg", "a.png"))
    _, out, _ = make_cli(capsys, monkeypatch)("validate", tmp_path)
    assert "store it as 8-bit RGB or grey; phi3v-data explain image-mode" in out


def test_codes_in_the_source_are_in_the_catalogue() -> None:
    """No finding is made up on the way."""
    package = Path(phi3v_data.__file__).parent
    folders = ("validate", "lint", "formats")
    files = [package / "json_text.py", *(path for folder in folders for path in (package / folder).rglob("*.py"))]
    source = "".join(path.read_text() for path in files)
    used = {code for code in PROBLEMS if f'"{code}"' in source}
    assert used == set(PROBLEMS)
