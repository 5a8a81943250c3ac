"""Finds the consumers: the modules of this folder that define a `Consumer`."""

from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from phi3v_data.errors import NotFoundError
from phi3v_data.formats import consumers
from phi3v_data.formats.consumers.base import Consumer


@cache
def all_consumers() -> dict[str, type[Consumer]]:
    """Every consumer by name, in alphabetical order."""
    found = {}
    for info in iter_modules(consumers.__path__):
        module = import_module(f"{consumers.__name__}.{info.name}")
        for value in vars(module).values():
            is_own = isinstance(value, type) and value.__module__ == module.__name__
            if is_own and value is not Consumer and issubclass(value, Consumer) and "name" in vars(value):
                found[value.name] = value
    return dict(sorted(found.items()))


def get_consumer(name: str) -> type[Consumer]:
    """The consumer of a name.

    Raises:
        NotFoundError: there is none.
    """
    known = all_consumers()
    if name in known:
        return known[name]
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"the tools are {', '.join(known)}"
    raise NotFoundError(f"--for: no tool '{name}'; {hint}")
