"""Validates a directory before a run uses it: `validate(DIR)` returns a report of all problems."""

from typing import TYPE_CHECKING

from phi3v_data.lazy import lazy_names

if TYPE_CHECKING:
    from phi3v_data.validate.runner import fresh_report, validate

__all__ = ["fresh_report", "validate"]

__getattr__, __dir__ = lazy_names(__name__, dict.fromkeys(__all__, "phi3v_data.validate.runner"))
