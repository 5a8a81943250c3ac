"""Model families by name and by a model directory's `config.json`.

Families of this package are found by being there: `FAMILIES` of every module in this folder. Those of other packages
are found by the entry point group `phi3v_data.token_families`: the entry's name is the family's name, its object a
`TokenFamily`; they are imported when they are asked for.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import iter_modules

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.messages import shown
from phi3v_data.tokens.family import TokenFamily

GROUP = "phi3v_data.token_families"

DEFAULT = "phi3v"
"""Family of a run without `--model`."""


def family_names() -> list[str]:
    """Names of all families, built in and installed."""
    return [*_built_in(), *_installed()]


def default_family() -> TokenFamily:
    """The family that is used if none is given."""
    return get_family(DEFAULT)


def get_family(name: str) -> TokenFamily:
    """The family of this name.

    Raises:
        NotFoundError: there is none.
        UserError: it cannot be loaded.
    """
    if name in _built_in():
        return _built_in()[name]
    if name in _installed():
        return _load(_installed()[name])
    raise NotFoundError(f"no model family {shown(name, 80)}; there are {_listed(family_names())}")


def find_family(wanted: str | Path) -> tuple[TokenFamily, Path | None]:
    """The family given by `--model`: a name, or a model directory, which is then returned as well.

    Raises:
        NotFoundError: neither a family nor a directory, or no family supports the directory's model.
        UserError: the family, or the directory's config.json, cannot be read.
    """
    text = str(wanted)
    if isinstance(wanted, str) and text in family_names():
        return get_family(text), None
    directory = Path(wanted)
    if not directory.is_dir():
        raise NotFoundError(
            f"{shown(text, 80)} is neither a model family nor a model directory; families: {_listed(family_names())}"
        )
    model_type = read_model_type(directory)
    if model_type is None:
        raise NotFoundError(f"{shown(text, 80)} has no config.json with a model_type; families: {_known_types()}")
    family = family_of_type(model_type)
    if family is None:
        raise NotFoundError(
            f"no model family reads the model_type {shown(model_type, 40)} of {shown(text, 80)}; "
            f"families: {_known_types()}"
        )
    return family, directory


def read_model_type(directory: Path) -> str | None:
    """`model_type` in a directory's config.json; None if there is no such file or no such key.

    Raises:
        UserError: the file cannot be read, or is not a JSON object.
    """
    path = directory / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise UserError(f"{shown(str(path), 120)}: cannot be read: {reason}") from error
    if not isinstance(config, dict):
        raise UserError(f"{shown(str(path), 120)}: must be a JSON object")
    model_type = config.get("model_type")
    return model_type if isinstance(model_type, str) else None


def family_of_type(model_type: str) -> TokenFamily | None:
    """The family that reads this `model_type`; None if none does.

    Raises:
        UserError: none does, but a family cannot be loaded.
    """
    families, problems = load_families()
    for family in families:
        if model_type in family.model_types:
            return family
    if problems:
        raise UserError(problems[0])
    return None


def load_families() -> tuple[list[TokenFamily], list[str]]:
    """All families that can be loaded, and a message about each that cannot."""
    families, problems = [], []
    for name in family_names():
        try:
            families.append(get_family(name))
        except UserError as error:
            problems.append(str(error))
    return families, problems


def family_version(name: str) -> str:
    """Name of a family, with the distribution and version of one that another package provides."""
    point = _installed().get(name)
    if point is None or point.dist is None:
        return name
    return f"{name} ({point.dist.name} {point.dist.version})"


@cache
def _built_in() -> Mapping[str, TokenFamily]:
    """Families of this package, those of other packages left out."""
    package = import_module(__package__)
    names = sorted(module.name for module in iter_modules(package.__path__))
    modules = [import_module(f"{__package__}.{name}") for name in names]
    return {family.name: family for module in modules for family in getattr(module, "FAMILIES", ())}


@cache
def _installed() -> Mapping[str, EntryPoint]:
    """Families of other packages; built-in names have precedence, and of two equal names the first is used."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.name not in _built_in():
            found.setdefault(point.name, point)
    return dict(sorted(found.items()))


def _load(point: EntryPoint) -> TokenFamily:
    owner = f"the package {point.dist.name}" if point.dist else "an installed package"
    try:
        family = point.load()
    except Exception as error:  # whatever the module raises
        reason = shown(f"{type(error).__name__}: {error}", 120)
        raise UserError(f"the model family {point.name} of {owner} cannot be loaded: {reason}") from error
    if not isinstance(family, TokenFamily):
        raise UserError(
            f"the model family {point.name} of {owner}: {shown(point.value, 80)} must be a TokenFamily object, "
            f"not {type(family).__name__}"
        )
    if family.name != point.name:
        raise UserError(
            f"the model family {point.name} of {owner} is named {shown(family.name, 40)} in {shown(point.value, 80)}: "
            "the names must be equal"
        )
    return family


def _known_types() -> str:
    families, _ = load_families()
    return _listed([f"{family.name} ({', '.join(family.model_types)})" for family in families])


def _listed(names: list[str]) -> str:
    """Names for a message, the first eight of them."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
