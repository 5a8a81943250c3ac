"""Finds the chat formats: in this folder, installed by other packages, or in a file of the user.

get_format("llava")                    a module of this folder that defines a `RowFormat`, then an entry point
get_format("my_format.py:MyFormat")    a class in a file; without `:MyFormat`, the only one in it
"""

from difflib import get_close_matches
from functools import cache
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from phi3v_data import formats
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.formats.base import RowFormat
from phi3v_data.messages import shown
from phi3v_data.tokens.plug_in import EntryPoints, entry_points_by_name, owner
from phi3v_data.user_code import load_file, load_object

GROUP = "phi3v_data.formats"
"""Entry point group of formats that other packages install."""


@cache
def all_formats() -> dict[str, type[RowFormat]]:
    """Every built-in format by name, in alphabetical order."""
    found = {}
    for info in iter_modules(formats.__path__):
        for cls in _classes_of(import_module(f"{formats.__name__}.{info.name}")):
            found[cls.name] = cls
    return dict(sorted(found.items()))


def get_format(name: str) -> type[RowFormat]:
    """The format of a name or of a `FILE.py:NAME`.

    Raises:
        NotFoundError: there is none.
        UserError: it cannot be loaded, or is not a format.
    """
    file, colon, class_name = name.rpartition(":")
    if colon and file.endswith(".py"):
        return _in_file(file, class_name)
    if name.endswith(".py"):
        return _in_file(name, "")
    if (cls := _of_its_module(name)) is not None:
        return cls
    known = all_formats()
    if name in known:
        return known[name]
    points = entry_points_by_name(GROUP)
    if name in points:
        return _installed(name, points[name])
    names = [*known, *points]
    near = get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"the formats are {', '.join(names)}"
    raise NotFoundError(f"no format '{name}'; {hint}, or FILE.py:NAME for one of your own")


def _installed(name: str, points: EntryPoints) -> type[RowFormat]:
    """The format that a package provides under a name; workers find it by the same name."""
    owners = " and ".join(sorted(set(map(owner, points))))
    what = f"the format {name} of {owners}"
    if len(points) > 1:
        raise UserError(f"{what} is defined {len(points)} times: uninstall all but one")
    cls = _as_format(load_object(points[0], what), what)
    if cls.name != name:
        raise UserError(f"{what} is named {shown(cls.name, 40)} in {points[0].value}: the names must be equal")
    return cls


def _of_its_module(name: str) -> type[RowFormat] | None:
    """The built-in format that is in the module of its name: the other modules, slow to import, are not loaded."""
    if any(info.name == name for info in iter_modules(formats.__path__)):
        module = import_module(f"{formats.__name__}.{name}")
        return next((cls for cls in _classes_of(module) if cls.name == name), None)
    return None


def file_digest(cls: type[RowFormat]) -> str:
    """sha256 of the file that defines a format of the user's own."""
    return sha256(Path(import_module(cls.__module__).__file__ or "").read_bytes()).hexdigest()


def _in_file(file: str, name: str) -> type[RowFormat]:
    classes = {cls.__name__: cls for cls in _classes_of(load_file(Path(file), option="the format"))}
    if not name and len(classes) == 1:
        return next(iter(classes.values()))
    if name in classes:
        return classes[name]
    said = ", ".join(classes) or "none"
    raise NotFoundError(f"'{file}' has no format {name!r}; it defines {said}: give FILE.py:NAME")


def _classes_of(module: ModuleType) -> list[type[RowFormat]]:
    """The formats that a module defines; base classes have no name."""
    own = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]
    return [cls for cls in own if issubclass(cls, RowFormat) and "name" in vars(cls)]


def _as_format(target: Any, where: str) -> type[RowFormat]:
    if isinstance(target, type) and issubclass(target, RowFormat) and isinstance(getattr(target, "name", None), str):
        return target
    raise UserError(f"{where} is not a format: it must be a subclass of RowFormat with a name")
