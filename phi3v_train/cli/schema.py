"""`phi3v-train schema`: the JSON Schema of each file of a run."""

from pathlib import Path
from typing import Annotated

import typer

from phi3v_data.cli.base import command_info
from phi3v_data.cli.schema import show_schemas


@command_info(examples=["phi3v-train schema metrics", "phi3v-train schema --out_dir schemas"])
def schema(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="metrics. Default: all.")] = None,
    out_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write DIR/NAME.schema.json instead of printing it.")
    ] = None,
) -> None:
    """Print the JSON Schema (draft 2020-12) of one file of a run, or of all.

    NAME is metrics, a line of metrics.jsonl; without it, one object with all schemas by name is printed.
    """
    from phi3v_train.schema_files import SCHEMAS, json_schema

    show_schemas({each: json_schema(each) for each in ([name] if name else SCHEMAS)}, name, out_dir)
