"""Escapes text from data for Markdown, so that it cannot create headings, links, table cells, images or HTML."""

import html
import re

from phi3v_data.messages import printable

_MARKUP = re.compile(r"([\\`*_\[\]#|~$])")
_AT_START = re.compile(r"^(?:([-+=])|(\d{1,9})([.)]))")


def markdown_text(value: object, limit: int | None = None) -> str:
    """The text on one line, escaped for Markdown and cut after `limit` characters; empty if it is not a string."""
    text = printable(" ".join(value.split())) if isinstance(value, str) else ""
    if limit is not None and len(text) > limit:
        text = f"{text[:limit]} …"
    text = _MARKUP.sub(r"\\\1", html.escape(text, quote=False))
    return _AT_START.sub(lambda match: f"{match[2] or ''}\\{match[1] or match[3]}", text)


def markdown_code(value: str) -> str:
    """The text as a code span that a backtick in it cannot end."""
    text = printable(" ".join(value.split()))
    runs = [len(run) for run in re.findall("`+", text)]
    fence = "`" * (max(runs, default=0) + 1)
    space = " " if runs or not text else ""
    return f"{fence}{space}{text}{space}{fence}"
