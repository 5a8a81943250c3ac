"""Findings of Pydantic in the words of our messages: `--num_crops must be at least 1, not 0`."""

from collections.abc import Callable, Mapping
from typing import Any

from phi3v_data.messages import shown

_NAMED = {
    "extra_forbidden": "is not a known key",
    "missing": "is missing",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
}

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
    "string_type": "a string",
    "tuple_type": "an array",
}
"""Pydantic's type of a finding -> what the value must be, with what its context has."""


def refusal(where: str, finding: Mapping[str, Any]) -> str:
    """One of `ValidationError.errors()` as a sentence about `where`, which is an option or a field; `it` if empty."""
    if is_own(finding):
        return f"{where}: {complaint(finding)}" if where else complaint(finding)
    return f"{where or 'it'} {complaint(finding)}"


def complaint(finding: Mapping[str, Any], show: Callable[[object], str] = shown) -> str:
    """The same without the name: `must be at least 1, not 0`; the message of a validator of our own as it is."""
    kind = finding["type"]
    if kind in _NAMED:
        return _NAMED[kind]
    if is_own(finding):
        return str(finding["msg"]).removeprefix("Value error, ")
    bounds = {name: int(each) if each in (0.0, 1.0) else each for name, each in finding.get("ctx", {}).items()}
    expected = _WANTED[kind].format_map(bounds)
    return f"must be {expected}, not {show(finding['input'])}"


def is_own(finding: Mapping[str, Any]) -> bool:
    """Whether the message is that of a validator of our own."""
    return finding["type"] not in _NAMED and finding["type"] not in _WANTED
