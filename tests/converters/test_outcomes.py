"""The notes and reject reasons of conversions are explained, each and in all places."""

import re
from pathlib import Path

import pytest
from in_process import Cli, make_cli

from phi3v_data.problems.outcomes import NOTES, REJECTS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return make_cli(capsys, monkeypatch)


def test_every_code_in_the_source_is_explained() -> None:
    text = "".join(path.read_text() for path in (ROOT / "phi3v_data").rglob("*.py") if path.name != "outcomes.py")
    rejects = set(re.findall(r"""Reject\(\s*"([a-z-]+)"|reject="([a-z-]+)"|writer\.reject\(slot, "([a-z-]+)\"""", text))
    assert {next(filter(None, found)) for found in rejects} - set(REJECTS) == set()
    notes = re.findall(
        r"""notes\.append\("([a-z-]+)"|notes=\("([a-z-]+)"|\.notes, "([a-z-]+)"|"([a-z]+-renamed)\"""", text
    )
    assert {next(filter(None, found)) for found in notes} - set(NOTES) == set()
    assert len(notes) >= 7


def test_the_page_has_every_code() -> None:
    page = (ROOT / "docs/converters.md").read_text()
    for code, text in (NOTES | REJECTS).items():
        assert f"| `{code}` | {text} |" in page


def test_explain_knows_notes_and_reject_reasons(cli: Cli) -> None:
    code, out, _ = cli("explain", "image_renamed")
    assert code == 0
    assert out.startswith("image-renamed (note of a conversion, counted in dataset.json): The image is stored under")
    assert out.endswith("docs/converters.md\n")
    assert "reject reason of a conversion" in cli("explain", "image-missing")[1]
    code, _, err = cli("explain", "zzz")
    assert (code, "docs/converters.md" in err) == (2, True)
