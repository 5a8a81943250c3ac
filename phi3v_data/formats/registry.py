"""Finds the chat formats: the modules of this folder that define a `RowFormat`."""

from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from phi3v_data import formats
from phi3v_data.errors import NotFoundError
from phi3v_data.formats.base import RowFormat


@cache
def all_formats() -> dict[str, type[RowFormat]]:
    """Every format by name, in alphabetical order."""
    found = {}
    for info in iter_modules(formats.__path__):
        module = import_module(f"{formats.__name__}.{info.name}")
        for value in vars(module).values():
            is_own = isinstance(value, type) and value.__module__ == module.__name__
            if is_own and issubclass(value, RowFormat) and "name" in vars(value):
                found[value.name] = value
    return dict(sorted(found.items()))


def get_format(name: str) -> type[RowFormat]:
    """The format of a name.

    Raises:
        NotFoundError: there is none.
    """
    formats_ = all_formats()
    if name in formats_:
        return formats_[name]
    near = get_close_matches(name, formats_, 1)
    hint = f"did you mean {near[0]}?" if near else f"the formats are {', '.join(formats_)}"
    raise NotFoundError(f"no format '{name}'; {hint}")
