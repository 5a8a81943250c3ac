"""Model families by name, by a `config.json` and by a loaded model.

Built-in families are found by being there: every folder `models/NAME/` with a `family.py` that has `FAMILIES`. Those of
other packages come from the entry point group `phi3v_train.families`: the entry's name is the family's name, its object
a `ModelFamily`. A family is imported when it is asked for, and imports torch when a model is loaded.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.messages import shown
from phi3v_data.tokens.registry import DEFAULT
from phi3v_train.models.family import ModelFamily

GROUP = "phi3v_train.families"

MODULE = "family.py"
"""File of a folder under `models/` that defines its families."""


@cache
def built_in() -> Mapping[str, ModelFamily]:
    """Families of this package by name."""
    folders = sorted(path.parent.name for path in Path(__file__).parent.glob(f"*/{MODULE}"))
    modules = [import_module(f"{__package__}.{folder}.{Path(MODULE).stem}") for folder in folders]
    families: list[ModelFamily] = [family for module in modules for family in module.FAMILIES]
    return {family.name: family for family in families}


@cache
def installed() -> Mapping[str, EntryPoint]:
    """Families of other packages, not yet loaded; a built-in name is not overruled, of equal names the first counts."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.name not in built_in():
            found.setdefault(point.name, point)
    return dict(sorted(found.items()))


def family_names() -> list[str]:
    """Names of all families, built in and installed."""
    return [*built_in(), *installed()]


def get_family(name: str = DEFAULT) -> ModelFamily:
    """The family of this name.

    Raises:
        NotFoundError: there is none.
        UserError: it cannot be loaded.
    """
    if name in built_in():
        return built_in()[name]
    if name in installed():
        return load(installed()[name])
    raise NotFoundError(f"no model family {shown(name, 80)} can be trained; there are {', '.join(family_names()[:8])}")


def family_of_config(config: Mapping[str, Any], path: str | Path) -> ModelFamily:
    """The family of a parsed `config.json`, by its `model_type`; `path` names the file in errors.

    Raises:
        UserError: no family has it, or the one that may have it cannot be loaded.
    """
    wanted = config.get("model_type")
    problems: list[str] = []
    known: list[str] = []
    for family in every_family(problems):
        if wanted in family.tokens.model_types:
            return family
        known.append(f"{family.title} ({', '.join(family.tokens.model_types)})")
    named = shown(wanted, 40) if isinstance(wanted, str) else repr(wanted)[:40]
    if problems:
        raise UserError(f"{path}: model_type is {named}, and {problems[0]}")
    listed = ", ".join(known[:4]) + (f" and {len(known) - 4} more families" if len(known) > 4 else "")
    raise UserError(f"{path}: model_type is {named}; only {listed} can be trained")


def family_of_model(model: Any) -> ModelFamily:
    """The family of a loaded model."""
    return family_of_config({"model_type": model.config.model_type}, type(model).__name__)


def every_family(problems: list[str]) -> Iterator[ModelFamily]:
    """All families, loaded one by one; a sentence about each that cannot be is added to `problems`."""
    yield from built_in().values()
    for point in installed().values():
        try:
            yield load(point)
        except UserError as error:
            problems.append(str(error))


@cache
def load(point: EntryPoint) -> ModelFamily:
    """The family that an entry point names.

    Raises:
        UserError: its module fails, or the object is not a family of that name.
    """
    owner = f"the package {point.dist.name}" if point.dist else "an installed package"
    what = f"the model family {point.name} of {owner}"
    try:
        family = point.load()
    except Exception as error:  # whatever the module raises
        reason = shown(f"{type(error).__name__}: {error}", 120)
        raise UserError(f"{what} cannot be loaded: {reason}") from error
    if not isinstance(family, ModelFamily):
        raise UserError(f"{what}: {point.value} must be a ModelFamily object, not {type(family).__name__}")
    if family.name != point.name:
        raise UserError(f"{what} is named {shown(family.name, 40)} in {point.value}: the names must be equal")
    return family
