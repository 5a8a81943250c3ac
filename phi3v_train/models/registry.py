"""Model families by name, by a `config.json` and by a loaded model.

Built-in families are found by being there: every folder `models/NAME/` with a `family.py` that has `FAMILIES`. Those of
other packages come from the entry point group `phi3v_train.families`: the entry's name is the family's name, its object
a `ModelFamily`. A family is imported when it is asked for, and imports torch when a model is loaded. One that has the
name of a built-in family is ignored with a note, and one that several packages provide is refused.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.messages import join_words, shown
from phi3v_data.tokens.family import TokenFamily
from phi3v_data.tokens.plug_in import (
    EntryPoints,
    described,
    entry_points_by_name,
    ignored,
    problem_of,
    the_only,
)
from phi3v_data.tokens.registry import DEFAULT
from phi3v_data.user_code import load_object, loading
from phi3v_train.models.family import ModelFamily, ModuleNames
from phi3v_train.models.renderer import Renderer

GROUP = "phi3v_train.families"

OTHER = "other"
"""Family of models that no other one reads."""

MODULE = "family.py"
"""File of a folder under `models/` that defines its families."""


@cache
def built_in() -> Mapping[str, ModelFamily]:
    """Families of this package by name."""
    folders = sorted(path.parent.name for path in Path(__file__).parent.glob(f"*/{MODULE}"))
    modules = [import_module(f"{__package__}.{folder}.{Path(MODULE).stem}") for folder in folders]
    families: list[ModelFamily] = [family for module in modules for family in module.FAMILIES]
    return {family.name: family for family in sorted(families, key=lambda family: family.name != DEFAULT)}


@cache
def installed() -> Mapping[str, EntryPoints]:
    """Entry points of other packages by name, not yet loaded; those with the name of a built-in family too."""
    return entry_points_by_name(GROUP)


def family_names() -> list[str]:
    """Names of all families, built in and installed."""
    return [*built_in(), *(name for name in installed() if name not in built_in())]


def ignored_plug_in(name: str) -> str:
    """The sentence about a plug-in that has the name of this built-in family; empty if there is none."""
    return ignored(installed()[name]) if name in built_in() and name in installed() else ""


def get_family(name: str = DEFAULT) -> ModelFamily:
    """The family of this name.

    Raises:
        NotFoundError: there is none.
        UserError: it cannot be loaded, or several packages provide it.
    """
    if name in built_in():
        return built_in()[name]
    if name in installed():
        return load(the_only(installed()[name]))
    raise NotFoundError(f"no model family {shown(name, 80)} can be trained; there are {join_words(family_names(), 12)}")


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
        known += family.tokens.model_types
    if isinstance(wanted, str) and is_known(wanted):
        return get_family(OTHER)
    named = shown(wanted, 40) if isinstance(wanted, str) else repr(wanted)[:40]
    if problems:
        raise UserError(f"{path}: model_type is {named}, and {problems[0]}")
    raise UserError(f"{path}: model_type is {named}; those that can be trained are {join_words(known, 12)}")


def is_known(model_type: str) -> bool:
    """Whether transformers has an image-text-to-text model of this type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def family_of_model(model: Any) -> ModelFamily:
    """The family of a loaded model."""
    return family_of_config({"model_type": model.config.model_type}, type(model).__name__)


def every_family(problems: list[str]) -> Iterator[ModelFamily]:
    """All families, loaded one by one; a sentence about each that cannot be is added to `problems`."""
    for name in family_names():
        try:
            yield get_family(name)
        except UserError as error:
            problems.append(str(error))


def make_renderer(family: ModelFamily, processor: Any) -> Renderer:
    """The encoder of conversations with a processor of this family.

    Raises:
        UserError: the family returns anything else.
    """
    renderer: object = family.renderer(processor)
    if not isinstance(renderer, Renderer):
        points = () if family.name in built_in() else installed().get(family.name, ())
        what = described(points) if points else f"the model family {family.name}"
        raise UserError(f"{what}: renderer must return a Renderer object, not {type(renderer).__name__}")
    return renderer


@cache
def load(point: EntryPoint) -> ModelFamily:
    """The family that an entry point names.

    Raises:
        UserError: its module fails, or the object is not a family of that name, or it lacks something.
    """
    what = described((point,))
    family = load_object(point, what)
    if not isinstance(family, ModelFamily):
        raise UserError(f"{what}: {point.value} must be a ModelFamily object, not {type(family).__name__}")
    name = getattr(family, "name", None)
    if name != point.name:
        raise UserError(f"{what} is named {shown(name, 40)} in {point.value}: the names must be equal")
    if problem := _problem_of(family):
        raise UserError(f"{what}: {problem}")
    return family


def _problem_of(family: ModelFamily) -> str:
    """The reason why a family of another package cannot be used, to end a sentence with; empty if there is none."""
    for field, kind in (("title", str), ("modules", ModuleNames), ("needed_files", Mapping)):
        if not isinstance(getattr(family, field, None), kind):
            return f"{type(family).__name__} must have {field}, a {kind.__name__}"
    try:
        with loading("its tokens"):
            tokens: object = family.tokens
    except UserError as error:
        return str(error)
    if not isinstance(tokens, TokenFamily):
        return f"its tokens must be a TokenFamily object, not {type(tokens).__name__}"
    if tokens.name != family.name:
        return f"its tokens are named {shown(tokens.name, 40)}: the names must be equal"
    problem = problem_of(tokens)
    return f"its tokens: {problem}" if problem else ""
