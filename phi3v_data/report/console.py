"""A report on the console: one finding in two lines, then the counts and the verdict.

train.jsonl:41 conversations[1].images[0] image-missing: 'train/a.jpg' is not under images/
  did you mean 'train/A.jpg'? fix: copy it there or correct the path; phi3v-data explain image-missing
"""

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from phi3v_data.messages import counted
from phi3v_data.schema import Diagnostic, Report, Severity

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

SHOWN_PER_CODE = 5
"""Findings of one code that the console shows (of a note only one); the JSON and HTML reports list more."""

STYLES: dict[Severity, str] = {"error": "bold red", "warning": "yellow", "info": "cyan"}
NOUNS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "note"}
_RANK: dict[Severity, int] = {"error": 0, "warning": 1, "info": 2}


def print_report(report: Report, console: "Console", *, shown_per_code: int = SHOWN_PER_CODE) -> None:
    """Print findings by severity and code, each code shortened, then tables of splits and problems and the verdict."""
    by_code: dict[str, list[Diagnostic]] = defaultdict(list)
    for problem in report.problems:
        by_code[problem.code].append(problem)
    severities = {code: min((p.severity for p in found), key=_RANK.__getitem__) for code, found in by_code.items()}
    codes = sorted(by_code, key=lambda code: (_RANK[severities[code]], code))
    for code in codes:
        found = sorted(by_code[code], key=lambda problem: _RANK[problem.severity])
        room = shown_per_code if severities[code] != "info" else 1
        for problem in found[:room]:
            for line in format_problem(problem):
                console.print(line, soft_wrap=True)
        more = report.summary.problems.get(code, len(found)) - min(len(found), room)
        if more > 0:
            console.print(f"  ... and {more:,} more {code}", style="dim")
    if codes:
        console.print()
    _print_splits(report, console)
    console.print()
    if report.summary.problems:
        _print_counts(report, severities, console)
        console.print()
    console.print(verdict(report, severities))


def format_problem(problem: Diagnostic) -> list["Text"]:
    """The two lines of one finding."""
    from rich.text import Text

    where = f"{problem.file or '.'}{f':{problem.line}' if problem.line else ''}"
    head = Text(where, style="bold")
    if problem.field:
        head.append(f" {problem.field}", style="not bold")
    head.append(f" {problem.code}", style=STYLES[problem.severity])
    head.append(f": {problem.message}", style="not bold")
    hint = f"{problem.hint}; " if problem.hint else ""
    return [head, Text(f"  {hint}phi3v-data explain {problem.code}", style="dim")]


def verdict(report: Report, severities: dict[str, Severity]) -> "Text":
    """The last line: whether the directory is valid, and the number of problems by severity."""
    from rich.text import Text

    totals = count_severities(report, severities)
    counts = ", ".join(counted(totals[severity], noun) for severity, noun in NOUNS.items() if totals[severity])
    rows = counted(report.summary.samples, "sample")
    head = ("ok", "bold green") if report.ok else ("problems", "bold red")
    return Text.assemble(head, f": {report.dir}, {rows}, level {report.level}; {counts or 'no findings'}")


def count_kinds(report: Report, severities: dict[str, Severity]) -> dict[tuple[str, Severity], int]:
    """Occurrences by code and severity, the most severe first, then by code.

    Of a code that has several severities, unlisted findings count as the most severe one.
    """
    kinds = Counter((problem.code, problem.severity) for problem in report.problems)
    listed = Counter(problem.code for problem in report.problems)
    for code, count in report.summary.problems.items():
        kinds[code, severities.get(code, "error")] += count - listed[code]
    order = sorted((kind for kind in kinds if kinds[kind] > 0), key=lambda kind: (_RANK[kind[1]], kind[0]))
    return {kind: kinds[kind] for kind in order}


def count_severities(report: Report, severities: dict[str, Severity]) -> Counter[Severity]:
    """Occurrences by severity; see `count_kinds`."""
    totals: Counter[Severity] = Counter()
    for (_, severity), count in count_kinds(report, severities).items():
        totals[severity] += count
    return totals


def _print_splits(report: Report, console: "Console") -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("split")
    table.add_column("rows", justify="right")
    for split, rows in report.summary.splits.items():
        table.add_row(split, f"{rows:,}")
    console.print(table)
    images = counted(report.summary.images, "different image")  # a row's use of one is not another
    console.print(f"{counted(report.summary.turns, 'turn')}, {images}", style="dim")


def _print_counts(report: Report, severities: dict[str, Severity], console: "Console") -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("problem")
    table.add_column("severity")
    table.add_column("count", justify="right")
    for (code, severity), count in count_kinds(report, severities).items():
        table.add_row(code, Text(severity, style=STYLES[severity]), f"{count:,}")
    console.print(table)
