"""Marker and record of an export in a store: the one is written before its first object, the other after the last.

An export is complete if, and only if, the record is there. The marker names the objects that belong to it, so that a
later run of the same command replaces what a killed one left, and nothing that others put beside it.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from phi3v_data.remote.store import Store, StoredObject

RECORD = ".phi3v/stored_export.json"
MARKER = ".phi3v/unfinished.json"

_LIMIT = 1 << 28


class ExportRecord(msgspec.Struct, frozen=True):
    """The record: sizes of all other objects by name, and what was exported."""

    objects: dict[str, int]
    export: dict[str, Any]


class ExportMarker(msgspec.Struct, frozen=True):
    """The marker: names of the objects that the export writes."""

    objects: list[str]


def read_record(store: Store, found: StoredObject) -> ExportRecord:
    """The record in an object. Raises msgspec.MsgspecError, StoreError."""
    return msgspec.json.decode(_read(store, found), type=ExportRecord)


def read_marker(store: Store, found: StoredObject) -> ExportMarker:
    """The marker in an object. Raises msgspec.MsgspecError, StoreError."""
    return msgspec.json.decode(_read(store, found), type=ExportMarker)


def write_record(store: Store, record: ExportRecord) -> None:
    """Write the record, by which the export becomes complete. Raises StoreError."""
    store.write(RECORD, msgspec.json.encode(record))


def write_marker(store: Store, names: Iterable[str]) -> None:
    """Write the marker. Raises StoreError."""
    store.write(MARKER, msgspec.json.encode(ExportMarker(sorted(names))))


def _read(store: Store, found: StoredObject) -> bytes:
    return store.read(found, 0, found.size) if found.size <= _LIMIT else b""
