"""Values of rows as text: what counts as absent, and how numbers and dates are written."""

import datetime
import decimal
import math
from collections.abc import Mapping, Sequence
from typing import Any

_MAX_WHOLE = 2.0**53
"""From here on a float does not tell neighbouring whole numbers apart."""


def is_absent(value: Any) -> bool:
    """Whether a value stands for none: null, NaN, NaT or infinity, as tables write a cell without a value."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, decimal.Decimal):
        return not value.is_finite()
    if isinstance(value, datetime.date):
        return bool(value != value)  # NaT is a date that differs from itself
    return value is None


def scalar_text(value: Any) -> str | None:
    """A scalar as text; empty if it is absent, None if it is not a scalar.

    A float without a fraction is written as a whole number: tables make 3.0 of 3 in a column with an absent value.
    Dates and times are in ISO 8601, booleans `true` and `false`.
    """
    if isinstance(value, str):
        return value
    if is_absent(value):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < _MAX_WHOLE else str(float(value))
    if isinstance(value, int | decimal.Decimal):
        return str(value)
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else None


def text_of(value: Any) -> str:
    """A field as text, as `scalar_text` writes it; empty for booleans and what is not a scalar."""
    return "" if isinstance(value, bool) else scalar_text(value) or ""


def texts_of(value: Any) -> tuple[str, ...]:
    """A field that may hold one text, several, or none; empty ones are left out."""
    values = value if isinstance(value, list | tuple) else (value,)
    return tuple(text for text in map(text_of, values) if text.strip())


def field_of(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first of these fields that the row has and that is not absent."""
    return next((row[name] for name in names if not is_absent(row.get(name))), None)
