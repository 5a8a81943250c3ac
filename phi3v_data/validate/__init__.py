"""Prove that a directory is sound before a run stands on it: `validate(DIR)` gives a report of all that is wrong."""

from phi3v_data.validate.runner import fresh_report, validate

__all__ = ["fresh_report", "validate"]
