"""Refuses a path at which there is nothing, before it is taken for a dataset on the Hub."""

import os
from pathlib import Path

from phi3v_data.errors import NotFoundError
from phi3v_data.sources.source import HUB_ID, SPREADSHEETS
from phi3v_data.suffixes import ARCHIVE_SUFFIXES, TABLE_SUFFIXES

_DATA_SUFFIXES = (*TABLE_SUFFIXES, *ARCHIVE_SUFFIXES, *SPREADSHEETS, ".parquet", ".gz")


def check_missing(spec: str, out_dir: Path) -> None:
    """Refuse a path at which there is nothing, where it would be taken for the id of a Hub dataset.

    Raises:
        NotFoundError: it has the extension of a file of data, or begins with a folder that is there and was not made
            for `out_dir`.
    """
    if not HUB_ID.fullmatch(spec) or os.path.lexists(spec):
        return
    folder = spec.partition("/")[0]
    if spec.lower().endswith(_DATA_SUFFIXES):
        why = "no such file"
    elif os.path.isdir(folder) and not out_dir.is_relative_to(os.path.abspath(folder)):
        why = f"no such file or folder in {folder}"
    else:
        return
    raise NotFoundError(f"'{spec}': {why}; if a dataset on the Hub is meant, give hf://datasets/{spec}")
