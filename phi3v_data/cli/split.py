"""`phi3v-data split`: the rows of a set in splits of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from phi3v_data.cli.base import Quiet, command_info
from phi3v_data.cli.sets import ByName, Images, ImagesName, LevelName, Overwrite, Workers, finish


@command_info(
    examples=[
        "phi3v-data split DIR OUT --split train=0.8,val=0.1,test=0.1",
        "phi3v-data split DIR OUT --split train=0.9,val=0.1 --stratify --seed 3",
        "phi3v-data split DIR OUT --split train=0.8,test=0.2 --by image --images copy",
    ],
    interrupted="DIR is as it was; the same command starts over.",
)
def split(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A conversations directory.")],
    out_dir: Annotated[Path, typer.Argument(metavar="OUT", help="Where the new set goes.")],
    shares: Annotated[
        str, typer.Option("--split", metavar="SHARES", help="Splits and their shares: train=0.8,val=0.1,test=0.1.")
    ],
    by: Annotated[
        ByName, typer.Option(help="What stays together, beside rows that share a picture: groups, or nothing more.")
    ] = ByName.group,
    stratify: Annotated[
        bool, typer.Option("--stratify", help="Each split gets its share of every label (last answer), too.")
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Another seed, another division.")] = 0,
    images: Images = ImagesName.link,
    level: Annotated[
        LevelName, typer.Option(help="full: pictures are the same by their pixels; quick: by their paths.")
    ] = LevelName.full,
    workers: Workers = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Divide the rows of a directory into new splits that leak nothing.

    The shares are met exactly where whole groups allow it: groups (or images, or ids) are taken in the order of their
    hashes, up to each split's quota. Rows that are added later can move others; `convert --split` never moves one. Rows
    that share an image, and rows without images that share all their text, stay together. Shares that would need a leak
    are refused.
    """
    from phi3v_data.cli.console import progress_bar
    from phi3v_data.cli.sets import num_workers
    from phi3v_data.sets.split import By, split_set
    from phi3v_data.sets.writing import ImageMode

    with progress_bar(quiet=quiet, units={"rows": "bytes"}) as progress:
        result = split_set(
            directory,
            out_dir,
            shares,
            by=By(by.value),
            stratify=stratify,
            seed=seed,
            images=ImageMode(images.value),
            pixels=level.value == "full",
            overwrite=overwrite,
            workers=num_workers(workers),
            progress=progress,
        )
    finish(out_dir, result, quiet=quiet)
