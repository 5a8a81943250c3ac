"""`phi3v-data converters`: what can be converted, and with which options."""

import json
from typing import Annotated, Any

import typer

from phi3v_data.cli.base import command_info


@command_info(
    examples=["phi3v-data converters", "phi3v-data converters --converter my_docs.py", "phi3v-data converters --json"]
)
def converters(
    converter: Annotated[
        list[str] | None, typer.Option(metavar="FILE.py", help="List the converters of this file, too.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """List the converters: built in, installed by other packages, and those of files named here."""
    from phi3v_data.cli.console import make_console
    from phi3v_data.cli.options import describe_fields
    from phi3v_data.converters.registry import all_converters

    found = all_converters(converter or ())
    if json_output:
        rows: list[dict[str, Any]] = [
            {
                "name": each.name,
                "origin": each.origin,
                "summary": each.summary,
                "version": each.cls.version if each.cls else "",
                "hub_id": each.cls.hub_id if each.cls else "",
                "problem": each.problem,
                "options": describe_fields(each.cls.Options) if each.cls else {},
            }
            for each in found
        ]
        print(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    console = make_console()
    for each in found:
        console.print(f"[bold]{each.name}[/bold]  {each.summary} ({each.origin})")
        if each.problem:
            console.print(f"  cannot be used: {each.problem}", markup=False)
        for name, field in describe_fields(each.cls.Options).items() if each.cls else ():
            default = "required" if field["required"] else f"default {field['default']!r}"
            console.print(f"  --{name} {field['type']}  {field['help']} ({default})", markup=False)
