"""`phi3v-data validate`: every check on a conversations directory or a file of another tool: text, JSON or a page."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

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
    num_workers,
)
from phi3v_data.errors import GOOD, PROBLEMS, NotFoundError, UserError
from phi3v_data.remote.address import is_remote


@command_info(
    examples=[
        "phi3v-data validate demo_out/ucf101",
        "phi3v-data validate DIR --level quick --max_tokens 4096",
        "phi3v-data validate DIR --model MODEL_DIR",
        "phi3v-data validate DIR --html report.html",
        "phi3v-data validate DIR --json | jq .summary.problems",
        "phi3v-data validate data.json --images_root IMAGES",
        "phi3v-data validate data.jsonl --format openai --for azure",
        "phi3v-data validate data.jsonl --max_tokens 4096 --model qwen2_5_vl",
    ],
    interrupted="DIR is unchanged; run the same command again.",
)
def validate(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A conversations directory, complete or bare; an export in shards, also s3://BUCKET/PREFIX (gs://, "
            "hf://); or a file of another tool: JSON, JSON Lines, parquet.",
        ),
    ],
    row_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="Format of FILE: llava, sharegpt, swift, trl, openai, qwen, axolotl, hub, imagefolder, webdataset, or "
            "FILE.py:NAME for one of your own. Default: a guess, if plain.",
        ),
    ] = None,
    images_root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder that image paths of FILE start in. Default: its own.")
    ] = None,
    consumer: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="TOOL",
            help="Check against this reader: llava, qwen, llama-factory, ms-swift, trl, axolotl, openai, azure, "
            "together or fireworks. Default: that of the format.",
        ),
    ] = None,
    level: Annotated[
        Level, typer.Option(help="quick: rows, and images by name and header; full: every image decoded as well.")
    ] = Level.full,
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
    workers: Workers = None,
    engine: EngineOption = EngineChoice.local,
    ray_address: RayAddress = None,
    ray_resources: RayResources = None,
    max_problems: Annotated[
        int, typer.Option(min=1, metavar="N", help="Findings of one code that are listed; all are counted.")
    ] = 1000,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Check everything again, whatever an earlier run noted in DIR/.phi3v.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Check a conversations directory, or a file of another tool where it is, and report every problem in it.

    Exits with 0 when it is valid, with 1 when there are errors (with --strict, warnings too), and with 2 when it could
    not be checked. --model decides image tokens and special strings, --tokenizer the count of text tokens; both must
    be of one model family. What each code means: phi3v-data explain CODE; what each tool does to a bad row:
    docs/formats.md.
    """
    from phi3v_data.console import make_console, progress_bar

    options: dict[str, Any] = {
        "level": level.value,
        "model": model,
        "strict": strict,
        "workers": workers,
        "max_problems": max_problems,
    }
    image_options = given(max_pixels=max_pixels, min_pixels=min_pixels, longest_edge=longest_edge)
    is_file = path.is_file()
    if is_file:
        from phi3v_data.lint.lengths import LengthSettings

        on_ray = None if engine == EngineChoice.local else engine
        not_of_files = {"fresh": fresh or None, "engine": on_ray, "ray_address": ray_address}
        refuse_options({**not_of_files, "ray_resources": ray_resources}, f"a file: {path} is one")
        options |= {
            "workers": num_workers(workers),
            "format": row_format,
            "consumer": consumer,
            "images_root": images_root,
        }
        options["lengths"] = LengthSettings(max_tokens, num_crops, image_options, tokenizer)
    else:
        if not os.path.lexists(path) and not is_remote(path):
            raise NotFoundError(f"{path}: no such file or directory")
        if os.path.lexists(path) and not path.is_dir():
            raise UserError(f"{path}: is neither a file nor a folder; give a conversations directory or a file of rows")
        refuse_options({"format": row_format, "images_root": images_root}, f"a directory: {path} is not a file")
        options |= {"num_crops": num_crops, "image_options": image_options, "max_tokens": max_tokens}
        options |= {"tokenizer": tokenizer, "fresh": fresh}
        options |= {"engine": engine.value, "ray_address": ray_address, "ray_resources": ray_resources}
    if html is not None:
        from phi3v_data.report.frame import check_target

        check_target(html, path)
    with progress_bar(quiet=quiet, units={"rows": "bytes"}) as progress:
        if is_file:
            from phi3v_data.lint.runner import lint_file

            report = lint_file(path, progress=progress, **options)
        else:
            from phi3v_data.validate import validate as run_checks

            report = run_checks(path, progress=progress, **options)
            if consumer is not None:
                from phi3v_data.lint.directory import add_consumer

                report = add_consumer(report, path, consumer, strict=strict, max_problems=max_problems)
        if html is not None:
            from phi3v_data.report.html import write_html

            write_html(report, path, html, progress=progress)
    if is_file and not quiet:
        print(described(report.stats), file=sys.stderr)
    elif report.problems and not quiet:
        from phi3v_data.shards.view import data_directory

        if (view := data_directory(path)) != path:
            print(f"note: files and lines are those of {view}, which has the rows of {path}", file=sys.stderr)
    if json:
        print(report.model_dump_json(indent=2))
    else:
        from phi3v_data.report.console import print_report

        print_report(report, make_console())
    if html is not None and not quiet:
        print(f"HTML report: {html}", file=sys.stderr)
    raise typer.Exit(GOOD if report.ok else PROBLEMS)


def refuse_options(options: Mapping[str, object], words: str) -> None:
    """Raise UserError if any of these is given; `words` end the sentence."""
    given_ones = [f"--{name}" for name, value in options.items() if value is not None]
    if given_ones:
        raise UserError(f"{', '.join(given_ones)} cannot be used with {words}")


def described(stats: Mapping[str, Any]) -> str:
    """The line on stderr that says how a file was read."""
    reason = f" ({stats['format_reason']})" if stats["format_reason"] else ""
    tool = f", checked for {stats['consumer']}" if stats["consumer"] != "any" else ""
    return f"format {stats['format']}{reason}{tool}; images are in {stats['images_root']}"
