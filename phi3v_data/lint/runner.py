"""The whole check of a file of another tool, from its layout to the report."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3v_data.encodings import file_encoding
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.formats.base import RowFormat
from phi3v_data.formats.chat import Fault
from phi3v_data.formats.consumers.base import Consumer
from phi3v_data.formats.consumers.registry import all_consumers, get_consumer
from phi3v_data.formats.dataset_info import FILE
from phi3v_data.formats.images import OUTSIDE_HINT
from phi3v_data.formats.placeholders import IMAGE
from phi3v_data.formats.registry import get_format
from phi3v_data.formats.rows import RowFile, open_rows
from phi3v_data.formats.tagged import TaggedFormat
from phi3v_data.lint.choose import ChosenFormat, choose_format
from phi3v_data.lint.elements import inside
from phi3v_data.lint.images import ImageChecks, Verdict
from phi3v_data.lint.lengths import Lengths, LengthSettings
from phi3v_data.lint.row_check import RowCheck
from phi3v_data.lint.scan import FileScan, images_folder
from phi3v_data.lint.templates import Templates
from phi3v_data.messages import counted, shown_path
from phi3v_data.remote.address import is_remote, spelled
from phi3v_data.schema import Level, Report, Summary
from phi3v_data.tokens.choose import choose_model
from phi3v_data.tokens.family import TokenFamily
from phi3v_data.validate.collector import paused_collector
from phi3v_data.validate.control import build_control_tokens, control_tokens, marker_strings
from phi3v_data.validate.findings import Findings

if TYPE_CHECKING:
    from phi3v_data.validate.survey import Progress

_HIDDEN = frozenset({"missing-field", "role-unknown"})
"""Codes of what rows seem to lack where settings hide it."""

_MANY_IMAGES = 1 << 20
"""Bytes of a file from which on its images are read by several processes."""


def lint_file(
    path: str | Path,
    *,
    format: str | None = None,  # noqa: A002 - the option's name
    consumer: str | None = None,
    images_root: str | Path | None = None,
    level: Level = "full",
    model: str | Path | None = None,
    lengths: LengthSettings | None = None,
    strict: bool = False,
    workers: int = 1,
    max_problems: int = 1000,
    progress: "Progress | None" = None,
) -> Report:
    """Check a file of another tool where it is: each row as its reader takes it, each image once.

    Args:
        format: its format; else that of `dataset_info.json` beside it, else a guess from its first rows.
        consumer: the tool whose rules apply; else that of the format.
        images_root: folder that paths of images are relative to; else the file's.
        level: `quick` reads the headers of images only.
        model: family or directory of a model whose special strings must not be in a text.
        lengths: tokens are counted with these, which takes longer; None: they are not.
        strict: `ok` is false with a warning, too.
        workers: processes that read images; more than 1 starts new interpreters.
        max_problems: findings listed of each code; all are counted.
        progress: called as `progress("rows", done, total)`, in bytes.

    Returns:
        The report; `stats` has the format, the reason why, and the consumer.

    Raises:
        NotFoundError: no such file, folder, format, consumer or model.
        UserError: the file cannot be read or is not one of rows; its format is not plain.
    """
    path = Path(path)
    rows = open_rows(path)
    if images_root is not None and is_remote(images_root):
        raise UserError(
            f"--images_root {spelled(images_root)}: a file of rows is checked with images in a folder; `phi3v-data "
            "import` reads an address, and what it writes can be checked"
        )
    if images_root is not None and not Path(images_root).is_dir():
        raise NotFoundError(f"--images_root '{images_root}' is not a folder")
    chosen = choose_format(rows, format)
    tool = _consumer(consumer, chosen.format)
    is_its_own = chosen.format.name in tool.formats or chosen.format.consumer == tool.name
    if format is None and tool.formats and not is_its_own:
        chosen = ChosenFormat(get_format(tool.formats[0])(), f"as {tool.title} reads it")
    wanted = lengths if lengths is not None and lengths.are_given else None
    chosen_model = choose_model(model, wanted.tokenizer if wanted else None)
    markers = control_tokens(chosen_model.family)
    root = images_folder(path, Path(images_root) if images_root is not None else None)
    findings = Findings(max_problems)
    for fault in tool.check_file(path.name, _kind(rows)):
        add_fault(findings, fault, path.name, "")
    for fault in tool.check_settings(chosen.format):
        add_fault(findings, fault, FILE, f"{chosen.info}.{fault.field}")
    hidden = _HIDDEN if findings.counts["settings-invalid"] else frozenset[str]()
    check = RowCheck(chosen.format, tool, markers, root, own_is_error=model is not None, hidden=hidden)
    counted_tokens = Lengths(path.name, chosen_model, wanted, findings) if wanted else None
    scan = FileScan(rows, check, _templates(check, chosen_model.family), findings, counted_tokens)
    size = path.stat().st_size

    def observe(position: int) -> None:
        if progress is not None:
            progress("rows", min(position, size), size)

    images = ImageChecks(
        findings,
        str(root),
        pixels=level == "full",
        workers=workers if size > _MANY_IMAGES else 1,
        judge=_judge(tool),
        opener=chosen.format.title if chosen.format.files_below else tool.title if tool.files_only else "",
        below=chosen.format.files_below,
        sizes=counted_tokens is not None,
    )
    bytes(8 << 20)  # freed at once: from then on glibc keeps blocks of this size instead of mapping each again
    with paused_collector():
        images.run(scan.blocks(observe))
    if not scan.num_rows and not findings.counts:
        raise UserError(f"'{path}' has no rows")
    scan.repeats.report(path.name, findings)
    if counted_tokens is not None:
        counted_tokens.report(images.sizes)
    for number, fault in check.over_rows.end(scan.num_rows):
        line, element = (None, None) if number is None else scan.repeats.place(number)
        add_fault(findings, fault, path.name, inside(element, fault.field), line=line)
    if images.num_urls:
        findings.add(
            "check-skipped",
            f"{counted(images.num_urls, 'image')} given by a URL: nothing is fetched, so that they are not checked",
            file=path.name,
            severity="info",
        )
    if images.num_outside:
        findings.add(
            "image-path-unsafe",
            f"{counted(images.num_outside, 'image')} outside of {shown_path(root)}, such as {images.outside}: "
            "`import` refuses such paths",
            file=path.name,
            hint=OUTSIDE_HINT,
            severity="info",
        )
    stats: dict[str, Any] = {
        "format": chosen.format.name,
        "format_reason": chosen.reason,
        "consumer": tool.name,
        "images_root": str(root),
    }
    ok = findings.is_ok() and not (strict and findings.severities["warning"])
    return Report(
        dir=str(path),
        ok=ok,
        level=level,
        summary=Summary(
            samples=scan.num_rows,
            turns=scan.num_turns,
            images=images.num_images,
            splits={path.name: scan.num_rows},
            problems=dict(sorted(findings.counts.items())),
        ),
        problems=findings.in_order(),
        stats=stats,
    )


def _consumer(name: str | None, format_: RowFormat) -> Consumer:
    """The consumer that was asked for, else that of the format; a format of the user's own may have none here."""
    if name is None and format_.consumer not in all_consumers():
        return Consumer()
    return get_consumer(name or format_.consumer)()


