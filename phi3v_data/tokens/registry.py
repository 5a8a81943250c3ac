"""Model families by name and by a model directory's `config.json`.

Families of this package are found by being there: `FAMILIES` of every module in this folder. Those of other packages
are found by the entry point group `phi3v_data.token_families`: the entry's name is the family's name, its object a
`TokenFamily`; they are imported when they are asked for. One that has the name of a built-in family is ignored, and one
that several packages provide is refused; `load_families` reports both.
"""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from operator import index
from pathlib import Path
from pkgutil import iter_modules

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.files import load_json
from phi3v_data.messages import escaped, join_words, shown, shown_path
from phi3v_data.tokens.family import ImageShapeError, TokenFamily
from phi3v_data.tokens.meant import TINY, hint
from phi3v_data.tokens.model_files import ADAPTER_CONFIG, configured, other_processor, read_values
from phi3v_data.tokens.plug_in import (
    EntryPoints,
    described,
    entry_points_by_name,
    ignored,
    problem_of,
    the_only,
)
from phi3v_data.user_code import describe_error, load_object

GROUP = "phi3v_data.token_families"

DEFAULT = "phi3v"
"""Family of a run without `--model`."""

MOST_TOKENS = 2**31 - 1
"""Most tokens of an image."""


def family_names() -> list[str]:
    """Names of all families, built in and installed."""
    return [*_built_in(), *(name for name in _installed() if name not in _built_in())]


def default_family() -> TokenFamily:
    """The family that is used if none is given."""
    return get_family(DEFAULT)


def get_family(name: str) -> TokenFamily:
    """The family of this name.

    Raises:
        NotFoundError: there is none.
        UserError: it cannot be loaded, or several packages provide it.
    """
    if name in _built_in():
        return _built_in()[name]
    if name in _installed():
        return _load(_installed()[name])
    raise NotFoundError(f"no model family {shown(name, 80)}; there are {_listed()}")


def find_family(wanted: str | Path) -> tuple[TokenFamily, Path | None]:
    """The family given by `--model`: a name, or a model directory, which is then returned as well.

    Raises:
        NotFoundError: neither a family nor a directory, or no family supports the directory's model.
        UserError: the family, or the directory's config.json, cannot be read.
    """
    text = str(wanted)
    if not text:
        raise UserError(f"--model is empty: give a model family ({_listed()}) or a model directory")
    if isinstance(wanted, str) and text in family_names():
        return get_family(text), None
    directory = Path(wanted)
    if directory.is_file():
        raise NotFoundError(f"--model {shown(text, 80)} is a file: give a model family or the model's directory")
    if not directory.is_dir():
        raise NotFoundError(
            f"{shown(text, 80)} is neither a model family nor a model directory"
            f"{hint(text, family_names(), DEFAULT) or f'; families: {_listed()}'}"
        )
    if (base := adapter_base(directory)) is not None:
        return configured(base, directory), directory
    model_type = read_model_type(directory)
    if model_type is None:
        listed = _listed()
        raise NotFoundError(f"{shown(text, 80)} has no config.json with a model_type; families: {listed}")
    family = family_of_type(model_type)
    if family is None:
        raise NotFoundError(
            f"no model family reads the model_type {shown(model_type, 40)} of {shown(text, 80)}; families: {_listed()}"
        )
    return configured(family, directory), directory


def adapter_base(directory: Path) -> TokenFamily | None:
    """The family of the model under a PEFT adapter; None for any other directory.

    Raises:
        NotFoundError: that model is not on this machine, or no family reads it.
        UserError: it is not the one that the adapter was tuned on, by its processor.
    """
    named = read_values(directory / ADAPTER_CONFIG).get("base_model_name_or_path")
    if named is None or (directory / "config.json").is_file():
        return None
    base = str(named)
    start, _, name = base.partition(":")
    if start == TINY:
        return get_family(name or DEFAULT)
    model_type = read_model_type(Path(base))
    family = None if model_type is None else family_of_type(model_type)
    if family is None:
        raise NotFoundError(
            f"{shown_path(directory)} is an adapter on {shown(base, 80)}, which is not a model directory on this "
            f"machine: give its family; families: {_listed()}"
        )
    if reason := other_processor(directory, Path(base)):
        raise UserError(
            f"{shown_path(directory)}: was not tuned on the model that is now in {shown(base, 60)}: {reason}; give "
            "the family that it was tuned on"
        )
    return family


