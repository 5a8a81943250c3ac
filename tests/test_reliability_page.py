"""docs/reliability.md: every test that it names is there."""

import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_every_test_that_the_page_names_exists() -> None:
    page = (TESTS.parent / "docs/reliability.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\btest_\w+(?!\w*\.py)(?=`)", page))
    source = "".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    assert named
    assert {name for name in named if f"def {name}(" not in source} == set()
