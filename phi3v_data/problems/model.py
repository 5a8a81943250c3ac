"""One entry of the catalogue."""

from dataclasses import dataclass

from phi3v_data.problems.example import Example
from phi3v_data.schema import Severity

GROUPS = ("rows", "images", "text", "tokens", "splits", "runs")
"""What a check looks at; the catalogue's order."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What a code means. `severity` is the usual one; `severity_note` says when it is another."""

    code: str
    group: str
    severity: Severity
    title: str
    what: str
    why: str
    example: Example
    fix: str
    severity_note: str = ""
