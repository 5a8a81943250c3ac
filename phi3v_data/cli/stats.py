"""`phi3v-data stats`: statistics of a set."""

from pathlib import Path
from typing import Annotated

import typer

from phi3v_data.choices import Level
from phi3v_data.cli.base import Quiet, command_info
from phi3v_data.cli.sets import (
    EngineChoice,
    EngineOption,
    LongestEdge,
    MaxPixels,
    MinPixels,
    Model,
    NumCrops,
    RayAddress,
    RayResources,
    Workers,
    given,
)


@command_info(
    examples=["phi3v-data stats DIR", "phi3v-data stats DIR --level quick", "phi3v-data stats DIR --json | jq .splits"],
    interrupted="DIR is unchanged; run the same command again.",
)
def stats(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="A conversations directory, or an export in shards, also s3://BUCKET/PREFIX."
        ),
    ],
    level: Annotated[
        Level, typer.Option(help="full: decode every image and find duplicates; quick: read headers only.")
    ] = Level.full,
    num_crops: NumCrops = None,
    max_pixels: MaxPixels = None,
    min_pixels: MinPixels = None,
    longest_edge: LongestEdge = None,
    model: Model = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    workers: Workers = None,
    engine: EngineOption = EngineChoice.local,
    ray_address: RayAddress = None,
    ray_resources: RayResources = None,
    quiet: Quiet = False,
) -> None:
    """Count the contents of a directory: splits, label balance, text lengths, image sizes, tokens, duplicates."""
    from json import dumps

    from phi3v_data.console import make_console, progress_bar
    from phi3v_data.report.numbers import print_stats
    from phi3v_data.sets.stats import set_stats

    with progress_bar(quiet=quiet, units={"rows": "bytes"}) as progress:
        found = set_stats(
            directory,
            level=level.value,
            num_crops=num_crops,
            image_options=given(max_pixels=max_pixels, min_pixels=min_pixels, longest_edge=longest_edge),
            model=model,
            workers=workers,
            engine=engine.value,
            ray_address=ray_address,
            ray_resources=ray_resources,
            progress=progress,
        )
    if json:
        print(dumps(found, ensure_ascii=False, indent=2))
    else:
        print_stats(found, make_console())
