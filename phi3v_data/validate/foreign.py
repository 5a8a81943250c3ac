"""Recognizes a folder with files of another tool, which is not a conversations directory."""

from itertools import islice
from pathlib import Path

from phi3v_data.dataset import list_directory
from phi3v_data.errors import UserError
from phi3v_data.formats.dataset_info import FILE as DATASET_INFO
from phi3v_data.formats.guess import guess_from, has_messages, is_own
from phi3v_data.formats.rows import read_rows
from phi3v_data.messages import shown
from phi3v_data.splits import NOT_SPLITS
from phi3v_data.unfinished import MANIFEST

_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
_MAX_FILES = 4
_ROWS = 20


def refuse_foreign(directory: Path) -> None:
    """Raise UserError for a bare directory without a row of its own format that has a file of another tool's rows."""
    names = list_directory(directory)
    if MANIFEST in names:
        return
    files = [name for name in names if name.endswith(_SUFFIXES) and name not in NOT_SPLITS]
    files.sort(key=lambda name: not name.endswith(".jsonl"))
    foreign: list[tuple[str, str]] = []
    for name in files[:_MAX_FILES]:
        try:
            rows = [row.value for row in islice(read_rows(directory / name), _ROWS) if row.value is not None]
        except UserError:
            continue
        if any(map(is_own, rows)):
            return
        if sum(map(has_messages, rows)) > len(rows) / 2:
            foreign.append((name, "sharegpt" if DATASET_INFO in names else guess_from(rows).name))
    if not files and (inner := _first_below(directory, names, "shard.00000.mds")):
        raise UserError(
            f"'{directory}' is in the format of MosaicML streaming, as {shown(inner)} shows, which is exported and not "
            "read: give the directory that was exported"
        )
    if not files and (inner := _first_below(directory, names, "metadata.jsonl")):
        raise UserError(
            f"'{directory}' is an image folder of `datasets`: {shown(inner)} names its images; `phi3v-data import "
            f"imagefolder {directory} --out_dir OUT` converts it"
        )
    if foreign:
        name, format_name = foreign[0]
        said = f"in the format {format_name}" if format_name else "of another tool"
        source = directory if len(files) > 1 else directory / name
        command = f"phi3v-data import {format_name or 'auto'} {source} --out_dir OUT"
        raise UserError(
            f"'{directory.name or directory}' is not a conversations directory: {shown(name)} has rows {said}; "
            f"`{command}` converts it, `phi3v-data validate FILE` checks it"
        )


def _first_below(directory: Path, names: list[str], file: str) -> str:
    """The first file of a name in one of the folders of a directory; empty if there is none."""
    inner = (f"{name}/{file}" for name in names)
    return next((path for path in inner if (directory / path).is_file()), "")
