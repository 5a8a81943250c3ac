"""Recipes: settings that were published with a result, one YAML file each beside this module.

description: one line
settings:    names and values of `RunConfig`, flat
published:   metric, value and by whom; a figure of others, quoted, not measured with this code
"""

from functools import lru_cache
from importlib.resources import files
from typing import Any

from pydantic import Field, ValidationError

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.wrong_values import refusal
from phi3v_train.config import home_groups
from phi3v_train.setting_group import Group

FAMILY = "phi3v"
"""The model family that all of them are for."""


class Published(Group):
    """A result that somebody published for these settings."""

    metric: str
    value: float
    source: str


class Recipe(Group):
    """Settings for one task, with what is known of them."""

    name: str
    task: str = Field(description="The dataset the recipe is for.")
    description: str
    settings: dict[str, Any]
    published: Published | None = None


def recipe_names() -> list[str]:
    """Names of all recipes, sorted."""
    return sorted(
        entry.name.removesuffix(".yaml") for entry in files(__name__).iterdir() if entry.name.endswith(".yaml")
    )


@lru_cache
def load_recipe(name: str) -> Recipe:
    """Read one recipe.

    Raises:
        NotFoundError: there is no recipe of that name; the nearest is named.
    """
    names = recipe_names()
    if name not in names:
        from difflib import get_close_matches

        near = get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}" if near else "see phi3v-train recipes"
        raise NotFoundError(f"--recipe {name}: there is no recipe of that name; {hint}")
    import yaml

    values = yaml.safe_load(files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8"))
    try:
        recipe = Recipe.model_validate({"name": name, **values})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"recipe {name}: {refusal('.'.join(map(str, first['loc'])), first)}") from error
    unknown = sorted(set(recipe.settings) - set(home_groups()))
    if unknown:
        raise UserError(f"recipe {name}: {unknown[0]!r} is not a setting of a run")
    return recipe
