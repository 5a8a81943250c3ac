"""`phi3v-data converters`: what can be converted, and with which options."""

import json
from shutil import get_terminal_size
from textwrap import fill
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
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the converters: built in, installed by other packages, and those of files named here."""
    from rich.markup import escape

    from phi3v_data.cli.options import describe_fields
    from phi3v_data.console import make_console
    from phi3v_data.registry import all_converters

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
        text = _wrapped(f"{each.name}  {each.summary} ({each.origin})", indent="")
        console.print(f"[bold]{text[: len(each.name)]}[/bold]{escape(text[len(each.name) :])}")
        if each.problem:
            console.print(_wrapped(f"cannot be used: {each.problem}"), markup=False)
        for name, field in describe_fields(each.cls.Options).items() if each.cls else ():
            default = "required" if field["required"] else f"default {field['default']!r}"
            console.print(_wrapped(f"--{name} {field['type']}  {field['help']} ({default})"), markup=False)


def _wrapped(text: str, indent: str = "  ") -> str:
    """A paragraph in the terminal's width, its second and later lines indented further."""
    width = max(get_terminal_size().columns, 40)
    return fill(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=f"{indent}    ",
        break_on_hyphens=False,
        break_long_words=False,
    )
