"""Pages: each heading once, links that lead somewhere, and tables that name what the code has."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/results/*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(?:#([^)\s]+))?\)")


def text_of(page: Path) -> str:
    """The page without its code."""
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def headings(page: Path) -> list[str]:
    """Anchors of the headings, as GitHub makes them."""
    found = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE), re.M
    )
    return [re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_each_heading_once_and_its_links_lead_somewhere(page: Path) -> None:
    anchors = headings(page)
    assert anchors or page.parent.name == "results"
    assert [each for each in anchors if anchors.count(each) > 1] == []
    lost = []
    for target, anchor in LINK.findall(text_of(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        other = (page.parent / target).resolve() if target else page
        if not other.exists() or (anchor and other.suffix == ".md" and anchor not in headings(other)):
            lost.append(f"{target}#{anchor}")
    assert lost == []


def test_the_page_of_training_names_all_option_names_of_other_trainers() -> None:
    from phi3v_train.foreign_names import ADVICE, ALIASES

    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`--.*`) \| `--(\w+)` \|$", page, re.M)
    found = {name: ours for names, ours in rows for name in re.findall(r"`--(\w+)`", names)}
    assert found == ALIASES
    rejected = page[page.index("`--dataset`, `--dataset_name`") : page.index("are rejected, with a message")]
    assert set(re.findall(r"`--(\w+)`", rejected)) == set(ADVICE)
