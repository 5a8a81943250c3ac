"""`phi3v-train models`."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phi3v_data.cli.base import command_info

if TYPE_CHECKING:
    from phi3v_train.models.family import ModelFamily


@command_info(examples=["phi3v-train models", "phi3v-train models --json"])
def models(
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """List the model families that can be trained, and what each was verified with.

    `tiny:NAME` is a small random model of a family, to try every command without a download. Another model that
    transformers loads as an image-text-to-text model is trained if its processor and chat template pass the checks.
    """
    from phi3v_train.models.registry import OTHER, family_names, get_family
    from phi3v_train.models.verified import VERIFIED_WITH

    families = [get_family(name) for name in family_names() if name != OTHER]
    if json_output:
        rows = [facts(family) for family in families]
        print(json.dumps({"verified_with": VERIFIED_WITH, "families": rows}, ensure_ascii=False, indent=2))
        return
    show_table(families)
    versions = ", ".join(f"{name} {version}" for name, version in VERIFIED_WITH.items())
    print(f"\nVerified with {versions}; docs/models.md says what was compared.")


def facts(family: "ModelFamily") -> dict[str, Any]:
    """A family for JSON."""
    tokens = family.tokens
    options = [tokens.budget_option] if tokens.max_budget is not None else []
    return {
        "name": family.name,
        "models": family.title,
        "model_types": list(tokens.model_types),
        "image_options": [*options, *tokens.other_options],
        "packing": not family.no_packing,
        "template": family.template_origin,
    }


def show_table(families: "list[ModelFamily]") -> None:
    """All families, one per line."""
    from rich.table import Table

    from phi3v_data.console import make_console

    table = Table(box=None, pad_edge=False)
    for column in ("family", "models", "image options", "packing", "chat template compared with"):
        table.add_column(column, no_wrap=column == "family")
    for family in families:
        row = facts(family)
        options = ", ".join(f"--{name}" for name in row["image_options"]) or "none"
        packing = "yes" if row["packing"] else "no"
        table.add_row(row["name"], row["models"], options, packing, row["template"] or "not compared")
    make_console().print(table)
