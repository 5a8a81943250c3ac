"""Checks files of other tools where they are, without converting them."""

from phi3v_data.lint.directory import add_consumer
from phi3v_data.lint.runner import lint_file

__all__ = ["add_consumer", "lint_file"]
