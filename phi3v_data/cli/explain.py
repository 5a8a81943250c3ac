"""`phi3v-data explain`: the catalogue of problem codes."""

from typing import Annotated

import typer

from phi3v_data.cli.base import command_info


@command_info(examples=["phi3v-data explain image-missing", "phi3v-data explain"])
def explain(
    code: Annotated[
        str | None,
        typer.Argument(metavar="CODE", help="A code printed by `validate`; without it, all codes are listed."),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the whole catalogue as a Markdown page.")] = False,
) -> None:
    """Explain a problem code: what it means, why it hurts a training run, an example, how to fix it."""
    from phi3v_data.console import make_console
    from phi3v_data.problems import PROBLEMS
    from phi3v_data.problems.outcomes import describe_outcome
    from phi3v_data.report.catalogue import find_problem, print_list, print_problem, to_markdown

    if markdown:
        print(to_markdown(), end="")
    elif code is None:
        print_list(make_console())
    elif (outcome := describe_outcome(code)) and code not in PROBLEMS:
        print(outcome)
    else:
        print_problem(find_problem(code), make_console())
        if outcome:
            print(f"\n{outcome}")
