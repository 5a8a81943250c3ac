"""`phi3v-data store`: a set with its images as files, or in shards."""

from pathlib import Path
from typing import Annotated

import typer

from phi3v_data.cli.base import Quiet, command_info
from phi3v_data.cli.sets import Overwrite, StoreChoice, finish


@command_info(
    examples=["phi3v-data store DIR OUT --store shards", "phi3v-data store OUT BACK --store files"],
    interrupted="DIR is unchanged; the same command starts over.",
)
def store(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A conversations directory.")],
    out_dir: Annotated[Path, typer.Argument(metavar="OUT", help="Directory for the copy.")],
    kind: Annotated[
        StoreChoice, typer.Option("--store", help="One file per image, or tar shards, for millions of images.")
    ],
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Copy a set with its images as files, or in shards.

    Rows, image bytes and everything that is said about the set stay as they are; images that no row uses are left out.
    """
    from phi3v_data.console import progress_bar
    from phi3v_data.sets.store import change_store

    with progress_bar(quiet=quiet, units={"rows": "bytes"}) as progress:
        result = change_store(directory, out_dir, kind.value, overwrite=overwrite, progress=progress)
    finish(out_dir, result, quiet=quiet)
