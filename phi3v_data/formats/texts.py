"""Control tokens of a model in texts that come from elsewhere."""

import re
from functools import cache

from phi3v_data.tokens.chat import marker_pattern
from phi3v_data.tokens.registry import default_family, find_family


def own_marker(text: str, model: str = "") -> str:
    """The first control token of a model in a text, an error to the validator; empty if none.

    Args:
        model: a family or a model directory; empty: the default family.

    Raises:
        NotFoundError: there is no such family or directory.
        UserError: it cannot be read.
    """
    starts, pattern = _markers(model)
    if not any(start in text for start in starts):
        return ""
    found = pattern.search(text)
    return found[0] if found else ""


def marker_starts(model: str = "") -> tuple[str, ...]:
    """The characters with which control tokens of a model begin. Arguments and errors as `own_marker`."""
    return _markers(model)[0]


@cache
def _markers(model: str) -> tuple[tuple[str, ...], re.Pattern[str]]:
    """First characters of the control tokens of a model, and what finds them."""
    family = find_family(model)[0] if model else default_family()
    markers = sorted(family.special_strings, key=len, reverse=True)
    return tuple({marker[0] for marker in markers}), re.compile("|".join(map(marker_pattern, markers)))
