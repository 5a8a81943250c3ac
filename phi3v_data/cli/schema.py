"""`phi3v-data schema`: the JSON Schema of each file of the format."""

from pathlib import Path
from typing import Annotated

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
    from phi3v_data.files import write_text
    from phi3v_data.schema_files import SCHEMAS, json_schema, to_text

    if out_dir is None:
        found = json_schema(name) if name else {each: json_schema(each) for each in SCHEMAS}
        print(to_text(found), end="")
        return
    texts = {each: to_text(json_schema(each)) for each in ([name] if name else SCHEMAS)}
    out_dir.mkdir(parents=True, exist_ok=True)
    for each, text in texts.items():
        target = out_dir / f"{each}.schema.json"
        write_text(target, text)
        print(target)
