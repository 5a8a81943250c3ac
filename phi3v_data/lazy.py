"""Public names of a package that are imported on first use, so that importing the package is fast."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package: `homes` maps each public name to its module.

    `__version__` is the version of phi3v. `__getattr__` raises AttributeError for other names.
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
