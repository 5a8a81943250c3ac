"""Marker and record of an export in a store: the one is written before its first object, the other after the last.

An export is complete if, and only if, the record is there. The marker names the objects that belong to it, so that a
later run of the same command replaces what a killed one left, and nothing that others put beside it.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from phi3v_data.remote.store import Store, StoredObject

RECORD = ".phi3v/stored_export.json"
MARKER = ".phi3v/unfinished.json"

_LIMIT = 1 << 28

T = TypeVar("T")


class ExportRecord(msgspec.Struct, frozen=True):
    """The record: sizes and etags of all other objects by name, and what was exported."""

    objects: dict[str, int]
    export: dict[str, Any]
    etags: dict[str, str] = {}


class ExportMarker(msgspec.Struct, frozen=True):
    """The marker: names of the objects that the export writes, and which run of a command it is of."""

    objects: list[str]
    run: str = ""


def read_record(store: Store, found: StoredObject) -> ExportRecord | None:
    """The record in an object; None if it is damaged. Raises StoreError."""
    return _read(store, found, ExportRecord)


def read_marker(store: Store, found: StoredObject) -> ExportMarker | None:
    """The marker in an object; None if it is damaged. Raises StoreError."""
    return _read(store, found, ExportMarker)


def write_record(store: Store, record: ExportRecord) -> None:
    """Write the record, by which the export becomes complete. Raises StoreError."""
    store.write(RECORD, msgspec.json.encode(record))


def write_marker(store: Store, names: Iterable[str], run: str) -> None:
    """Write the marker. Raises StoreError."""
    store.write(MARKER, msgspec.json.encode(ExportMarker(sorted(names), run)))


def _read(store: Store, found: StoredObject, kind: type[T]) -> T | None:
    if found.size > _LIMIT:
        return None
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return msgspec.json.decode(store.read(found, 0, found.size), type=kind)
    return None
