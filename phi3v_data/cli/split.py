"""`phi3v-data split`: divides the rows of a set into new splits."""

from pathlib import Path
from typing import Annotated

import typer

from phi3v_data.choices import ImageMode, Level, SplitBy
from phi3v_data.cli.base import Quiet, command_info
from phi3v_data.cli.sets import (
    EngineChoice,
    EngineOption,
    Images,
    Overwrite,
    RayAddress,
    RayResources,
    Store,
    StoreChoice,
    Workers,
    finish,
)


@command_info(
    examples=[
        "phi3v-data split DIR OUT --split train=0.8,val=0.1,test=0.1",
        "phi3v-data split DIR OUT --split train=0.9,val=0.1 --stratify --seed 3",
        "phi3v-data split DIR OUT --split train=0.8,test=0.2 --by image --images copy",
    ],
    interrupted="DIR is unchanged; the same command starts over.",
)
def split(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A conversations directory.")],
    out_dir: Annotated[Path, typer.Argument(metavar="OUT", help="Directory for the new set.")],
    shares: Annotated[
        str, typer.Option("--split", metavar="SHARES", help="Splits and their shares: train=0.8,val=0.1,test=0.1.")
    ],
    by: Annotated[
        SplitBy, typer.Option(help="Rows that stay together, besides those that share an image: groups, or none.")
    ] = SplitBy.group,
    stratify: Annotated[
        bool, typer.Option("--stratify", help="Give each split its share of every label (last answer).")
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed; another one gives another division.")] = 0,
    images: Images = ImageMode.link,
    store: Store = StoreChoice.files,
    level: Annotated[Level, typer.Option(help="full: compare images by pixels; quick: by paths.")] = Level.full,
    workers: Workers = None,
    engine: EngineOption = EngineChoice.local,
    ray_address: RayAddress = None,
    ray_resources: RayResources = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Divide the rows of a directory into new splits without leaks.

    The shares are met exactly if whole groups allow it: groups (or images, or ids) are taken in the order of their
    hashes, up to the quota of each split. Rows that are added later can move other rows; with `convert --split` they
    cannot. Rows that share an image, and rows without images that have the same text, stay together. Shares that would
    need a leak are refused.
    """
    from phi3v_data.console import progress_bar
    from phi3v_data.sets.split import split_set

    with progress_bar(quiet=quiet, units={"rows": "bytes"}) as progress:
        result = split_set(
            directory,
            out_dir,
            shares,
            by=by,
            stratify=stratify,
            seed=seed,
            images=images,
            store=store.value,
            pixels=level.value == "full",
            overwrite=overwrite,
            workers=workers,
            engine=engine.value,
            ray_address=ray_address,
            ray_resources=ray_resources,
            progress=progress,
        )
    finish(out_dir, result, quiet=quiet)
