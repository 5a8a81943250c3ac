"""One entry of the catalogue."""

from dataclasses import dataclass

from phi3v_data.problems.example import Example
from phi3v_data.schema import Severity

GROUPS = ("rows", "images", "text", "tokens", "splits", "formats", "runs")
"""Groups of checks, in the order of the catalogue."""


CLEAN_FIX = "`phi3v-data clean DIR OUT --fix`"


@dataclass(frozen=True, slots=True)
class Problem:
    """Meaning of a code.

    `severity` is the usual severity; `severity_note` says when it differs. `clean_fix` is what `clean --fix` does about
    it, as the end of a sentence; empty if it does nothing.
    """

    code: str
    group: str
    severity: Severity
    title: str
    what: str
    why: str
    example: Example
    fix: str
    severity_note: str = ""
    clean_fix: str = ""

    @property
    def by_command(self) -> str:
        """The command that fixes it, and how; empty if there is none."""
        return f"{CLEAN_FIX} {self.clean_fix}" if self.clean_fix else ""

    @property
    def how_to_fix(self) -> str:
        """The command that fixes it, if there is one, and what a user can do."""
        return f"{self.by_command}. {self.fix}" if self.clean_fix else self.fix
