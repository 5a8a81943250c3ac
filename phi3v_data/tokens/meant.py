"""Suggests the model that a user probably meant by a `--model` that is neither a family nor a directory."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from phi3v_data.messages import escaped, shown

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""A repository of the Hugging Face Hub: its owner and name."""

TINY = "tiny"
"""Name of the small models in training: `tiny`, `tiny:FAMILY`."""


def hint(wanted: str, families: Sequence[str], default: str) -> str:
    """`; did you mean phi3v?` and the like; empty if nothing is near.

    Args:
        wanted: the value of `--model`.
        families: names of all families.
        default: the family of `tiny`.
    """
    start, _, family = wanted.partition(":")
    if start.lower() == TINY:
        meant = family if family in families else default
        return f"; {shown(wanted, 40)} is the small model of {meant}: use --model {meant}"
    if "/" not in wanted:
        near = get_close_matches(wanted.lower(), families, n=1)
        return f"; did you mean {near[0]}?" if near else ""
    if HUB_ID.fullmatch(wanted) and not Path(wanted).parent.exists():
        name = escaped(wanted[:60])
        return f"; if it is a Hub id, download it first (hf download {name} --local-dir DIR) and use --model DIR"
    return ""
