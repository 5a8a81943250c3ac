"""The card of an export for the Hub, and the names of its splits there."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from phi3v_data.dataset import Dataset
from phi3v_data.errors import UserError
from phi3v_data.files import write_text
from phi3v_data.sets.card import CARD, make_card


def split_name(split: str) -> str:
    """The name of a split on the Hub, which allows word characters and dots only."""
    return re.sub(r"[^\w.]", "_", split)


def check_split_names(dataset: Dataset) -> None:
    """Refuse two splits with the same name on the Hub.

    Raises:
        UserError: naming them.
    """
    known: dict[str, str] = {}
    for split in dataset:
        name = split_name(split)
        if name in known:
            raise UserError(
                f"{dataset.directory}: the splits {known[name]} and {split} would both be called {name} on the Hub; "
                "rename one"
            )
        known[name] = split


def write_export_card(stage: Path, dataset: Dataset, files: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Write README.md with the files of each split, so that `load_dataset` finds them; returns notes."""
    data_files = {split_name(split): tuple(paths) for split, paths in files.items() if paths}
    write_text(stage / CARD, make_card(dataset.directory, num_samples=0, data_files=data_files))
    empty = [split for split, paths in files.items() if not paths]
    return (f"without rows, and left out: {', '.join(empty)}",) if empty else ()
