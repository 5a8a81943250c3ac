"""Text from data in Markdown: a renderer shows it as it is, and makes nothing of it."""

import re
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from phi3v_data.markdown import markdown_code, markdown_text

EVIL = (
    "# heading",
    "- item",
    "+ item",
    "1. item",
    "12) item",
    "---",
    "===",
    "> quote",
    "a | b",
    "`code`",
    "``",
    "**bold** _it_ ~~gone~~",
    "[link](javascript:alert(1))",
    "![image](https://example.org/x.png)",
    "[ref]: https://example.org",
    "<script>alert(1)</script>",
    "<https://example.org>",
    "&lt;b&gt; &amp;",
    "\\*not bold\\*",
    "a\n\n# b",
    "end\\",
    "```\nfence",
    "    indented",
    "$x$ ~~~",
)


def render(text: str) -> str:
    return str(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))


def text_of(page: str) -> str:
    return unescape(re.sub(r"<[^>]*>", "", page)).strip("\n")


@pytest.mark.parametrize("text", EVIL)
def test_it_is_shown_as_it_is_wherever_it_is(text: str) -> None:
    line = " ".join(text.split())
    for frame, tags in (
        ("{}", {"p"}),
        ("x {} x", {"p"}),
        ("# {}", {"h1"}),
        ("> {}", {"blockquote", "p"}),
        ("> **{}x**", {"blockquote", "p", "strong"}),
        ("- Name: {}", {"ul", "li"}),
        ("- {}", {"ul", "li"}),
        ("| a | b |\n| --- | --- |\n| {} | x |", {"table", "thead", "tbody", "tr", "th", "td"}),
    ):
        page = render(frame.format(markdown_text(text)))
        assert set(re.findall(r"<(\w+)", page)) == tags, (frame, page)
        assert line in text_of(page), frame


@given(st.text("`|*_[]()#<>&\\~$!-+=1. ab\n\x1b\x85\u202e", max_size=12))
def test_any_text_is_one_paragraph_with_nothing_in_it(text: str) -> None:
    page = render(markdown_text(text))
    assert page == "" or re.fullmatch(r"<p>[^<]*</p>\n", page), page
    assert "\x1b" not in page
    page = render(f"x {markdown_code(text)} y")
    assert re.fullmatch(r"<p>x <code>[^<]*</code> y</p>\n", page), page


def test_code_spans_hold_backticks_and_long_texts_are_cut() -> None:
    assert render(markdown_code("a`b``c")) == "<p><code>a`b``c</code></p>\n"
    assert markdown_code("anls") == "`anls`"
    assert markdown_text("abcdef", 3) == "abc …"
    assert markdown_text(None) == markdown_text({"a": 1}) == ""
