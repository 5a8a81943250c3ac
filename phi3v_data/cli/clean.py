"""`phi3v-data clean`: a sound copy of a set."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phi3v_data.cli.base import Quiet, command_info
from phi3v_data.cli.sets import Images, ImagesName, Overwrite, Workers, finish

if TYPE_CHECKING:
    from phi3v_data.sets.writing import SetResult


@command_info(
    examples=[
        "phi3v-data clean DIR OUT",
        "phi3v-data clean DIR OUT --fix",
        "phi3v-data clean DIR OUT --drop duplicate-sample --drop leak-near-image",
    ],
    interrupted="DIR is as it was; the same command starts over.",
)
def clean(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A conversations directory.")],
    out_dir: Annotated[Path, typer.Argument(metavar="OUT", help="Where the sound copy goes.")],
    fix: Annotated[
        bool,
        typer.Option(
            "--fix", help="Mend what needs no guessing: EXIF turns, letter case of paths, endings of files, CMYK."
        ),
    ] = False,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="CODE", help="Leave out the rows of this warning, too; may be repeated.")
    ] = None,
    num_crops: Annotated[
        int | None, typer.Option(min=1, max=16, metavar="N", help="Tile budget; else dataset.json, else 16.")
    ] = None,
    images: Images = ImagesName.link,
    workers: Workers = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Copy what is sound of a directory, and list what was left out and why.

    OUT validates without an error. OUT/removed.jsonl names each row that was left out by file and line, with the code
    and the words of the validator. DIR is not changed.
    """
    from phi3v_data.cli.console import progress_bar
    from phi3v_data.cli.sets import num_workers
    from phi3v_data.sets.clean import clean_set
    from phi3v_data.sets.writing import ImageMode

    with progress_bar(quiet=quiet, units={"rows": "bytes"}) as progress:
        result = clean_set(
            directory,
            out_dir,
            fix=fix,
            drop=drop or (),
            num_crops=num_crops,
            images=ImageMode(images.value),
            overwrite=overwrite,
            workers=num_workers(workers),
            progress=progress,
        )
    finish(out_dir, result, quiet=quiet, more=describe(out_dir, result))


def describe(out_dir: Path, result: "SetResult") -> str:
    """What was left out and what was mended, for the last line."""
    from phi3v_data.sets.clean import count_removed

    text = ""
    if removed := count_removed(out_dir):
        reasons = ", ".join(f"{count:,} {code}" for code, count in removed.items())
        text += f", {sum(removed.values()):,} left out ({reasons}; see {out_dir}/removed.jsonl)"
    mended = {code.removeprefix("mended-"): count for code, count in result.manifest.notes.items() if "mended-" in code}
    if mended:
        text += f", mended: {', '.join(f'{count:,} {code}' for code, count in mended.items())}"
    return text
