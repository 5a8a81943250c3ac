"""Findings of Pydantic in the words of our messages: `--num_crops must be at least 1, not 0`."""

from collections.abc import Mapping
from typing import Any

from phi3v_data.messages import shown

_WANTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "an object",
    "enum": "{expected}",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_type": "a whole number",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "an array",
    "literal_error": "{expected}",
    "model_type": "an object",
    "path_type": "a path",
    "string_too_long": "a string of at most {max_length} characters",
    "string_type": "a string",
    "tuple_type": "an array",
}
"""Pydantic's type of a finding -> what the value must be, with what its context has."""


def refusal(where: str, finding: Mapping[str, Any]) -> str:
    """One of `ValidationError.errors()` as a sentence about `where`, which is an option or a field; `it` if empty."""
    where = where or "it"
    kind = finding["type"]
    if kind == "missing":
        return f"{where} is missing"
    if kind == "extra_forbidden":
        return f"{where} is not a known key"
    if kind in ("string_too_short", "too_short") and finding["ctx"]["min_length"] == 1:
        return f"{where} must not be empty"
    what = wanted(finding)
    return f"{where} must be {what}, not {shown(finding['input'])}" if what else f"{where}: {own_words(finding)}"


def wanted(finding: Mapping[str, Any]) -> str:
    """The kind of value that is expected: `a whole number`; empty for a finding of a validator of our own."""
    return _WANTED.get(finding["type"], "").format_map(finding.get("ctx", {}))


def own_words(finding: Mapping[str, Any]) -> str:
    """The message of a validator of our own, without what Pydantic puts before it."""
    return str(finding["msg"]).removeprefix("Value error, ")
