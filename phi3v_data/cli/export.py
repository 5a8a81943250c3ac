"""`phi3v-data export`: a set in the format of another tool."""

from pathlib import Path
from typing import Annotated

import typer

from phi3v_data.choices import ImageMode, ImageRefs
from phi3v_data.cli.base import Quiet, command_info
from phi3v_data.cli.sets import EngineChoice, EngineOption, Images, RayAddress, RayResources, Workers
from phi3v_data.errors import PROBLEMS, UserError
from phi3v_data.messages import counted
from phi3v_data.remote.address import is_remote, spelled

CROISSANT = "croissant"


@command_info(
    examples=[
        "phi3v-data export sharegpt DIR --out lf_data",
        "phi3v-data export openai DIR --out openai_data --target azure",
        "phi3v-data export swift DIR --out swift_data --image_refs url --url_prefix https://example.com/images/",
        "phi3v-data export llava DIR --out llava_data --lossy",
        "phi3v-data export hub DIR --out hub_data",
        "phi3v-data export webdataset DIR --out shards --shard_mb 1000",
        "phi3v-data export mosaicml DIR --out mds",
        "phi3v-data export webdataset DIR --out s3://BUCKET/PREFIX",
        "phi3v-data export croissant DIR --out DIR/croissant.json",
    ],
    interrupted="Nothing was written to --out; the same command starts over.",
)
def export(
    format_name: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="llava, sharegpt, swift, openai, trl, qwen, axolotl, hub, imagefolder, webdataset, energon, "
            "mosaicml, croissant, or a format of your own: FILE.py:NAME.",
        ),
    ],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A conversations directory.")],
    out: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="Folder for the export, which appears complete or not at all, or an address, s3://BUCKET/PREFIX or "
            "gs://. If the same export is there already, nothing is done.",
        ),
    ],
    image_refs: Annotated[
        ImageRefs | None,
        typer.Option(
            help="How rows refer to images: the path of a link or copy under PATH/images, a data URL in the row, or "
            "--url_prefix and the path. Default: path; data for openai."
        ),
    ] = None,
    url_prefix: Annotated[
        str, typer.Option(metavar="URL", help="With --image_refs url: what is put before each path; also a folder.")
    ] = "",
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Write rows without what FORMAT cannot carry, and count it by reason.")
    ] = False,
    target: Annotated[
        str,
        typer.Option(
            metavar="SERVICE", help="Of openai: check the limits of openai, azure, together or fireworks, too."
        ),
    ] = "",
    images: Images = ImageMode.link,
    layout: Annotated[
        str,
        typer.Option(
            metavar="LAYOUT",
            help="Of webdataset: energon (one member per image) or uniform (images inside the JSON, for `datasets`).",
        ),
    ] = "",
    shard_mb: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Largest size of a shard, in MB. Default: 450; 67 for mosaicml."),
    ] = None,
    workers: Workers = None,
    engine: EngineOption = EngineChoice.local,
    ray_address: RayAddress = None,
    ray_resources: RayResources = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an export at PATH; it is kept until the new one is complete.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Write a set in the format of another tool.

    Images keep their original bytes. What FORMAT cannot carry (a system message, an answer that is
    not trained, a text with <image> in it) stops the export before anything is written, with one sentence per reason
    and exit code 1; --lossy writes the rest. Fields that do not affect training (id, answers, group, meta) are written
    where the readers of FORMAT ignore them, else they are counted as not carried.
    """
    from phi3v_data.console import progress_bar
    from phi3v_data.exporting import ExportRequest, LossyError, export_set
    from phi3v_data.exporting.croissant import write_croissant
    from phi3v_data.exporting.losses import refusals, warned

    if format_name == CROISSANT:
        if image_refs or url_prefix or target or layout:
            raise UserError("croissant describes DIR and writes no rows: it has only --out and --overwrite")
        if is_remote(out):
            raise UserError("croissant writes one file beside DIR: give --out FILE, a file on this machine")
        rows = write_croissant(directory, out, overwrite=overwrite)
        print(f"{out}: describes {counted(rows, 'row')}")
        return
    request = ExportRequest(
        image_refs=image_refs,
        url_prefix=url_prefix,
        images=images,
        lossy=lossy,
        target=target,
        layout=layout,
        shard_bytes=None if shard_mb is None else shard_mb * 1_000_000,
    )
    try:
        with progress_bar(quiet=quiet, units={"check": "rows", "write": "rows"}) as progress:
            result = export_set(
                format_name,
                directory,
                out,
                request,
                overwrite=overwrite,
                workers=workers,
                engine=engine.value,
                ray_address=ray_address,
                ray_resources=ray_resources,
                progress=progress,
            )
    except LossyError as error:
        for sentence in refusals(error.lost, error.title):
            print(sentence)
        print(f"{spelled(out)}: nothing was written; --lossy writes the rows without what {error.title} cannot carry")
        raise typer.Exit(PROBLEMS) from None
    for sentence in () if quiet else (*warned(result), *result.notes):
        typer.echo(f"note: {sentence}", err=True)
    splits = ", ".join(f"{name} {rows:,}" for name, rows in result.rows.items())
    head = "already complete: " if result.already_complete else ""
    counts = f"{counted(sum(result.rows.values()), 'row')} ({splits}), {counted(result.images, 'image')}"
    line = f"{spelled(out)}: {head}{counts}"
    if result.lost:
        line += "; lost: " + ", ".join(f"{code} {loss.rows:,}" for code, loss in result.lost.items())
    if result.left_out:
        line += "; not carried: " + ", ".join(f"{name} {count:,}" for name, count in result.left_out.items())
    print(line)
