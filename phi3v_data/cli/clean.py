"""`phi3v-data clean`: a valid copy of a set."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phi3v_data.choices import ImageMode
from phi3v_data.cli.base import Quiet, command_info
from phi3v_data.cli.sets import (
    EngineChoice,
    EngineOption,
    Images,
    LongestEdge,
    MaxPixels,
    MinPixels,
    NumCrops,
    Overwrite,
    RayAddress,
    RayResources,
    Store,
    StoreChoice,
    Workers,
    finish,
    given,
)

if TYPE_CHECKING:
    from phi3v_data.sets.writing import SetResult


@command_info(
    examples=[
        "phi3v-data clean DIR OUT",
        "phi3v-data clean DIR OUT --fix",
        "phi3v-data clean DIR OUT --drop duplicate-sample --drop leak-near-image",
    ],
    interrupted="DIR is unchanged; the same command starts over.",
)
def clean(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A conversations directory.")],
    out_dir: Annotated[Path, typer.Argument(metavar="OUT", help="Directory for the valid copy.")],
    fix: Annotated[
        bool,
        typer.Option(
            "--fix", help="Fix what is unambiguous: EXIF orientation, letter case of paths, file extensions, CMYK."
        ),
    ] = False,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="CODE", help="Also leave out rows with this warning; may be repeated.")
    ] = None,
    num_crops: NumCrops = None,
    max_pixels: MaxPixels = None,
    min_pixels: MinPixels = None,
    longest_edge: LongestEdge = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="FAMILY|DIR", help="Model family (phi3v), or a model's folder, for which rows are valid."),
    ] = None,
    images: Images = ImageMode.link,
    store: Store = StoreChoice.files,
    workers: Workers = None,
    engine: EngineOption = EngineChoice.local,
    ray_address: RayAddress = None,
    ray_resources: RayResources = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Copy the valid rows of a directory, and list what was left out and why.

    OUT validates without errors. OUT/removed.jsonl lists each row that was left out, by file and line, with the code
    and the message of the validator. DIR is not changed.
    """
    from phi3v_data.console import progress_bar
    from phi3v_data.sets.clean import clean_set

    with progress_bar(quiet=quiet, units={"rows": "bytes"}) as progress:
        result = clean_set(
            directory,
            out_dir,
            fix=fix,
            drop=drop or (),
            num_crops=num_crops,
            image_options=given(max_pixels=max_pixels, min_pixels=min_pixels, longest_edge=longest_edge),
            model=model,
            images=images,
            store=store.value,
            overwrite=overwrite,
            workers=workers,
            engine=engine.value,
            ray_address=ray_address,
            ray_resources=ray_resources,
            progress=progress,
        )
    finish(out_dir, result, quiet=quiet, more=describe(out_dir, result))


def describe(out_dir: Path, result: "SetResult") -> str:
    """The counts of what was left out and what was fixed, for the last line."""
    from phi3v_data.sets.clean import count_removed

    text = ""
    if removed := count_removed(out_dir):
        reasons = ", ".join(f"{count:,} {code}" for code, count in removed.items())
        text += f", {sum(removed.values()):,} left out ({reasons}; see {out_dir}/removed.jsonl)"
    fixed = {code.removeprefix("mended-"): count for code, count in result.manifest.notes.items() if "mended-" in code}
    if fixed:
        text += f", fixed: {', '.join(f'{count:,} {code}' for code, count in fixed.items())}"
    return text
