"""`phi3v-train recipes`."""

import json
from typing import Annotated, Any

import typer

from phi3v_data.cli.base import command_info


@command_info(examples=["phi3v-train recipes", "phi3v-train recipes docvqa-lora-bf16", "phi3v-train recipes --json"])
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show one recipe's settings.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """List published settings with their results.

    The results are those of the public fine-tuning sample on its authors' machines: quoted, not measured with this
    code.
    """
    from phi3v_train.recipes import load_recipe, recipe_names

    chosen = [load_recipe(each) for each in ([name] if name else recipe_names())]
    if json_output:
        documents = [recipe.model_dump(mode="json") for recipe in chosen]
        print(json.dumps(documents[0] if name else documents, ensure_ascii=False, indent=2))
    elif name:
        show_one(chosen[0])
    else:
        show_table(chosen)


def show_one(recipe: Any) -> None:
    """One recipe's settings, as a config file may contain them."""
    print(f"# {recipe.task}: {recipe.description}")
    if recipe.published:
        print(f"# published: {recipe.published.metric} {recipe.published.value:g} ({recipe.published.source})")
    for key, value in recipe.settings.items():
        print(f"{key}: {json.dumps(value)}")


def show_table(chosen: list[Any]) -> None:
    """All recipes, one per line."""
    from rich.table import Table

    from phi3v_data.console import make_console

    table = Table(box=None, pad_edge=False)
    for column in ("recipe", "task", "what", "published*"):
        table.add_column(column, no_wrap=column == "recipe")
    for recipe in chosen:
        result = recipe.published
        figure = f"{result.metric} {result.value:g}" if result else ""
        table.add_row(recipe.name, recipe.task, recipe.description, figure)
    console = make_console()
    console.print(table)
    console.print("* by the Phi-3.5-vision sample on its authors' machines; not measured with this code")
