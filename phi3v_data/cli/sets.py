"""Shared options and the last line of the commands that write a set."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from phi3v_data.choices import ImageMode
from phi3v_data.engine.base import ADDRESS_HELP, ENGINE_HELP, RESOURCES_HELP
from phi3v_data.engine.cores import num_cores
from phi3v_data.messages import counted

if TYPE_CHECKING:
    from phi3v_data.sets.writing import SetResult


class StoreChoice(StrEnum):
    """Whether images are files of their own, or are in tar shards."""

    files = "files"
    shards = "shards"


class EngineChoice(StrEnum):
    """Where work runs."""

    local = "local"
    ray = "ray"


Images: TypeAlias = Annotated[
    ImageMode, typer.Option(help="Hard-link the images of DIR (copy them if links are not possible), or copy them.")
]
Store: TypeAlias = Annotated[
    StoreChoice, typer.Option(help="One file per image, or tar shards, for millions of images.")
]
Overwrite: TypeAlias = Annotated[
    bool, typer.Option("--overwrite", help="Replace the set in OUT; the old one is kept until the new one is complete.")
]
Workers: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Processes that read images. Default: one per core.")
]
EngineOption: TypeAlias = Annotated[EngineChoice, typer.Option("--engine", help=ENGINE_HELP)]
RayAddress: TypeAlias = Annotated[str | None, typer.Option(metavar="ADDRESS", help=ADDRESS_HELP)]
RayResources: TypeAlias = Annotated[str | None, typer.Option(metavar="LIST", help=RESOURCES_HELP)]
Model: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="FAMILY|DIR", help="Model family (phi3v), or a model's folder, whose tokenizer then counts text tokens."
    ),
]
NumCrops: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Tile budget for image tokens; else dataset.json, else 16."),
]
MaxPixels: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Largest area of an image, for Qwen models.")
]
MinPixels: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Smallest area of an image, for Qwen models.")
]
LongestEdge: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Longest side of an image, for Idefics3 and SmolVLM.")
]


def given(**options: int | None) -> dict[str, int]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def num_workers(workers: int | None) -> int:
    """The number of processes: as given, else the number of cores."""
    return workers or num_cores()


def finish(out_dir: Path, result: "SetResult", *, quiet: bool, more: str = "") -> None:
    """Print a summary of the new set, and its notes on stderr."""
    for note in result.notes if not quiet else ():
        typer.echo(f"note: {note}", err=True)
    print(summary(out_dir, result) + more)


def summary(out_dir: Path, result: "SetResult") -> str:
    """The last line: `OUT: 100 samples (train 80, val 20), 100 images`."""
    splits = ", ".join(f"{name} {split.rows:,}" for name, split in result.manifest.splits.items())
    images = sum(split.images for split in result.manifest.splits.values())
    head = "already complete: " if result.already_complete else ""
    return f"{out_dir}: {head}{counted(result.samples, 'sample')} ({splits}), {counted(images, 'image')}"
