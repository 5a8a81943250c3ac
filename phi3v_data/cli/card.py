"""`phi3v-data card`: a dataset card."""

from pathlib import Path
from typing import Annotated

import typer

from phi3v_data.cli.base import Quiet, command_info
from phi3v_data.cli.sets import Model


@command_info(examples=["phi3v-data card DIR", "phi3v-data card DIR --license cc-by-4.0 --samples 10"])
def card(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A conversations directory.")],
    samples: Annotated[int, typer.Option(min=0, metavar="N", help="Number of samples to show; 0 for none.")] = 6,
    embed: Annotated[
        bool, typer.Option("--embed", help="Embed small images in the file instead of linking to images/.")
    ] = False,
    license_id: Annotated[
        str, typer.Option("--license", metavar="ID", help="Licence, instead of the one in dataset.json: cc-by-4.0.")
    ] = "",
    model: Model = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a README.md that this command did not write.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Write DIR/README.md: the header that the Hugging Face Hub reads, counts, labels, licence, sources, samples.

    A card written by this command is replaced; any other README.md is kept, unless --overwrite is given.
    """
    from phi3v_data.sets.card import write_card

    del quiet  # there is no progress to hide; scripts may give it to every command
    path = write_card(
        directory, num_samples=samples, embed=embed, license_id=license_id, model=model, overwrite=overwrite
    )
    print(path)
