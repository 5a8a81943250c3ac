"""Tells whether the export that is asked for is there already, from the record that an export leaves."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from phi3v_data.errors import UserError
from phi3v_data.exporting.exporter import Exporter
from phi3v_data.exporting.request import ExportResult, Loss
from phi3v_data.messages import join_words, shown
from phi3v_data.registry import own_file_digest
from phi3v_data.validate.findings import Findings
from phi3v_data.validate.receipt import tree_digest
from phi3v_data.validate.survey import Survey
from phi3v_data.writing.differences import differences

VERSION = 1
"""To be raised when the same rows and settings give other files."""


class Record(msgspec.Struct):
    """The record of an export, as far as it is read again; `sizes` are bytes by name of file."""

    identity: dict[str, Any]
    rows: dict[str, int]
    images: int
    lost: dict[str, int]
    not_carried: dict[str, int]
    sizes: dict[str, int] = {}


def export_identity(name: str, exporter: Exporter, directory: Path) -> dict[str, Any]:
    """All that decides the files of an export: format, settings, content of rows, names, sizes and times of images."""
    settings = {each.name: getattr(exporter.request, each.name) for each in fields(exporter.request)}
    survey = Survey(directory, Findings(1))
    tree = survey.tree  # linking an image into an export changes its change time, so that is not compared
    files = {"files": dict(survey.state().files), "pictures": tree_digest(tree, tree.sizes, tree.mtimes)}
    identity = {"export": name, "version": VERSION, "settings": settings, "input": files}
    if digest := own_file_digest(type(exporter.row_format)):
        identity["format_file"] = digest
    return identity


def earlier_result(
    where: str, target: Path, record: Any, identity: Mapping[str, Any], sizes: Mapping[str, int]
) -> ExportResult:
    """The result of the export that is there.

    Args:
        where: its place, for messages.
        target: path of the result.
        record: what it left, unchecked.
        identity: of the export that is asked for.
        sizes: the files that are there, in bytes.

    Raises:
        UserError: it is another one, or not whole any more.
    """
    way_out = "--overwrite replaces it, or choose another --out"
    try:
        found = msgspec.convert(record, Record)
    except msgspec.ValidationError:
        raise UserError(f"{where}: has an export already; {way_out}") from None
    if changed := differences(found.identity, identity):
        raise UserError(
            f"{where}: has an export already, of other input or with other settings: {join_words(changed)}; {way_out}"
        )
    for file, size in found.sizes.items():
        if sizes.get(file) != size:
            what = "is missing" if file not in sizes else f"has {sizes[file]:,} bytes instead of {size:,}"
            raise UserError(f"{where}: has an export already, in which {shown(file)} {what}; {way_out}")
    lost = {code: Loss(rows, "", "") for code, rows in found.lost.items()}
    return ExportResult(target, found.rows, found.images, lost, left_out=found.not_carried, already_complete=True)
