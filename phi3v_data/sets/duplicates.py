"""Finds equal images and near duplicates, within each split and across splits."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from phi3v_data.engine.base import Engine
from phi3v_data.media.integrity import DECODED, FLAT
from phi3v_data.sets.components import Ints, join_rows
from phi3v_data.sets.reading import Progress
from phi3v_data.validate.lookalikes import BATCH, find_alike
from phi3v_data.validate.near import near_pairs_within
from phi3v_data.validate.pixels import PixelIdentity
from phi3v_data.validate.survey import Survey

MAX_COMPARED = 50_000
"""Most pairs with near hashes whose images are decoded and compared."""

MAX_EXAMPLES = 20


@dataclass(slots=True)
class Duplicates:
    """Counts of duplicates: the number of groups, and of images in them.

    within: split -> images that have a duplicate in the same split. across: `train/val` -> groups with images in both.
    examples: names of two images of a group.
    """

    groups: int = 0
    images: int = 0
    within: Counter[str] = field(default_factory=Counter)
    across: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, str]] = field(default_factory=list)
    unchecked: int = 0

    def to_json(self) -> dict[str, Any]:
        """The counts as printed by `stats --json`."""
        return {
            "groups": self.groups,
            "pictures": self.images,
            "within": dict(self.within),
            "across": dict(self.across),
            "examples": [list(pair) for pair in self.examples],
            "unchecked_pairs": self.unchecked,
        }


class DuplicateSearch:
    """Searches the images used by the rows of a directory."""

    def __init__(self, survey: Survey, identity: PixelIdentity, engine: Engine, progress: Progress) -> None:
        self.engine = engine
        self.survey = survey
        self.identity = identity
        self.progress = progress
        self.entries: Ints = np.flatnonzero(survey.used).astype(np.int64)
        self.masks = self._split_masks()

    def _split_masks(self) -> npt.NDArray[np.uint64]:
        """Bit masks of the splits that use each image: bit n for split n of the table."""
        table = self.survey.table
        masks = np.zeros(len(self.survey.tree), np.uint64)
        for split, first, end in table.split_rows():
            uses = table.uses[table.starts[first] : table.starts[end]]
            masks[uses[uses >= 0]] |= np.uint64(1 << min(split, 63))
        return masks

    def exact(self) -> Duplicates:
        """Find files with equal pixels, and files used by several splits."""
        result = Duplicates()
        identities = self.identity.identities[self.entries]
        order = np.argsort(identities, kind="stable")
        bounds = np.flatnonzero(np.diff(identities[order])) + 1
        alone = np.ones(len(self.survey.tree), np.bool_)
        groups = list(_groups(self.entries[order], bounds))
        self.identity.decode_exact(chain.from_iterable(groups))
        for members in groups:
            by_pixels: dict[Any, list[int]] = {}
            for entry in members:
                by_pixels.setdefault(self.identity.exact(entry), []).append(entry)
            for equal in by_pixels.values():
                self._count(result, equal)
                alone[equal] = len(equal) == 1
        used_twice = np.bitwise_count(self.masks[self.entries]) > 1
        for entry in self.entries[used_twice & alone[self.entries]].tolist():
            self._count_across(result, self.masks[entry])
        return result

    def near(self) -> Duplicates:
        """Find images that look almost the same but are not equal."""
        result = Duplicates()
        facts = self.survey.images.facts
        flags = facts["flags"][self.entries]
        entries = self.entries[(flags & DECODED != 0) & (flags & FLAT == 0)]
        _, first = np.unique(self.identity.identities[entries], return_index=True)
        entries = entries[np.sort(first)]
        pairs = list(self._candidates(facts["dhash"][entries]))
        left, right = (np.concatenate(each) for each in zip(*pairs, strict=True))
        result.unchecked = max(0, len(left) - MAX_COMPARED)
        compared = list(zip(left[:MAX_COMPARED].tolist(), right[:MAX_COMPARED].tolist(), strict=True))
        questions = [(int(entries[i]), [int(entries[j])]) for i, j in compared]
        alike: list[tuple[int, int]] = []
        answers = find_alike(self.survey.tree, questions, self.engine)
        for number, (pair, match) in enumerate(zip(compared, answers, strict=True), 1):
            if match is not None:
                alike.append(pair)
            if number % BATCH == 0:
                self.progress("compare", number, len(compared))
        if alike:
            links = np.array(alike, np.int64)
            roots = join_rows(len(entries), [(links[:, 0], links[:, 1])])
            order = np.argsort(roots, kind="stable")
            bounds = np.flatnonzero(np.diff(roots[order])) + 1
            for members in _groups(entries[order], bounds):
                self._count(result, members)
        return result

    @staticmethod
    def _candidates(hashes: npt.NDArray[np.uint64]) -> Iterator[tuple[Ints, Ints]]:
        """Yield positions of images with equal hashes (each with the first of them), then with near ones."""
        order = np.argsort(hashes, kind="stable")
        new = np.concatenate(([True], np.diff(hashes[order]) != 0)) if len(order) else np.empty(0, np.bool_)
        first = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
        yield first[~new], order[~new]
        distinct = order[new]
        left, right, _ = near_pairs_within(hashes[distinct])
        yield distinct[left], distinct[right]

    def _count(self, result: Duplicates, members: Sequence[int]) -> None:
        """Count a group of entries."""
        if len(members) < 2:
            return
        result.groups += 1
        result.images += len(members)
        union = np.uint64(0)
        for number, split in enumerate(self.survey.table.splits):
            bit = np.uint64(1 << min(number, 63))
            inside = sum(bool(self.masks[entry] & bit) for entry in members)
            if inside > 1:
                result.within[split] += inside
        for entry in members:
            union |= self.masks[entry]
        self._count_across(result, union)
        if len(result.examples) < MAX_EXAMPLES:
            tree = self.survey.tree
            result.examples.append((tree.path(members[0]), tree.path(members[1])))

    def _count_across(self, result: Duplicates, mask: np.uint64) -> None:
        splits = [name for number, name in enumerate(self.survey.table.splits) if int(mask) >> min(number, 63) & 1]
        for pair in combinations(splits, 2):
            result.across["/".join(pair)] += 1


def _groups(entries: Ints, bounds: Ints) -> Iterator[list[int]]:
    """Yield the slices between bounds that contain more than one entry."""
    starts = np.concatenate(([0], bounds))
    ends = np.append(bounds, len(entries))
    for start, end in zip(starts[ends - starts > 1].tolist(), ends[ends - starts > 1].tolist(), strict=True):
        yield entries[start:end].tolist()
