"""Checks files of other tools where they are, without converting them."""

from typing import TYPE_CHECKING

from phi3v_data.lazy import lazy_names

if TYPE_CHECKING:
    from phi3v_data.lint.directory import add_consumer
    from phi3v_data.lint.runner import lint_file

__all__ = ["add_consumer", "lint_file"]

__getattr__, __dir__ = lazy_names(
    __name__, {"add_consumer": "phi3v_data.lint.directory", "lint_file": "phi3v_data.lint.runner"}
)
