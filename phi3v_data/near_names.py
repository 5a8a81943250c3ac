"""Finds the file that was probably meant by a path at which there is none."""

import difflib
import os
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import unquote

_NO_DIGITS = re.compile(r"\D+")
_MAX_NAMES = 5000  # of one folder that a missing name is compared with


def fold(path: str) -> str:
    """The same string for all letter cases and Unicode forms of a path."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def near_name(root: str, path: str) -> str:
    """The path of a file below a folder that is spelled like one at which there is none; empty if there is none."""
    for guess in (unquote(path), path.replace("\\", "/")):
        if guess != path and os.path.isfile(os.path.join(root, guess)):
            return guess
    folder, base = os.path.split(path)
    names = _names(os.path.join(root, folder))
    found = names.get(fold(base))
    if found is None or found == base:
        found = closest(base, list(names.values()))
    return os.path.join(folder, found) if found else ""


def closest(name: str, names: Sequence[str]) -> str:
    """The name that is spelled most like a missing one, if any is; of images with other numbers none is meant."""
    digits = _NO_DIGITS.sub("", name)
    others = [each for each in names[:_MAX_NAMES] if each != name and _NO_DIGITS.sub("", each) == digits]
    near = difflib.get_close_matches(name[:255], others, 1, 0.8)
    return near[0] if near else ""


@lru_cache(maxsize=16)
def _names(folder: str) -> dict[str, str]:
    """Names in a folder, by their folded form."""
    try:
        return {fold(name): name for name in os.listdir(folder)}
    except (OSError, ValueError):  # ValueError: a path with NUL
        return {}
