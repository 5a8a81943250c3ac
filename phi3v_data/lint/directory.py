"""A conversations directory as a consumer would read its export."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from phi3v_data.dataset import Dataset
from phi3v_data.errors import NotFoundError
from phi3v_data.formats.base import RowFormat
from phi3v_data.formats.chat import Chat, Fault
from phi3v_data.formats.consumers.base import Consumer, OverRows, RowView
from phi3v_data.formats.consumers.registry import get_consumer
from phi3v_data.formats.registry import get_format
from phi3v_data.formats.turns import to_chat
from phi3v_data.jsonl import BOM, read_lines
from phi3v_data.schema import Report, Sample
from phi3v_data.shards.view import data_directory
from phi3v_data.validate.findings import Findings

_LOST = {
    "system-message": "{title} cannot carry the system message: an export refuses the row, or puts it before the text",
    "placeholder-in-text": "a text has a placeholder of {title}: an export refuses the row, or spells it out",
    "weight": "{title} has no weights: an export refuses the row, or the answers of weight 0 are trained",
}
_MESSAGE = re.compile(r"(?:messages|conversations)\[([0-9]+)\]")


def add_consumer(
    report: Report, directory: str | Path, consumer: str, *, strict: bool = False, max_problems: int = 1000
) -> Report:
    """The report of a directory with what a consumer would do to each sample, were it exported to its format.

    Raises:
        NotFoundError: there is no such consumer.
        UserError: the directory cannot be read.
    """
    tool = get_consumer(consumer)()
    format_ = get_format(tool.formats[0])()
    folder = data_directory(directory)
    findings = Findings(max_problems)
    try:
        files = Dataset(folder, strict=False).files
    except NotFoundError:
        files = {}  # the report says so
    for names in files.values():
        over_rows = tool.over_rows()
        num_rows = 0
        for name in names:
            for number, sample in _samples(folder / name):
                num_rows += 1
                for fault in _faults(sample, number, tool, format_, over_rows, folder):
                    _add(findings, fault, file=name, line=number, row_id=sample.id)
        for line, fault in over_rows.end(num_rows):
            _add(findings, fault, file=names[0] if names else "", line=line, row_id=None)
    problems = dict(report.summary.problems)
    for code, count in findings.counts.items():
        problems[code] = problems.get(code, 0) + count
    listed = sorted((*report.problems, *findings.listed), key=lambda found: (found.file, found.line or 0))
    ok = report.ok and findings.is_ok() and not (strict and findings.severities["warning"])
    return report.model_copy(
        update={
            "ok": ok,
            "problems": tuple(listed),
            "summary": report.summary.model_copy(update={"problems": dict(sorted(problems.items()))}),
            "stats": {**report.stats, "consumer": tool.name},
        }
    )


def _samples(path: Path) -> Iterator[tuple[int, Sample]]:
    """The valid rows of a file with their lines; the validator has named the others."""
    try:
        for line in read_lines(path):
            try:
                yield line.number, Sample.from_json(line.data.removeprefix(BOM))
            except ValueError:
                continue
    except OSError:
        return


def _faults(
    sample: Sample, line: int, tool: Consumer, format_: RowFormat, over_rows: OverRows, folder: Path
) -> Iterator[Fault]:
    chat = to_chat(sample, lambda path: f"images/{path}")
    written = format_.write(chat)
    view = RowView(written.row, chat, format_, folder, is_export=True)
    for code in written.lost:
        where = "system" if code == "system-message" else "conversations"
        yield Fault(code, where, _LOST.get(code, "an export refuses the row").format(title=format_.title))
    over_rows.row(view, line)
    for fault in tool.check(view):
        yield replace(fault, field=_own_field(fault.field, chat, int("system-message" in written.lost)))


def _own_field(field: str, chat: Chat, left_out: int) -> str:
    """A field of the exported row, which lacks the first `left_out` messages, by its name in the directory."""
    found = _MESSAGE.match(field)
    own = {message.field for message in chat.messages} | {image.field for image in chat.images}
    if found is None or field in own:
        return field
    number = int(found[1]) + left_out
    return chat.messages[number].field if number < len(chat.messages) else field


def _add(findings: Findings, fault: Fault, *, file: str, line: int | None, row_id: str | None) -> None:
    findings.add(
        fault.code,
        fault.message,
        file=file,
        line=line,
        id=row_id,
        field=fault.field or None,
        hint=fault.hint,
        severity=fault.severity,
    )
