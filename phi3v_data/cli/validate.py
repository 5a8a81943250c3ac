"""`phi3v-data validate`: every check on a conversations directory, as text, JSON or a page."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from phi3v_data.cli.base import Quiet, command_info
from phi3v_data.cli.sets import LongestEdge, MaxPixels, MinPixels, Model, NumCrops, given
from phi3v_data.errors import GOOD, PROBLEMS


class LevelName(StrEnum):
    """How much of the images is read."""

    quick = "quick"
    full = "full"


@command_info(
    examples=[
        "phi3v-data validate demo_out/ucf101",
        "phi3v-data validate DIR --level quick --max_tokens 4096",
        "phi3v-data validate DIR --model MODEL_DIR",
        "phi3v-data validate DIR --html report.html",
        "phi3v-data validate DIR --json | jq .summary.problems",
    ],
    interrupted="DIR is unchanged; run the same command again.",
)
def validate(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A conversations directory, complete or bare.")],
    level: Annotated[
        LevelName, typer.Option(help="quick: rows, and images by name and header; full: every image decoded as well.")
    ] = LevelName.full,
    num_crops: NumCrops = None,
    max_pixels: MaxPixels = None,
    min_pixels: MinPixels = None,
    longest_edge: LongestEdge = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Report samples that are longer than this.")
    ] = None,
    model: Model = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with tokenizer.json to count text tokens; else they are estimated."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON document.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with charts, problems and a gallery.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Processes that read images. Default: one per core."),
    ] = None,
    max_problems: Annotated[
        int, typer.Option(min=1, metavar="N", help="Findings of one code that are listed; all are counted.")
    ] = 1000,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Check everything again, whatever an earlier run noted in DIR/.phi3v.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Check a conversations directory and report every problem in it.

    Exits with 0 when it is valid, with 1 when there are errors (with --strict, warnings too), and with 2 when it could
    not be checked. --model decides image tokens and special strings, --tokenizer the count of text tokens; both must
    be of one model family. What each code means: phi3v-data explain CODE.
    """
    from phi3v_data.console import make_console, progress_bar
    from phi3v_data.validate import validate as run_checks

    if html is not None:
        from phi3v_data.report.frame import check_target
        from phi3v_data.report.html import write_html

        check_target(html, directory)
    with progress_bar(quiet=quiet, units={"rows": "bytes"}) as progress:
        report = run_checks(
            directory,
            level=level.value,
            num_crops=num_crops,
            image_options=given(max_pixels=max_pixels, min_pixels=min_pixels, longest_edge=longest_edge),
            max_tokens=max_tokens,
            model=model,
            tokenizer=tokenizer,
            strict=strict,
            workers=workers or len(os.sched_getaffinity(0)),
            max_problems=max_problems,
            progress=progress,
            fresh=fresh,
        )
        if html is not None:
            write_html(report, directory, html, progress=progress)
    if json:
        print(report.model_dump_json(indent=2))
    else:
        from phi3v_data.report.console import print_report

        print_report(report, make_console())
    if html is not None and not quiet:
        print(f"HTML report: {html}", file=sys.stderr)
    raise typer.Exit(GOOD if report.ok else PROBLEMS)