def read_model_type(directory: Path) -> str | None:
    """`model_type` in a directory's config.json; None if there is no such file or no such key.

    Raises:
        UserError: the file cannot be read, or is not a JSON object; or the value is not a string.
    """
    path = directory / "config.json"
    try:
        config = load_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise UserError(f"{shown_path(path)}: cannot be read: {reason}") from error
    if not isinstance(config, dict):
        raise UserError(f"{shown_path(path)}: must be a JSON object")
    if "model_type" not in config:
        return None
    model_type = config["model_type"]
    if not isinstance(model_type, str):
        raise UserError(f"{shown_path(path)}: model_type must be a string, not {shown(model_type, 40)}")
    return model_type


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
    """All families that can be loaded, and a message about each that cannot or is ignored."""
    families, problems = [], []
    for name in family_names():
        try:
            families.append(get_family(name))
        except UserError as error:
            problems.append(str(error))
    problems += [ignored(points) for name, points in _installed().items() if name in _built_in()]
    return families, problems


def family_version(name: str) -> str:
    """Name of a family, with the distribution and version of one that another package provides."""
    points = () if name in _built_in() else _installed().get(name, ())
    dist = points[0].dist if points else None
    return name if dist is None else f"{name} ({dist.name} {dist.version})"


def count_image_tokens(family: TokenFamily, width: int, height: int, budget: int | None) -> int:
    """`family.image_tokens`, checked where the family is another package's.

    Raises:
        ImageShapeError: the image processor cannot take an image of this shape.
        UserError: the family raises anything else, or returns no number of tokens.
    """
    points = () if family.name in _built_in() else _installed().get(family.name, ())
    if not points:
        return family.image_tokens(width, height, budget)
    where = f"{described(points)}: image_tokens of an image of {width} x {height} pixels"
    try:
        count = family.image_tokens(width, height, budget)
    except (ImageShapeError, UserError):
        raise
    except (Exception, SystemExit) as error:  # whatever the plug-in raises
        raise UserError(
            f"{where} must return a number or raise ImageShapeError, but raised {describe_error(error)}"
        ) from error
    try:
        number = -1 if isinstance(count, bool) else index(count)
    except TypeError:
        number = -1
    if not 0 <= number <= MOST_TOKENS:
        raise UserError(f"{where} must be a whole number from 0 to {MOST_TOKENS}, not {escaped(repr(count)[:40])}")
    return number


@cache
def _built_in() -> Mapping[str, TokenFamily]:
    """Families of this package, those of other packages left out."""
    package = import_module(__package__)
    names = sorted(module.name for module in iter_modules(package.__path__))
    modules = [import_module(f"{__package__}.{name}") for name in names]
    families = [family for module in modules for family in getattr(module, "FAMILIES", ())]
    return {family.name: family for family in sorted(families, key=lambda family: family.name != DEFAULT)}


@cache
def _installed() -> Mapping[str, EntryPoints]:
    """Entry points of other packages by name, not yet loaded; those with the name of a built-in family too."""
    return entry_points_by_name(GROUP)


def _load(points: EntryPoints) -> TokenFamily:
    point = the_only(points)
    what = described(points)
    family = load_object(point, what)
    if not isinstance(family, TokenFamily):
        raise UserError(f"{what}: {shown(point.value, 80)} must be a TokenFamily object, not {type(family).__name__}")
    if family.name != point.name:
        raise UserError(
            f"{what} is named {shown(family.name, 40)} in {shown(point.value, 80)}: the names must be equal"
        )
    if problem := problem_of(family):
        raise UserError(f"{what}: {problem}")
    return family


def _listed() -> str:
    """Names of the families for a message."""
    return join_words(family_names(), 12)
