"""Collects findings: counts all, and lists the first of each code."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TypeVar

from phi3v_data.messages import escaped
from phi3v_data.problems import PROBLEMS
from phi3v_data.schema import Diagnostic, Severity

T = TypeVar("T")


class Findings:
    """Counts every finding and keeps the first `max_problems` of each code."""

    def __init__(self, max_problems: int) -> None:
        self.max_problems = max_problems
        self.counts: Counter[str] = Counter()
        self.severities: Counter[str] = Counter()
        self.listed: list[Diagnostic] = []
        self._listed: Counter[str] = Counter()

    @property
    def wants_each(self) -> bool:
        """Whether each occurrence must be added, even if one finding could summarize them."""
        return False

    def has_room(self, code: str) -> bool:
        """Whether another finding of this code would be listed; if not, `count` is enough."""
        return self._listed[code] < self.max_problems

    def count(self, code: str, number: int = 1, *, severity: Severity | None = None) -> None:
        """Count findings without listing them."""
        self.counts[code] += number
        self.severities[severity or PROBLEMS[code].severity] += number

    def up_to_limit(self, code: str, items: Sequence[T], *, severity: Severity | None = None) -> Iterator[T]:
        """Yield the items at which a finding of this code is to be added while there is room; the rest are counted."""
        for position, item in enumerate(items):
            if not self.has_room(code):
                self.count(code, len(items) - position, severity=severity)
                return
            yield item

    def add(
        self,
        code: str,
        message: str,
        *,
        file: str = "",
        line: int | None = None,
        id: str | None = None,  # noqa: A002 - the report's own field name
        field: str | None = None,
        hint: str = "",
        severity: Severity | None = None,
    ) -> None:
        """Count a finding, and list it while there is room."""
        severity = severity or PROBLEMS[code].severity
        self.count(code, severity=severity)
        if not self.has_room(code):
            return
        self._listed[code] += 1
        self.listed.append(
            Diagnostic(
                code=code,
                severity=severity,
                file=escaped(file),
                line=line,
                id=None if id is None else escaped(id[:200]),
                field=field,
                message=message,
                hint=hint,
            )
        )

    def extend(self, other: "Findings", line_offset: int) -> None:
        """Add the findings of a part of a file, with lines counted from the start of that part."""
        self.counts.update(other.counts)
        self.severities.update(other.severities)
        for found in other.listed:
            if self.has_room(found.code):
                self._listed[found.code] += 1
                line = None if found.line is None else found.line + line_offset
                self.listed.append(found.model_copy(update={"line": line}))

    def is_ok(self) -> bool:
        """Whether there are no errors; `strict` is applied to the report."""
        return not self.severities["error"]

    def in_order(self) -> tuple[Diagnostic, ...]:
        """The listed findings by file and line; those about the whole directory come first."""
        return tuple(sorted(self.listed, key=lambda found: (found.file, found.line or 0)))
