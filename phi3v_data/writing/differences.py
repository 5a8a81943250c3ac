"""Differences between the settings of two runs, as messages."""

import json
from collections.abc import Mapping
from typing import Any

_IN_WORDS = {"converter_file": "the converter's own file"}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Differences between two identities, as messages: `options.quality 90 -> 95`."""
    result = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            result += differences(before, after, f"{prefix}{key}.")
        elif key in _IN_WORDS:
            result.append(_IN_WORDS[key])
        else:
            result.append(f"{prefix}{key} {_short(before)} -> {_short(after)}")
    return result


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
