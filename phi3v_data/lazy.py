"""Public names of a package that are imported when they are first used, so that importing the package stays quick."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` for a package: `homes` has the module of each public name; `__version__` is phi3v's.

    Raises (the first of them):
        AttributeError: the package has no such name.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807 - becomes the package's
        if name == "__version__":
            from importlib.metadata import version

            value: Any = version("phi3v")
        elif name in homes:
            value = getattr(import_module(homes[name]), name)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:  # noqa: N807 - becomes the package's
        return sorted([*homes, "__version__"])

    return __getattr__, __dir__
