"""`phi3v-data schema`: the JSON Schema of each file of the format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from phi3v_data.cli.base import command_info


@command_info(
    examples=[
        "phi3v-data schema sample",
        "phi3v-data schema --out_dir schemas",
    ],
)
def schema(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="sample, manifest, reject, report or table-map. Default: all."),
    ] = None,
    out_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write DIR/NAME.schema.json instead of printing it.")
    ] = None,
) -> None:
    """Print the JSON Schema (draft 2020-12) of one file of the format, or of all files.

    NAME is sample, manifest, reject, report or table-map; without it, one object with all schemas by name is printed.
    """
    from phi3v_data.schema_files import SCHEMAS, json_schema

    show_schemas({each: json_schema(each) for each in ([name] if name else SCHEMAS)}, name, out_dir)


def show_schemas(schemas: Mapping[str, Mapping[str, Any]], name: str | None, out_dir: Path | None) -> None:
    """Print schemas by name, or the one named, or write each to `OUT_DIR/NAME.schema.json`."""
    from phi3v_data.files import write_text
    from phi3v_data.schema_files import to_text

    if out_dir is None:
        print(to_text(schemas[name] if name else schemas), end="")
        return
    out_dir.mkdir(parents=True, exist_ok=True)
    for each, schema in schemas.items():
        target = out_dir / f"{each}.schema.json"
        write_text(target, to_text(schema))
        print(target)
