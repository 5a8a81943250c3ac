"""Reads fields of rows of unknown origin: each function gives a value of the right type, or a fault."""

import json
from collections.abc import Collection, Mapping, Sequence
from math import isfinite
from typing import Any

from phi3v_data.converters.helpers.cell_images import is_inline
from phi3v_data.formats.chat import Chat, Fault, ImageRef, Role
from phi3v_data.messages import shown

ROLES: Mapping[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "observation": "tool",
    "tool": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "function_call": "tool_call",
    "tool_call": "tool_call",
}
"""Spellings of roles that are found in files, and what they mean."""


def text_field(row: Mapping[str, Any], key: str, where: str, faults: list[Fault]) -> str | None:
    """The text of a field; None and a fault if it is missing or not a text."""
    path = f"{where}.{key}" if where else key
    if key not in row:
        faults.append(Fault("missing-field", path, f"'{key}' is missing"))
        return None
    value = row[key]
    if isinstance(value, str):
        return value
    faults.append(Fault("wrong-type", path, f"'{key}' is {shown(value)}, not a text"))
    return None


def list_field(row: Mapping[str, Any], key: str, faults: list[Fault]) -> list[Any] | None:
    """The array of a field; None and a fault if it is missing or not an array."""
    if key not in row:
        faults.append(Fault("missing-field", key, f"'{key}' is missing"))
        return None
    value = row[key]
    if isinstance(value, list | tuple):
        return list(value)
    faults.append(Fault("wrong-type", key, f"'{key}' is {shown(value)}, not an array"))
    return None


BASE64 = "base64"
"""Key of a block whose value is the base64 text of an image, not a path."""


def as_data_url(value: Any) -> Any:
    """A text that is to be base64 as a data URL, unless it is seen to be an image: not to be taken for a path."""
    if not isinstance(value, str) or not value or is_inline(value):
        return value
    return f"data:;base64,{value}"


def image_refs(value: Any, field: str, faults: list[Fault]) -> list[ImageRef]:
    """Images of a field: null or empty for none, one reference, or an array of them.

    A reference is a path, URL or data URL, bytes, or an object with `bytes` and `path` as `datasets` stores images.
    """
    if value is None or value == "":
        return []
    several = isinstance(value, list | tuple)
    refs = []
    for number, one in enumerate(value if several else (value,)):
        where = f"{field}[{number}]" if several else field
        if isinstance(one, Mapping) and ("bytes" in one or "path" in one):
            one = as_data_url(one.get("bytes")) or one.get("path")
        if isinstance(one, str | bytes) and one:
            refs.append(ImageRef(one, where))
        else:
            faults.append(Fault("wrong-type", where, f"an image is {shown(one)}, not a path, URL or data URL"))
    return refs


def role_of(name: str, field: str, faults: list[Fault], known: Mapping[str, Role] = ROLES) -> Role | None:
    """The meaning of a role's name; None and a fault for an unknown one."""
    role = known.get(name)
    if role is None:
        faults.append(Fault("role-unknown", field, f"the role {shown(name)} is not one of {', '.join(known)}"))
    return role


def as_block(value: Any) -> Any:
    """A block of a message; `datasets` stores blocks of mixed types as JSON text in parquet files."""
    if isinstance(value, str) and value[:1] == "{":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def json_text(value: Any) -> str:
    """A value that is stored as JSON text: a text unchanged, null as '', anything else as its JSON."""
    if value is None or value == [] or value == "":
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def extras(row: Mapping[str, Any]) -> dict[str, Any]:
    """`id`, `answers`, `group` and `meta` of a row, as arguments of `Chat`; what has another type is left out."""
    found: dict[str, Any] = {}
    if isinstance(row.get("id"), str | int) and not isinstance(row.get("id"), bool):
        found["id"] = str(row["id"])
    if _is_texts(row.get("answers")):
        found["answers"] = tuple(row["answers"])
    if isinstance(row.get("group"), str):
        found["group"] = row["group"]
    meta = _json_object(row.get("meta"))
    if isinstance(meta, Mapping) and all(map(_is_scalar, meta.values())):
        found["meta"] = dict(meta)
    return found


def extra_columns(
    chat: Chat, keeps: Collection[str], always: Collection[str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The columns of `id`, `answers`, `group` and `meta` that a format keeps, and the names of the others that are set.

    `meta` is written as JSON text: readers that store rows in typed columns, as `datasets` does, would otherwise refuse
    a key with values of several types, or give every row the keys of all. `always`: columns that every row has.
    """
    meta = json.dumps(dict(chat.meta), ensure_ascii=False, allow_nan=False) if chat.meta else ""
    values = {"id": chat.id, "answers": list(chat.answers), "group": chat.group, "meta": meta}
    columns = {key: values[key] for key in keeps if values[key] or key in always}
    return columns, tuple(key for key, value in values.items() if value and key not in keeps)


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and isfinite(value))


def _json_object(value: Any) -> Any:
    """The object in a JSON text; other values are returned as they are."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _is_texts(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and all(isinstance(v, str) for v in value)
