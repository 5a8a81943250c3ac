"""What the commands that write a set share: their options and their last line."""

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from phi3v_data.messages import counted

if TYPE_CHECKING:
    from phi3v_data.sets.writing import SetResult


class ImagesName(StrEnum):
    """How pictures come into a new set."""

    link = "link"
    copy = "copy"


class LevelName(StrEnum):
    """How much of the pictures is read."""

    quick = "quick"
    full = "full"


class ByName(StrEnum):
    """What rows are told apart by."""

    group = "group"
    image = "image"
    id = "id"


Images: TypeAlias = Annotated[
    ImagesName, typer.Option(help="Pictures are hard links to those of DIR (copies where that cannot be), or copies.")
]
Overwrite: TypeAlias = Annotated[
    bool, typer.Option("--overwrite", help="Replace the set in OUT; it stays until the new one is complete.")
]
Workers: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Processes that read images; else one for each core.")
]


def num_workers(workers: int | None) -> int:
    """Processes to use: as given, else the machine's cores."""
    return workers or len(os.sched_getaffinity(0))


def finish(out_dir: Path, result: "SetResult", *, quiet: bool, more: str = "") -> None:
    """Print what the new set holds, and on stderr what a person should know of it."""
    for note in result.notes if not quiet else ():
        typer.echo(f"note: {note}", err=True)
    print(summary(out_dir, result) + more)


def summary(out_dir: Path, result: "SetResult") -> str:
    """The last line: `OUT: 100 samples (train 80, val 20), 100 images`."""
    splits = ", ".join(f"{name} {split.rows:,}" for name, split in result.manifest.splits.items())
    images = sum(split.images for split in result.manifest.splits.values())
    head = "already complete: " if result.already_complete else ""
    return f"{out_dir}: {head}{counted(result.samples, 'sample')} ({splits}), {counted(images, 'image')}"
