"""`phi3v-data import FORMAT SRC`: rows of another tool's chat format become a conversations directory."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from phi3v_data.cli.base import Quiet, command_info, make_command
from phi3v_data.cli.convert import SLICE_HELP

EXAMPLES = [
    "phi3v-data import auto data.json --out_dir out",
    "phi3v-data import llava llava_v1_5_mix.json --images_root images --out_dir out",
    "phi3v-data import sharegpt LLaMA-Factory/data --data mllm_demo --out_dir out",
    "phi3v-data import openai train.jsonl --out_dir out --fetch --merge_turns",
    "phi3v-data import webdataset shards --out_dir out",
    "phi3v-data import my_format.py:MyFormat rows.jsonl --out_dir out",
]


def import_rows(
    format_name: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="llava, sharegpt, swift, openai, trl, qwen, axolotl, hub, imagefolder, webdataset, auto, or a format "
            "of your own: FILE.py:NAME.",
        ),
    ],
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="Data file, a folder, archive, s3://BUCKET/PREFIX (gs://, hf://) or Hub id with one, or WebDataset "
            "shards.",
        ),
    ],
    out_dir: Annotated[str, typer.Option(metavar="DIR", help="Directory for the dataset.")],
    allow_rejects: Annotated[int, typer.Option(metavar="N", help="Exit with 0 if at most N rows were rejected.")] = 0,
    slice: Annotated[str | None, typer.Option(metavar="K/N", help=SLICE_HELP)] = None,  # noqa: A002
    quiet: Quiet = False,
    *,
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> None:
    """Turn a chat file of another tool into a conversations directory.

    Reads JSON, JSON Lines, gzip of both, and parquet; images are paths, data URLs, bytes, or URLs with --fetch. A row
    that a sample cannot hold is rejected. The same command resumes an interrupted import and gives the same bytes.

    Exit code 1: more rows than --allow_rejects were rejected; DIR/rejects.jsonl says which and why.
    """
    from phi3v_data.cli.convert import report, report_slice
    from phi3v_data.console import progress_bar
    from phi3v_data.importing import import_rows as run_import
    from phi3v_data.importing import import_slice

    with progress_bar(quiet=quiet) as progress:
        if slice is not None:
            part = import_slice(format_name, source, out_dir, slice, options=options, progress=progress, **settings)
        else:
            result = run_import(format_name, source, out_dir, options=options, progress=progress, **settings)
    if slice is not None:
        report_slice(out_dir, part, allow_rejects)
    report(out_dir, result, allow_rejects)


class ImportCommand:
    """Stands for `import` until it is used: its options come from modules that are slow to import."""

    name = "import"

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse with the real command."""
        from phi3v_data.cli.convert import INTERRUPTED, with_settings
        from phi3v_data.cli.options import with_options
        from phi3v_data.formats.import_options import ImportOptions

        function = with_settings(import_rows, after="out_dir", without=("unlabelled",))
        built = with_options(function, ImportOptions, "Options of import", "import")
        marked = command_info(examples=EXAMPLES, interrupted=INTERRUPTED)(built)
        return make_command(marked, name="import").make_context(info_name, args, parent=parent, **extra)


command = ImportCommand()
