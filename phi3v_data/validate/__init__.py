"""Validates a directory before a run uses it: `validate(DIR)` returns a report of all problems."""

from phi3v_data.validate.runner import fresh_report, validate

__all__ = ["fresh_report", "validate"]