def _kind(rows: RowFile) -> str:
    """The layout of a file, or `gzip`."""
    return "gzip" if rows.layout != "parquet" and file_encoding(rows.path) == "gzip" else rows.layout


def _templates(check: RowCheck, family: TokenFamily) -> Templates:
    """Templates that know every string which a text of the format must not have."""
    has_tags = isinstance(check.format, TaggedFormat)
    own, foreign = marker_strings(family)
    strings = dict.fromkeys((*foreign, *check.format.reserved))
    wanted = (text for text in strings if text not in own and not (has_tags and text == IMAGE))
    special = {ord(char) for text in (*own, *strings) for char in text if not char.isascii()}
    return Templates(check, build_control_tokens(own, wanted), has_tags=has_tags, special=special)


def add_fault(findings: Findings, fault: Fault, file: str, field: str, *, line: int | None = None) -> None:
    """Add a fault that is not about one row alone."""
    findings.add(
        fault.code,
        fault.message,
        file=file,
        line=line,
        field=field or None,
        hint=fault.hint,
        severity=fault.severity,
    )


def _judge(tool: Consumer) -> Any:
    """A function that adds what a tool does to a finding about an image."""

    def judge(verdict: Verdict) -> tuple[str, str]:
        fault = tool.judge(Fault(verdict.code, "", verdict.message, verdict.hint), None)
        return (verdict.message, verdict.hint) if fault is None else (fault.message, fault.hint)

    return judge
