"""`phi3v-data merge`: several sets as one."""

from pathlib import Path
from typing import Annotated

import typer

from phi3v_data.choices import ImageMode
from phi3v_data.cli.base import Quiet, command_info
from phi3v_data.cli.sets import Images, Overwrite, Store, StoreChoice, finish
from phi3v_data.errors import UserError


@command_info(
    examples=["phi3v-data merge A B OUT", "phi3v-data merge A B C OUT --name all --images copy"],
    interrupted="The sets are unchanged; the same command starts over.",
)
def merge(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR... OUT", help="The sets to join, and the directory for the new one.")
    ],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the new set. Default: the names of the sets joined by -.")
    ] = "",
    images: Images = ImageMode.link,
    store: Store = StoreChoice.files,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Join sets into one.

    Ids are kept if they are unique; otherwise the name of the set is put in front. An image whose path is used by an
    earlier set for other content is moved to a folder named after its set. Splits with the same name are joined. What
    had to change or does not agree (task, metrics, num_crops) is reported, and samples that one set has in train and
    another one in test.
    """
    from phi3v_data.console import progress_bar
    from phi3v_data.sets.merge import merge_sets

    *sources, out_dir = directories
    if not sources:
        raise UserError("merge needs at least two folders: the sets to read, then OUT, the folder of the new set")
    with progress_bar(quiet=quiet, units={"rows": "bytes"}) as progress:
        result = merge_sets(
            sources,
            out_dir,
            name=name,
            images=images,
            store=store.value,
            overwrite=overwrite,
            progress=progress,
        )
    finish(out_dir, result, quiet=quiet)
