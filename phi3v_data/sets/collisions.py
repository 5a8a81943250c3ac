"""Finds names used by several sets, and new names for the rows and images affected.

Names are compared by 64-bit hashes in arrays, 8 bytes per name; texts are read again only for names that collide.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from phi3v_data.media.images import read_image_file
from phi3v_data.media.packed import pack_above
from phi3v_data.messages import counted
from phi3v_data.sets.components import Ints
from phi3v_data.sets.reading import Progress, SourceSet
from phi3v_data.validate.hashes import hash_texts
from phi3v_data.validate.tree import FILE, UNSAFE

Flags: TypeAlias = npt.NDArray[np.bool_]

_BLOCK = 1 << 20


def set_labels(names: Sequence[str]) -> list[str]:
    """A label for each set: its name, with a number if an earlier set has the same name."""
    result: list[str] = []
    for name in names:
        label, number = name, 1
        while label in result:
            number += 1
            label = f"{name}-{number}"
        result.append(label)
    return result


def repeated(values: Ints) -> Ints:
    """The values that occur more than once, sorted."""
    ordered = np.sort(values)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def is_among(values: Ints, ordered: Ints) -> Flags:
    """Which values are in a sorted array."""
    if not len(ordered):
        return np.zeros(len(values), np.bool_)
    place = np.searchsorted(ordered, values)
    place[place == len(ordered)] = 0
    result: Flags = ordered[place] == values
    return result


class IdNames:
    """Renames ids that are not unique: the label of their set in front, and a number if the result is in use too."""

    def __init__(self, sources: Sequence[SourceSet], labels: Sequence[str]) -> None:
        self.labels = labels
        colliding = repeated(np.concatenate([source.table.ids for source in sources]))
        self.changed: list[Flags] = [is_among(source.table.ids, colliding) for source in sources]
        self.kept = np.sort(
            np.concatenate([source.table.ids[~changed] for source, changed in zip(sources, self.changed, strict=True)])
        )
        new = [
            hashes
            for number, source in enumerate(sources)
            for hashes in self._new_hashes(number, _ids(source, self.changed[number]))
        ]
        self.new = np.sort(np.concatenate(new)) if new else np.empty(0, np.int64)
        twice = self.new[1:][self.new[1:] == self.new[:-1]]
        self.taken = np.unique(np.concatenate([twice, self.new[is_among(self.new, self.kept)]]))
        self.given: set[str] = set()  # new ids given to rows whose first choice was in use

    def _new_hashes(self, number: int, ids: Iterator[str]) -> Iterator[Ints]:
        """Yield hashes of the ids with labels, in batches."""
        while some := [self._new(number, row_id) for row_id in islice(ids, 1 << 16)]:
            yield hash_texts(some)

    def _new(self, number: int, row_id: str) -> str:
        return f"{self.labels[number]}-{row_id}"

    def rename(self, number: int, row: int, row_id: str) -> str:
        """The new id of a row whose id is not unique."""
        new = self._new(number, row_id)
        if not self._holds(self.taken, new):
            return new
        count, candidate = 1, new
        while candidate in self.given or self._holds(self.kept, candidate):
            count += 1
            candidate = f"{new}-{count}"
            if self._holds(self.new, candidate):  # the new id of another row
                self.given.add(candidate)
        self.given.add(candidate)
        return candidate

    @staticmethod
    def _holds(ordered: Ints, text: str) -> bool:
        return bool(is_among(hash_texts([text]), ordered)[0])

    def notes(self) -> Iterator[str]:
        """Yield a note for each set whose ids changed."""
        for changed, label in zip(self.changed, self.labels, strict=True):
            if changed.any():
                yield f"{int(changed.sum()):,} ids of {label} are not unique and now start with {label + '-'!r}"


def _ids(source: SourceSet, wanted: Flags) -> Iterator[str]:
    if not wanted.any():
        return
    from phi3v_data.sets.reading import decode_row

    for row, line in source.rows():
        if wanted[row]:
            yield decode_row(line).id


class GroupNames:
    """Renames groups that occur in sets of different names: the name of the set is put in front."""

    def __init__(self, sources: Sequence[SourceSet]) -> None:
        self.names = [source.name for source in sources]
        by_name: dict[str, list[Ints]] = {}
        for source in sources:
            groups = source.table.groups
            by_name.setdefault(source.name, []).append(np.unique(groups[groups != 0]))
        distinct = [np.unique(np.concatenate(parts)) for parts in by_name.values()]
        colliding = repeated(np.concatenate(distinct))
        self.num_colliding = len(colliding)
        self.changed: list[Flags] = [is_among(source.table.groups, colliding) for source in sources]

    def rename(self, number: int, group: str) -> str:
        """The new group of a row."""
        return f"{self.names[number]}/{group}"

    def notes(self) -> Iterator[str]:
        """Yield a note if groups were renamed."""
        if self.num_colliding:
            yield f"{counted(self.num_colliding, 'group')} in sets of different names, now with the set's name in front"


class ImageNames:
    """Renames images whose path another set uses for other content: they move to a folder named after their set."""

    def __init__(self, sources: Sequence[SourceSet], labels: Sequence[str], progress: Progress) -> None:
        self.sources = sources
        self.labels = labels
        self.progress = progress
        self.trees = [source.survey.tree for source in sources]
        self.brought: list[Flags] = [_brought(source) for source in sources]
        self.moved: list[Flags] = [np.zeros(len(tree), np.bool_) for tree in self.trees]
        self.known: list[Flags] = [
            np.zeros(len(tree), np.bool_) for tree in self.trees
        ]  # they come from an earlier set
        self.folders_of: dict[int, set[str]] = {}
        for number in range(len(sources)):
            self._compare(number)
        self.prefixes = self._free_prefixes()
        self.changed = [self._changed(number) for number in range(len(sources))]

    def _compare(self, number: int) -> None:
        """Compare the files of a set with those of earlier sets."""
        tree, brought = self.trees[number], self.brought[number]
        wanted = np.flatnonzero(brought)
        for start in range(0, len(wanted) if number else 0, 1 << 16):
            entries = wanted[start : start + (1 << 16)]
            hashes = hash_texts(list(map(tree.path, entries.tolist())))
            for other in range(number):
                found = self.trees[other].find(hashes)
                for entry, match in zip(entries[found >= 0].tolist(), found[found >= 0].tolist(), strict=True):
                    if not self.brought[other][match] or self.moved[other][match] or self.moved[number][entry]:
                        continue
                    if same_file(self.sources[number].image_path(entry), self.sources[other].image_path(match)):
                        self.known[number][entry] = True
                    else:
                        self.moved[number][entry] = True
            self.progress("compare", start, len(wanted))
        if number:
            self._move_out_of_the_way(number)

    def _move_out_of_the_way(self, number: int) -> None:
        """Move images whose folder has the path of another set's image, and vice versa."""
        own = self._folders(number)
        for other in range(number):
            for folder in own:
                if self._has_file(other, folder):
                    self._move_below(number, folder)
            for folder in self._folders(other):
                entry = self._entry(number, folder)
                if entry >= 0:
                    self.moved[number][entry] = True

    def _folders(self, number: int) -> set[str]:
        if number not in self.folders_of:
            tree, found = self.trees[number], set[str]()
            for entry in np.flatnonzero(self.brought[number]).tolist():
                folder = os.path.dirname(tree.path(entry))
                while folder and folder not in found:
                    found.add(folder)
                    folder = os.path.dirname(folder)
            self.folders_of[number] = found
        return self.folders_of[number]

    def _entry(self, number: int, path: str) -> int:
        return self.trees[number].index(path)

    def _has_file(self, number: int, path: str) -> bool:
        entry = self._entry(number, path)
        return entry >= 0 and bool(self.brought[number][entry])

    def _move_below(self, number: int, folder: str) -> None:
        for entry in np.flatnonzero(self.brought[number]).tolist():
            if self.trees[number].path(entry).startswith(f"{folder}/"):
                self.moved[number][entry] = True

    def _free_prefixes(self) -> list[str]:
        """A folder name for each set that is not the first component of any path."""
        if not any(moved.any() for moved in self.moved) and not any(map(_has_missing, self.sources)):
            return list(self.labels)
        tops = {path.partition("/")[0] for tree in self.trees for path in tree.paths()}
        result: list[str] = []
        for label in self.labels:
            prefix, count = label, 1
            while prefix in tops:
                count += 1
                prefix = f"{label}_{count}"
            tops.add(prefix)
            result.append(prefix)
        return result

    def _changed(self, number: int) -> Flags:
        """Which rows use an image with a new name."""
        table, moved = self.sources[number].table, self.moved[number]
        uses = table.uses
        hit = (uses >= 0) & moved[uses] if len(moved) else np.zeros(len(uses), np.bool_)
        hit |= uses < 0  # a missing image must not be found in another set
        result = np.zeros(len(table), np.bool_)
        result[np.searchsorted(table.starts, np.flatnonzero(hit), side="right") - 1] = True
        return result

    def rename(self, number: int, row: int, value: dict[str, Any]) -> None:
        """Replace the image names of a row by the new ones."""
        table = self.sources[number].table
        position = int(table.starts[row])
        for turn in value["conversations"]:
            names = turn.get("images", [])
            for index, path in enumerate(names):
                entry = int(table.uses[position])
                position += 1
                if (entry >= 0 and self.moved[number][entry]) or (
                    entry < 0
                    and any(self._has_file(other, path) for other in range(len(self.trees)) if other != number)
                ):
                    names[index] = f"{self.prefixes[number]}/{path}"

    def placer(self, number: int) -> Callable[[int], str | None]:
        """A function that returns the new name of an entry of a set; None if it comes from an earlier set."""
        tree, moved, known = self.trees[number], self.moved[number], self.known[number]

        def name(entry: int) -> str | None:
            path = tree.path(entry)
            if moved[entry]:
                return f"{self.prefixes[number]}/{path}"
            return None if known[entry] else path

        return name

    def notes(self) -> Iterator[str]:
        """Yield notes on images that were moved, or were equal to those of an earlier set."""
        for moved, known, label, prefix in zip(self.moved, self.known, self.labels, self.prefixes, strict=True):
            if moved.any():
                yield (
                    f"{counted(int(moved.sum()), 'image')} of {label} with the path of another image, now under "
                    f"images/{prefix}/"
                )
            if same := int((known & ~moved).sum()):
                yield f"{counted(same, 'image')} of {label} also in an earlier set, stored once"


def _brought(source: SourceSet) -> Flags:
    kinds = np.frombuffer(bytes(source.survey.tree.kinds), np.uint8)
    result: Flags = source.survey.used & ((kinds == FILE) | (kinds == UNSAFE))
    return result


def _has_missing(source: SourceSet) -> bool:
    return bool((source.table.uses < 0).any())


def same_file(left: str, right: str) -> bool:
    """Whether two files have equal bytes; two links to the same file are not read."""
    if pack_above(Path(left)) or pack_above(Path(right)):
        return read_image_file(left) == read_image_file(right)
    one, two = os.stat(left), os.stat(right)
    if (one.st_dev, one.st_ino) == (two.st_dev, two.st_ino):
        return True
    if one.st_size != two.st_size:
        return False
    with open(left, "rb") as first, open(right, "rb") as second:
        while block := first.read(_BLOCK):
            if block != second.read(_BLOCK):
                return False
    return True
