"""Marks a directory whose files are being moved into place, so that a mixture of two sets is never read.

Before the first visible file is moved, `dataset.json` becomes a marker, which no version reads as a manifest; the real
manifest replaces it as the last step. So a copy made at any moment, with or without `.phi3v/`, contains the old set,
the marker, or the new set.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from phi3v_data.errors import UserError
from phi3v_data.files import hidden_path, read_regular

MANIFEST = "dataset.json"
PUBLISHING = ("convert", "publishing.json")
JOURNAL = ("convert",)
COMPLETE = ("convert", "complete.json")
STAGED_MANIFEST = ("convert", "stage", MANIFEST)

_KEY = "unfinished"
MARKER = {
    "format": 1,
    _KEY: "The files of this set are being moved into place, so it is not complete and no copy of it is. "
    "`phi3v-data convert --finish DIR` ends it.",
}
"""Content of `dataset.json` in the meantime; versions that do not know it reject it, as its other keys are missing."""


class UnfinishedError(UserError):
    """The set is incomplete: a run that writes it is still going on, or was interrupted."""


class Publication(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`publishing.json`: names in DIR to be installed from the stage, and names to be removed before that."""

    install: tuple[str, ...]
    remove: tuple[str, ...]


def read_publishing(path: Path) -> Publication | None:
    """Read a `publishing.json`; None if absent. Its names are not checked here. Raises OSError.

    Raises:
        UnfinishedError: it is damaged, so it is not known whether the set is complete.
    """
    try:
        return msgspec.json.decode(read_regular(path), type=Publication)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnfinishedError(
            f"{path}: is damaged ({error}), so it is not known whether all files are in place; nothing was moved or "
            "removed: make the set again in a new folder, or remove this file if you know that the set is complete"
        ) from None


def is_marker(value: Any) -> bool:
    """Whether the value of a `dataset.json` is the marker."""
    return isinstance(value, dict) and _KEY in value


def refuse_marker(directory: Path, value: Any) -> None:
    """Refuse a directory whose `dataset.json` is the marker.

    Raises:
        UnfinishedError: it is the marker.
    """
    if is_marker(value):
        raise _error(directory)


def refuse_unfinished(directory: Path) -> None:
    """Refuse a directory if files still have to be moved according to its journal.

    Raises:
        UnfinishedError: files have to be moved, or the journal is damaged.
    """
    if (path := hidden_path(directory, *PUBLISHING)) is not None:
        with suppress(OSError):
            read_publishing(path)
    if _has(directory, PUBLISHING) and _has(directory, STAGED_MANIFEST):
        raise _error(directory)


def refuse_interrupted(directory: Path) -> None:
    """Refuse a directory without splits whose conversion has not finished.

    Raises:
        UnfinishedError: the journal shows an unfinished conversion.
    """
    if _has(directory, JOURNAL) and not _has(directory, COMPLETE):
        raise UnfinishedError(
            f"{directory}: contains an interrupted conversion (or one that is still running), and no set yet; run the "
            "same command again to finish it"
        )


def _has(directory: Path, names: Sequence[str]) -> bool:
    path = hidden_path(directory, *names)
    return path is not None and path.exists()


def _error(directory: Path) -> UnfinishedError:
    if _has(directory, PUBLISHING):
        return UnfinishedError(
            f"{directory}: its files are still being moved into place, or that was interrupted; "
            "`phi3v-data convert --finish DIR` completes it, without the source"
        )
    return UnfinishedError(
        f"{directory}: is a copy without .phi3v of a set whose files were still being moved into place; run "
        "`phi3v-data convert --finish DIR` where it was made and copy it again"
    )
