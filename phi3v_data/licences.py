"""Licences as the header of a card on the Hub names them: the Hub refuses a card with another word."""

import re
from collections.abc import Iterable

_KNOWN = re.compile(
    r"apache-2\.0|mit|bsd(-[23]-clause)?|unlicense|openrail|odc-by|odbl|pddl|gpl-[23]\.0|lgpl-[23]\.[01]|agpl-3\.0"
    r"|cc0-1\.0|cc(-by(-nc)?(-sa|-nd)?-[1-4]\.[05])?|cdla-(sharing-1\.0|permissive-[12]\.0)|other|unknown"
)


def licence_entries(names: Iterable[str]) -> dict[str, str | list[str]]:
    """Entries of a card's header about these licences; empty if there are none.

    Names that the Hub does not know become `other`, with all of them as `license_name`.
    """
    stated = sorted({name.strip().lower() for name in names if name.strip()})
    if not stated:
        return {}
    if all(map(_KNOWN.fullmatch, stated)):
        return {"license": stated[0] if len(stated) == 1 else stated}
    name = re.sub(r"[^a-z0-9.]+", "-", "-and-".join(stated)).strip("-")[:80]
    return {"license": "other", **({"license_name": name} if name else {})}
