"""`phi3v-data preview`: shows rows of a set."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from phi3v_data.cli.base import Quiet, command_info
from phi3v_data.cli.sets import LongestEdge, MaxPixels, MinPixels, Model, NumCrops, Workers, given, num_workers


@command_info(
    examples=[
        "phi3v-data preview DIR",
        "phi3v-data preview DIR --split val --row 17",
        "phi3v-data preview DIR --html gallery.html",
    ]
)
def preview(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A conversations directory.")],
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an HTML page with a gallery and charts instead.")
    ] = None,
    row: Annotated[
        int | None,
        typer.Option(metavar="N", help="Index of the row, from 0; negative counts from the end. Default: 0."),
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Split of the row. Default: the first one.")] = None,
    num_crops: NumCrops = None,
    max_pixels: MaxPixels = None,
    min_pixels: MinPixels = None,
    longest_edge: LongestEdge = None,
    model: Model = None,
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Show one row in the terminal, with a description of its images, or write a page with a gallery of the set.

    The page is the same as that of `validate --html`; it needs no network and shows up to 500 samples. If the set has
    been validated, its report is used; otherwise rows and image headers are checked first.
    """
    from phi3v_data.console import progress_bar
    from phi3v_data.sets.preview import check_row_options, describe_row, find_row

    check_row_options(html, row, split)
    options = given(max_pixels=max_pixels, min_pixels=min_pixels, longest_edge=longest_edge)
    if html is None:
        found, number = find_row(directory, split=split, row=row or 0)
        for line in describe_row(found, number, num_crops=num_crops, image_options=options, model=model):
            print(line)
        return
    from phi3v_data.report.frame import check_target
    from phi3v_data.report.html import write_html
    from phi3v_data.validate import fresh_report, validate

    check_target(html, directory)
    with progress_bar(quiet=quiet, units={"rows": "bytes"}) as progress:
        report = fresh_report(directory, num_crops=num_crops, image_options=options, model=model) or validate(
            directory,
            level="quick",
            num_crops=num_crops,
            image_options=options,
            model=model,
            workers=num_workers(workers),
            progress=progress,
        )
        write_html(report, directory, html, progress=progress)
    print(html)
    if report.level == "quick" and not quiet:
        print("note: checked at level quick; `phi3v-data validate` decodes every image", file=sys.stderr)
