"""The images that rows use: each distinct file is checked once, findings are reported at every row that uses it."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from posixpath import basename, dirname
from typing import Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from phi3v_data.engine.base import Engine, FunctionWork, Shared, Work
from phi3v_data.engine.local import LocalEngine
from phi3v_data.files import leads_outside, reading_hint, unsafe_reason
from phi3v_data.media import integrity
from phi3v_data.media.images import HEIC_PHOTO
from phi3v_data.messages import counted, escaped, shown
from phi3v_data.near_names import closest
from phi3v_data.problems import PROBLEMS
from phi3v_data.validate.badrow import image_fields
from phi3v_data.validate.findings import Findings
from phi3v_data.validate.table import RowTable
from phi3v_data.validate.tree import BROKEN, FILE, LOOP, OTHER, OUTSIDE, UNSAFE, ImageTree

Flags = npt.NDArray[np.bool_]
Progress = Callable[[str, int, int], None]

_Found = tuple[integrity.Facts, integrity.Details]

KEEP_SECONDS = 30.0
"""Time between two savings of what is known of the images, so that a run that is killed loses no more."""

_BATCH = 256
_MAX_NAMES = 5000  # of one folder that a missing name is compared with

IMAGE_CODES = {
    integrity.UNREADABLE: ("image-unreadable", "copy it again from its source, or drop the rows that use it"),
    integrity.TOO_LARGE: ("image-too-large", "store a smaller copy"),
    integrity.MISMATCH: ("image-format-mismatch", "rename it, or store it again in the format of its name"),
    integrity.ANIMATED: ("image-animated", "the model sees the first frame only: store the frame you mean"),
    integrity.MODE: ("image-mode", "store it as 8-bit RGB or grey"),
    integrity.STRAY: ("image-stray-bytes", "nothing has to be done; storing it again removes them"),
    integrity.ORIENTATION: ("image-orientation", "the processor ignores it: rotate the pixels and remove the tag"),
}
"""Code and hint of each flag of an image."""


def hint_for(words: str, hint: str) -> str:
    """The hint of a finding, which a HEIC photo has in its message."""
    return "" if HEIC_PHOTO in words else hint


def with_command(code: str, words: str, hint: str) -> str:
    """The hint of a finding with the command that fixes the image, if there is one; of the modes it fixes CMYK only."""
    command = PROBLEMS[code].by_command
    if not hint or not command or (code == "image-mode" and "CMYK" not in words):
        return hint
    return f"{hint}; {command}"


_KINDS = {
    OUTSIDE: ("image-path-unsafe", "is a link that leads outside images/", "copy the file into images/"),
    BROKEN: ("image-missing", "is a broken link", "copy the file into images/"),
    LOOP: ("image-unreadable", "is a loop of links", "copy the file into images/"),
    OTHER: ("image-unreadable", "is neither a file nor a folder", ""),
    UNSAFE: ("image-path-unsafe", "", "rename the file and correct the path"),
}


@dataclass
class ImageTable:
    """Facts about each entry of the tree; `details` has the message of a finding by (entry, flag)."""

    facts: integrity.Facts
    details: dict[tuple[int, int], str] = field(default_factory=dict)


def closed_images(images: ImageTable) -> Flags:
    """Which files could not be opened (no permission, a failing disk), so that nothing is known of their content."""
    flags = images.facts["flags"]
    return np.asarray((flags & integrity.UNREADABLE != 0) & (flags & integrity.CHECKED == 0), np.bool_)


def used_images(table: RowTable, tree: ImageTree) -> Flags:
    """Which entries of the tree any row uses."""
    used = np.zeros(len(tree), np.bool_)
    used[table.uses[table.uses >= 0]] = True
    return used


def check_images(
    tree: ImageTree,
    wanted: Flags,
    known: ImageTable,
    *,
    pixels: bool,
    engine: Engine,
    progress: Progress | None,
    keep: Callable[[ImageTable], None] | None = None,
) -> None:
    """Look at the wanted entries that `known` has no facts of, and enter them there.

    `keep` is called with `known` every `KEEP_SECONDS`.
    """
    kinds = np.frombuffer(bytes(tree.kinds), np.uint8)
    needed = integrity.CHECKED | (integrity.DECODED if pixels else 0)
    flags = known.facts["flags"]
    final = flags & (integrity.UNREADABLE | integrity.TOO_LARGE) != 0
    todo = np.flatnonzero(wanted & (kinds == FILE) & ~final & (flags & needed != needed))
    done, kept = 0, time.monotonic()
    for indexes, facts, details in _results(tree, todo, pixels, engine):
        known.facts[indexes] = facts
        for position, flag, words in details:
            known.details[int(indexes[position]), flag] = words
        done += len(indexes)
        if progress is not None:
            progress("images", done, len(todo))
        if keep is not None and done < len(todo) and time.monotonic() - kept >= KEEP_SECONDS:
            keep(known)
            kept = time.monotonic()


def _results(
    tree: ImageTree, todo: npt.NDArray[np.int64], pixels: bool, engine: Engine
) -> Iterator[tuple[npt.NDArray[np.int64], integrity.Facts, integrity.Details]]:
    root = os.fspath(tree.root)
    batches = [todo[start : start + _BATCH] for start in range(0, len(todo), _BATCH)]
    # A function of `integrity`, so that workers load no more than that module needs.
    work: Work[list[str], _Found | None] = FunctionWork(partial(integrity.check_images, root, pixels=pixels))
    crashed: list[npt.NDArray[np.int64]] = []
    tasks = (list(map(tree.path, batch.tolist())) for batch in batches)
    shared = Shared(read=tuple(tree.root / tree.path(index) for index in todo[:1].tolist()))
    with closing(engine.run(work, tasks, on_death=lambda death: None, shared=shared)) as results:
        for batch, (_, found) in zip(batches, results, strict=True):
            if found is None:
                crashed.append(batch)
            else:
                yield (batch, *found)
    for batch in crashed:
        yield (batch, *_one_by_one(tree, batch, work))


def _one_by_one(tree: ImageTree, batch: npt.NDArray[np.int64], work: Work[list[str], _Found | None]) -> _Found:
    """A batch in which a decoder brought its process down: each file by itself, in a process that may die."""
    facts = np.zeros(len(batch), integrity.FACTS)
    details: integrity.Details = []
    tasks = ([tree.path(index)] for index in batch.tolist())
    with closing(LocalEngine(1).run(work, tasks, on_death=lambda death: None)) as results:
        for position, (_, found) in enumerate(results):
            if found is None:
                facts[position]["flags"] = integrity.CHECKED | integrity.UNREADABLE
                details.append((position, integrity.UNREADABLE, "crashes its decoder"))
            else:
                facts[position : position + 1] = found[0]
                details += [(position, flag, words) for _, flag, words in found[1]]
    return facts, details


class ImageReport:
    """Turns what is known of the images into findings at the rows that use them."""

    def __init__(self, table: RowTable, tree: ImageTree, images: ImageTable, findings: Findings) -> None:
        self.table = table
        self.tree = tree
        self.images = images
        self.findings = findings
        self._missing: dict[str, tuple[str, str, str]] = {}
        self._names: dict[str, list[str]] | None = None
        self._closed = dict(tree.unreadable)

    def report(self) -> None:
        """Missing files, then files of a wrong kind, then what the look at each showed."""
        self._report_missing()
        kinds = np.frombuffer(bytes(self.tree.kinds), np.uint8)
        for kind, (code, words, hint) in _KINDS.items():
            self._report_uses(kinds == kind, code, partial(self._kind_words, words), hint)
        closed = closed_images(self.images)
        for flag, (code, hint) in IMAGE_CODES.items():
            flagged = (self.images.facts["flags"] & flag != 0) & ~closed
            self._report_uses(flagged, code, partial(self._flag_words, flag), hint)
        hint = "fix its permissions (chmod u+r), or copy it again"
        self._report_uses(closed, "image-unreadable", partial(self._flag_words, integrity.UNREADABLE), hint)

    def _kind_words(self, words: str, index: int) -> str:
        return words or unsafe_reason(self.tree.path(index))

    def _flag_words(self, flag: int, index: int) -> str:
        return self.images.details.get((index, flag), "")

    def _report_uses(self, flagged: Flags, code: str, words: Callable[[int], str], hint: str) -> None:
        if not flagged.any():
            return
        uses = self.table.uses
        positions = np.flatnonzero((uses >= 0) & flagged[uses])
        for use in self.findings.up_to_limit(code, positions.tolist()):
            index = int(uses[use])
            said = words(index)
            advice = with_command(code, said, hint_for(said, hint))
            self.report_use(code, use, f"{shown(self.tree.path(index), 160)} {said}", advice)

    def report_use(self, code: str, use: int, message: str, hint: str = "", **more: Any) -> None:
        """A finding at the row and field of one image's use."""
        row = self.table.row_of_use(use)
        value = self.table.load(row)
        field_name = self.table.image_field(row, use - int(self.table.starts[row]), value)
        self.findings.add(code, message, **self.table.place(row, value), field=field_name, hint=hint, **more)

    def _report_missing(self) -> None:
        missing = np.flatnonzero(self.table.uses < 0)
        at_once = not self.findings.wants_each and not self.tree.root.exists()
        lost = 0  # of a directory without a folder images/, where one sentence says it all
        rows = np.unique(np.searchsorted(self.table.starts, missing, side="right") - 1)
        for row in rows.tolist():
            value = self.table.load(row)
            place = self.table.place(row, value)
            start = int(self.table.starts[row])
            for position, (field_name, path) in enumerate(image_fields(value)):
                if position < self.table.num_uses[row] and self.table.uses[start + position] < 0:
                    code, message, hint = self._explain_missing(path)
                    if at_once and code == "image-missing":
                        lost += 1
                        continue
                    self.findings.add(code, message, **place, field=field_name, hint=hint)
        if lost:
            self.findings.add(
                "image-missing",
                f"the directory has no folder images/, in which {counted(lost, 'image')} of its rows should be",
                hint="copy the images there; paths in the rows start below images/",
            )
            self.findings.count("image-missing", lost - 1)

    def _explain_missing(self, path: str) -> tuple[str, str, str]:
        """Code, message and hint for a path that is not in the tree."""
        known = self._missing.get(path)
        if known is None:
            known = self._explain(path)
            if len(self._missing) > 4096:
                self._missing.clear()
            self._missing[path] = known
        return known

    def _explain(self, path: str) -> tuple[str, str, str]:
        if path[:5].lower() == "data:":
            said = f"{shown(path, 40)} is a data URL, not a path below images/"
            return "image-missing", said, "save the image as a file there"
        name = shown(path, 160)
        reason = unsafe_reason(path)
        if reason:
            return "image-path-unsafe", f"the path {name} {reason}", self._meant(path)
        folded = self.tree.find_folded(path)
        if folded >= 0:
            meant = self.tree.path(folded)
            kind = "letter case" if meant.casefold() == path.casefold() else "Unicode form"
            return (
                "image-name-mismatch",
                f"{name} is not under images/: a file differs in {kind}",
                f"did you mean {shown(meant, 160)}? {PROBLEMS['image-name-mismatch'].by_command}",
            )
        if self._closed:
            parts = path.split("/")
            for folder in ("/".join(parts[:depth]) for depth in range(len(parts) + 1)):
                if (why := self._closed.get(folder)) is not None:
                    message = f"{name} cannot be read: {shown(f'images/{folder}')} cannot ({why})"
                    return "image-unreadable", message, reading_hint(why)
        full = os.path.join(self.tree.root, path)
        try:
            there = os.path.lexists(full)
        except (OSError, ValueError):
            there = False
        if there and leads_outside(self.tree.root, path):
            return "image-path-unsafe", f"{name} leads outside images/ through a link", "copy the files into images/"
        if there:
            what = "is a folder" if os.path.isdir(full) else "is reached through a link that leads back upwards"
            return "image-unreadable", f"{name} {what}", "name a file"
        return "image-missing", f"{name} is not under images/", self._meant(path)

    def _meant(self, path: str) -> str:
        """The file that was probably meant, as a hint."""
        for guess in (unquote(path), path.replace("\\", "/"), path.removeprefix("./"), path.lstrip("/")):
            for tail in (guess, guess.removeprefix("images/"), guess.partition("/images/")[2]):
                if tail and tail != path and not unsafe_reason(tail) and self._find(tail) >= 0:
                    return f"did you mean {shown(tail, 160)}? paths are relative to images/"
        if not self.findings.has_room("image-missing") or not len(self.tree):
            return ""
        if self._names is None:
            self._names = {}
            for known in self.tree.paths():
                self._names.setdefault(dirname(known), []).append(basename(known))
        siblings = self._names.get(dirname(path), [])
        if near := closest(basename(path), siblings):
            return f"did you mean {shown(os.path.join(dirname(path), near), 160)}?"
        top = dirname(path).partition("/")[0]  # the split's folder, or that of one of several merged sets
        elsewhere = [
            folder
            for folder, names in self._names.items()
            if len(names) <= _MAX_NAMES and basename(path) in names and top in ("", folder.partition("/")[0])
        ]
        if len(elsewhere) == 1:
            return f"did you mean {shown(os.path.join(elsewhere[0], basename(path)), 160)}?"
        return ""

    def _find(self, path: str) -> int:
        return self.tree.index(path)


def report_orphans(tree: ImageTree, used: Flags, findings: Findings) -> None:
    """Files under `images/` that no row uses; system files and hidden ones left out."""
    unused = [index for index in np.flatnonzero(~used).tolist() if not _is_system_file(basename(tree.path(index)))]
    for index in findings.up_to_limit("image-orphan", unused):
        findings.add("image-orphan", "no row uses this file", file=f"images/{escaped(tree.path(index))}")


def _is_system_file(name: str) -> bool:
    return name.startswith(".") or name == "Thumbs.db"
