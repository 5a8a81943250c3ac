"""Control tokens of the default model in texts that come from elsewhere."""

import re
from functools import cache

from phi3v_data.tokens.chat import marker_pattern
from phi3v_data.tokens.registry import default_family


def own_marker(text: str) -> str:
    """The first control token of the default model in a text, an error to the validator; empty if none."""
    if "<" not in text:  # every marker begins with it
        return ""
    found = _pattern().search(text)
    return found[0] if found else ""


@cache
def _pattern() -> re.Pattern[str]:
    markers = sorted(default_family().special_strings, key=len, reverse=True)
    return re.compile("|".join(map(marker_pattern, markers)))
