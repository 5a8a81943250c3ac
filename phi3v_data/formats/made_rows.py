"""Rows of plain samples without images, as text: the plan of an import has already read all that they need.

Objects of Python take most of the time of a small row, so these rows are made without drafts.
"""

import json
from collections.abc import Mapping
from json.encoder import encode_basestring
from typing import Any

from phi3v_data.formats.fields import extras
from phi3v_data.formats.plain_fields import PlainReader

MAX_BYTES = 1 << 16
"""Longer rows are left to `convert`, as all rows of a part are read at once."""


def make_row(row: Any, key: str, reader: PlainReader) -> bytes:
    """The line of a row's sample from `conversations` on, equal to that of `make_draft`'s draft.

    Empty if the row needs `make_draft`.

    Args:
        key: kept as `source_id` if the row has no id.
        reader: of the format's plain rows.
    """
    try:
        turns = reader.rewrite(row)
        if turns is None or len(turns) > MAX_BYTES:
            return b""
        rest = _other_columns(row, key)
        return b"" if "\\u0000" in rest else turns + rest.encode()
    except Exception:  # half a character, or whatever a format of the user's own raises: `convert` says what is wrong
        return b""


def _other_columns(row: Mapping[str, Any], key: str) -> str:
    """The rest of the text, from the columns beside the messages; a NUL if a value needs a closer look."""
    if "meta" not in row and "answers" not in row and "group" not in row:
        name = row.get("id")
        if type(name) is not str:
            name = str(name) if type(name) is int else ""
        return f', "meta": {{"source_id": {encode_basestring(name or key)}}}}}'
    found = extras(row)
    if "\0" in found.get("id", ""):  # of which nothing is seen if `meta` has another `source_id`
        return "\\u0000"
    meta = {"source_id": found.get("id") or key, **found.get("meta", {})}
    if any(isinstance(value, float) for value in meta.values()):
        return "\\u0000"
    columns = {name: found[name] for name in ("answers", "group") if found.get(name)} | {"meta": meta}
    return f", {json.dumps(columns, ensure_ascii=False)[1:]}"
