"""Fine-tuning and evaluation of Phi-3-vision on a conversations directory.

Importing this package loads neither torch nor transformers; once transformers is imported, its Auto classes know the
model (`phi3v_train.models.phi3v.register`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from phi3v_train.models.phi3v.register import register_with_transformers

if TYPE_CHECKING:
    from phi3v_train.run import Outcome, fine_tune

    __version__: str

_HOMES = {"Outcome": "phi3v_train.run", "fine_tune": "phi3v_train.run"}

__all__ = ["Outcome", "__version__", "fine_tune"]

register_with_transformers()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("phi3v")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'phi3v_train' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
