"""The catalogue as text."""

import io
from pathlib import Path

import pytest

from phi3v_data.console import make_console
from phi3v_data.errors import NotFoundError
from phi3v_data.problems import GROUPS, PROBLEMS
from phi3v_data.report.catalogue import find_problem, print_list, print_problem, to_markdown

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_that_of_the_catalogue() -> None:
    committed = (DOCS / "problems.md").read_text(encoding="utf-8")
    assert committed == to_markdown(), "the catalogue has moved on: run `make docs`"


@pytest.mark.parametrize("code", PROBLEMS)
def test_each_code_says_what_why_how_and_shows_an_example(code: str) -> None:
    stream = io.StringIO()
    print_problem(PROBLEMS[code], make_console(stream))
    text = stream.getvalue()
    words = " ".join(text.split())
    problem = PROBLEMS[code]
    assert text.startswith(f"{code}  {problem.severity}")
    for part in (problem.what, problem.why, problem.how_to_fix):
        assert " ".join(part.split()) in words
    assert f"Example  {problem.example.command}" in text
    assert all(name in text for name in problem.example.files)
    assert text.isprintable() or all(char.isprintable() or char == "\n" for char in text)


def test_every_code_is_listed_once_under_its_group() -> None:
    stream = io.StringIO()
    print_list(make_console(stream))
    lines = stream.getvalue().splitlines()
    assert [line for line in lines if not line.startswith(" ")] == list(GROUPS)
    assert sorted(line.split()[0] for line in lines if line.startswith(" ")) == sorted(PROBLEMS)


def test_codes_are_found_however_they_are_typed() -> None:
    assert find_problem("Image_Missing").code == "image-missing"
    with pytest.raises(NotFoundError, match="did you mean 'duplicate-id'"):
        find_problem("duplicate-ids")
    with pytest.raises(NotFoundError, match="'image-missing'"):
        find_problem("image")
    with pytest.raises(NotFoundError, match="no problem code 'xyzzy'; `phi3v-data explain` lists all codes"):
        find_problem("xyzzy")


def test_markdown_outside_of_code_spans_is_escaped() -> None:
    for line in to_markdown().splitlines():
        if line.startswith("|") and not line.startswith("| ---"):
            assert line.replace("\\|", "").count("|") == 4
