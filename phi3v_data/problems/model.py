"""One entry of the catalogue."""

from dataclasses import dataclass

from phi3v_data.problems.example import Example
from phi3v_data.schema import Severity

GROUPS = ("rows", "images", "text", "tokens", "splits", "formats", "runs")
"""Groups of checks, in the order of the catalogue."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Meaning of a code. `severity` is the usual severity; `severity_note` says when it differs."""

    code: str
    group: str
    severity: Severity
    title: str
    what: str
    why: str
    example: Example
    fix: str
    severity_note: str = ""
