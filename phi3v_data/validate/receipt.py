"""What a run leaves under `DIR/.phi3v/validate/`, so that the next one checks only what has changed.

`receipt.json` holds the options, the identity of every file (content digest of JSONL and manifest; path, size and
time of each picture, as one digest) and the report. While all of it matches, the report stands as it is. `images.npz`
holds what was found in each picture: it is used again for pictures whose path, size and time are unchanged.
"""

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import xxhash
from PIL import Image
from pydantic import ValidationError

from phi3v_data.files import write_bytes
from phi3v_data.media.integrity import FACTS
from phi3v_data.schema import Report
from phi3v_data.validate.images import ImageTable
from phi3v_data.validate.tree import ImageTree

RECEIPT_VERSION = 1

_FOLDER = ".phi3v/validate"
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class State:
    """Identity of everything that a report speaks of, apart from the options."""

    files: Mapping[str, str]  # JSONL files and manifest: digest of the content
    names: Sequence[str]  # all JSONL files of the directory
    tree: str
    checker: str  # versions that the findings depend on

    def to_json(self) -> dict[str, Any]:
        """As `receipt.json` holds it."""
        return {"files": dict(self.files), "names": list(self.names), "tree": self.tree, "checker": self.checker}


def tree_digest(tree: ImageTree) -> str:
    """Digest of every path, size, time and kind under `images/`."""
    hasher = xxhash.xxh3_128()
    times_and_sizes = (tree.ends.tobytes(), tree.sizes.tobytes(), tree.mtimes.tobytes())
    for part in (tree.blob, *times_and_sizes, tree.kinds, repr(tree.unreadable).encode()):
        hasher.update(bytes(part))
        hasher.update(b"|")
    return hasher.hexdigest()


def content_digest(path: Path) -> str:
    """XXH3 digest of a file's bytes; says so where it cannot be read."""
    hasher = xxhash.xxh3_128()
    try:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(_READ_BYTES):
                hasher.update(block)
    except OSError as error:
        return f"unreadable: {error.strerror}"
    return hasher.hexdigest()


@cache
def checker_version() -> str:
    """What a changed answer about the same picture may come from."""
    return f"{RECEIPT_VERSION}/{version('phi3v')}/{PIL.__version__}/{version('simplejpeg')}/{Image.MAX_IMAGE_PIXELS}"


def load_report(directory: Path, state: State, options: Mapping[str, Any]) -> Report | None:
    """The stored report if the directory is as it was and the options given are those of the run; else None."""
    try:
        stored = json.loads((directory / _FOLDER / "receipt.json").read_bytes())
        if stored["state"] != state.to_json():
            return None
        if any(stored["options"].get(key, ...) != value for key, value in options.items()):
            return None
        return Report.model_validate({**stored["report"], "dir": os.fspath(directory)})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError, RecursionError):
        return None


def load_images(directory: Path, tree: ImageTree) -> ImageTable:
    """What an earlier run found of the pictures that are as they were; blank facts for all others."""
    table = ImageTable(np.zeros(len(tree), FACTS))
    try:
        with np.load(directory / _FOLDER / "images.npz", allow_pickle=False) as stored:
            if str(stored["checker"]) != checker_version():
                return table
            old_blob, old_ends = stored["blob"].tobytes(), stored["ends"]
            old_sizes, old_mtimes, old_facts = stored["sizes"], stored["mtimes"], stored["facts"]
            details = json.loads(stored["details"].tobytes())
            if old_facts.dtype != FACTS or not len(old_ends) == len(old_sizes) == len(old_mtimes) == len(old_facts):
                return table
    except (OSError, ValueError, KeyError, EOFError, TypeError):
        return table
    if old_blob == bytes(tree.blob) and np.array_equal(old_ends, tree.ends):
        old = new = np.arange(len(tree))
    else:
        starts = np.concatenate(([0], old_ends[:-1])).tolist()
        known = {
            old_blob[start:end]: index for index, (start, end) in enumerate(zip(starts, old_ends.tolist(), strict=True))
        }
        pairs = [(known[path], index) for index, path in enumerate(map(os.fsencode, tree.paths())) if path in known]
        old, new = np.array(pairs, np.int64).reshape(-1, 2).T
    same = (old_sizes[old] == tree.sizes[new]) & (old_mtimes[old] == tree.mtimes[new])
    old, new = old[same], new[same]
    table.facts[new] = old_facts[old]
    renumbered = dict(zip(old.tolist(), new.tolist(), strict=True)) if details else {}
    for index, flag, words in details:
        if index in renumbered:
            table.details[renumbered[index], flag] = words
    return table


def blank(tree: ImageTree) -> ImageTable:
    """Nothing known of any picture."""
    return ImageTable(np.zeros(len(tree), FACTS))


def save(
    directory: Path, state: State, options: Mapping[str, Any], report: Report, tree: ImageTree, images: ImageTable
) -> None:
    """Leave the receipt; both files are written aside and renamed, the report last. Raises OSError."""
    folder = directory / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    details = [[index, flag, words] for (index, flag), words in images.details.items()]
    buffer = io.BytesIO()
    np.savez(
        buffer,
        checker=np.array(checker_version()),
        blob=np.frombuffer(bytes(tree.blob), np.uint8),
        ends=tree.ends,
        sizes=tree.sizes,
        mtimes=tree.mtimes,
        facts=images.facts,
        details=np.frombuffer(json.dumps(details).encode(), np.uint8),
    )
    write_bytes(folder / "images.npz", buffer.getbuffer())
    receipt = {"state": state.to_json(), "options": dict(options), "report": report.model_dump(mode="json")}
    write_bytes(folder / "receipt.json", json.dumps(receipt, allow_nan=False).encode())
