"""`phi3v-data merge`: several sets as one."""

from pathlib import Path
from typing import Annotated

import typer

from phi3v_data.cli.base import Quiet, command_info
from phi3v_data.cli.sets import Images, ImagesName, Overwrite, finish
from phi3v_data.errors import UserError


@command_info(
    examples=["phi3v-data merge A B OUT", "phi3v-data merge A B C OUT --name all --images copy"],
    interrupted="The sets are as they were; the same command starts over.",
)
def merge(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR... OUT", help="The sets to join, and where the new one goes.")
    ],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the new set; else the names of the sets, joined by -.")
    ] = "",
    images: Images = ImagesName.link,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Join sets into one.

    Ids stay where they are unique; where not, such rows get their set's name in front. A picture whose name an earlier
    set has for other content moves to a folder named after its set. Splits of one name are joined. Whatever had to
    change or does not agree (task, metrics, num_crops) is said.
    """
    from phi3v_data.cli.console import progress_bar
    from phi3v_data.sets.merge import merge_sets
    from phi3v_data.sets.writing import ImageMode

    *sources, out_dir = directories
    if not sources:
        raise UserError("merge needs at least two folders: those to read, then OUT, where the new set goes")
    with progress_bar(quiet=quiet, units={"rows": "bytes"}) as progress:
        result = merge_sets(
            sources, out_dir, name=name, images=ImageMode(images.value), overwrite=overwrite, progress=progress
        )
    finish(out_dir, result, quiet=quiet)
