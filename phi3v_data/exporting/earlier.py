"""Tells whether the export that is asked for is there already, from the record that an export leaves."""

import os
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


_OPTIONS = {"shard_bytes": "shard_mb (in bytes)"}
_WORDS = {
    "version": "of another version of phi3v",
    "format_file": "before the file of the format changed",
    "input.pictures": "before images were changed, replaced, copied or linked",
    "input.name": "before the set was renamed",
}


class Record(msgspec.Struct):
    """The record of an export, as far as it is read again; `output` is a digest of its files."""

    identity: dict[str, Any]
    output: str
    rows: dict[str, int]
    images: int
    lost: dict[str, int]
    not_carried: dict[str, int]


def export_identity(name: str, exporter: Exporter, directory: Path, *, linked: bool) -> dict[str, Any]:
    """All that decides the files of an export: format, settings, content of the rows, states of the images.

    `linked`: the images of the export are links to those of the directory, which changes their change time, and
    whatever is written into the one is in the other; else the change time is compared, too.
    """
    request = exporter.request
    settings = {each.name: getattr(request, each.name) for each in fields(request)}
    settings |= {"image_refs": exporter.image_refs, "layout": exporter.layout}  # as they are if they are not given
    settings |= {"shard_bytes": exporter.shard_bytes, "images": None} if exporter.sharded else {"shard_bytes": None}
    survey = Survey(directory, Findings(1))
    tree = survey.tree
    states = (tree.sizes, tree.mtimes, tree.inodes, *(() if linked else (tree.ctimes,)))
    found: dict[str, Any] = {"files": dict(survey.state().files), "pictures": tree_digest(tree, *states)}
    if survey.layout.manifest is None:
        found["name"] = directory.resolve().name  # which stands for the set's
    identity = {"export": name, "version": VERSION, "settings": settings, "input": found}
    if digest := own_file_digest(type(exporter.row_format)):
        identity["format_file"] = digest
    return identity


def are_linked(exporter: Exporter, directory: Path, target: Path | None) -> bool:
    """Whether an export to this path links the directory's images; None: to a store, by links in a temporary folder."""
    if exporter.sharded or exporter.request.images != "link" or not os.path.isdir(directory / "images"):
        return False
    if target is None:
        return True
    above = next(parent for parent in target.parents if parent.exists())  # the others are made by the export
    return os.stat(directory / "images").st_dev == os.stat(above).st_dev


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Differences between two identities, in words."""
    if old.get("export") != new["export"]:
        return [f"of format {shown(str(old.get('export')), 40)}"]
    changed = []
    for difference in differences(old, new):
        field, _, values = difference.partition(" ")
        group, _, name = field.partition(".")
        if group == "settings":
            changed.append(f"with --{_OPTIONS.get(name, name)} {values.replace(' -> ', ' instead of ')}")
        elif field.startswith("input.files."):
            changed.append(f"before {shown(field.removeprefix('input.files.'))} changed")
        else:
            changed.append(_WORDS.get(field, difference))
    return changed


def earlier_result(where: str, target: Path, record: Any, identity: Mapping[str, Any], output: str) -> ExportResult:
    """The result of the export that is there.

    Args:
        where: its place, for messages.
        target: path of the result.
        record: what it left, unchecked.
        identity: of the export that is asked for.
        output: digest of the files that are there.

    Raises:
        UserError: it is another one, or its files are not what it wrote.
    """
    way_out = "--overwrite replaces it, or choose another --out"
    try:
        found = msgspec.convert(record, Record)
        changed = _changes(found.identity, identity)
    except (msgspec.ValidationError, RecursionError):
        raise UserError(f"{where}: has an export already; {way_out}") from None
    if changed:
        raise UserError(f"{where}: has an export already, {join_words(changed, 4)}; {way_out}")
    if found.output != output:
        raise UserError(f"{where}: has an export already, whose files have changed or are missing; {way_out}")
    lost = {code: Loss(rows, "", "") for code, rows in found.lost.items()}
    return ExportResult(target, found.rows, found.images, lost, left_out=found.not_carried, already_complete=True)
