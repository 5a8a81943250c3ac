"""Finds images in more than one split: with the same pixels, or nearly the same.

There is one finding per held-out row, at its first such image: an error if train contains all images of the row, a
warning if it contains only some of them, or if the other split is also held out.
"""

import numpy as np
import numpy.typing as npt

from phi3v_data.engine.base import Engine
from phi3v_data.media.integrity import DECODED, FLAT
from phi3v_data.messages import shown
from phi3v_data.schema import Severity
from phi3v_data.splits import split_sort_key
from phi3v_data.validate.findings import Findings
from phi3v_data.validate.images import ImageReport
from phi3v_data.validate.lookalikes import find_alike
from phi3v_data.validate.near import MAX_PAIRS, near_pairs
from phi3v_data.validate.pixels import PixelIdentity
from phi3v_data.validate.repeats import TRAIN
from phi3v_data.validate.table import RowTable
from phi3v_data.validate.tree import ImageTree

Ints = npt.NDArray[np.int64]


class ImageLeaks:
    """Compares the images of each pair of splits, in the order train, val, dev, test, then by name."""

    def __init__(
        self,
        table: RowTable,
        tree: ImageTree,
        pixels: PixelIdentity,
        report: ImageReport,
        findings: Findings,
        engine: Engine,
    ) -> None:
        self.engine = engine
        self.table = table
        self.tree = tree
        self.pixels = pixels
        self.report = report
        self.findings = findings
        self.row_splits = table.split_of_rows()
        self.order = sorted(range(len(table.splits)), key=lambda split: split_sort_key(table.splits[split]))
        self.identities = pixels.of_uses(table.uses)
        self.use_splits = np.repeat(self.row_splits, np.diff(table.starts))
        self._postings: tuple[Ints, Ints] | None = None
        self._first_use: Ints = np.empty(0, np.int64)

    def report_same(self) -> None:
        """Report `leak-image`: the same pixels in an earlier split."""
        size = len(self.tree)
        earlier = np.full(size, -1, np.int64)  # first use of an image in earlier splits
        in_train = np.zeros(size, np.bool_)
        for split in self.order:
            uses = np.flatnonzero((self.use_splits == split) & (self.identities >= 0))
            images = self.identities[uses]
            self._report_split(uses[earlier[images] >= 0], earlier, in_train)
            if self.table.splits[split] == TRAIN:
                in_train[images] = True
            fresh = uses[::-1]
            fresh = fresh[earlier[self.identities[fresh]] < 0]
            earlier[self.identities[fresh]] = fresh

    def _report_split(self, leaking: Ints, earlier: Ints, in_train: npt.NDArray[np.bool_]) -> None:
        rows, firsts = np.unique(np.searchsorted(self.table.starts, leaking, side="right") - 1, return_index=True)
        bounds = np.append(firsts, len(leaking))
        own, others = self.table.uses[leaking], self.table.uses[earlier[self.identities[leaking]]]
        self.pixels.decode_exact(np.concatenate((own[own != others], others[own != others])).tolist())
        for number, row in enumerate(rows.tolist()):
            confirmed = [
                use
                for use in leaking[bounds[number] : bounds[number + 1]].tolist()
                if self._same(use, int(earlier[self.identities[use]]))
            ]
            if confirmed:
                self._report_row(row, confirmed, earlier, in_train)

    def _same(self, use: int, other: int) -> bool:
        """Whether two uses with the same identity have the same pixels."""
        left, right = int(self.table.uses[use]), int(self.table.uses[other])
        return left == right or self.pixels.exact(left) == self.pixels.exact(right)

    def _report_row(self, row: int, leaking: list[int], earlier: Ints, in_train: npt.NDArray[np.bool_]) -> None:
        trained = [use for use in leaking if in_train[self.identities[use]]]
        severity: Severity = "warning"
        use = (trained or leaking)[0]
        num_images = int(self.table.num_uses[row])
        if trained and len(trained) == num_images and self._set_recurs(row):
            severity = "error"
        other = int(earlier[self.identities[use]])
        other_row = self.table.row_of_use(other)
        count = f"{len(trained or leaking)} of its {num_images} images are" if num_images > 1 else "its image is"
        self.report.report_use(
            "leak-image",
            use,
            f"{count} also in split {shown(self.table.splits[self.table.split_of_row(other_row)])}: "
            f"{shown(self._path(use), 160)} has the pixels of {shown(self._path(other), 160)} "
            f"({self.table.name(other_row)})",
            "keep an image in one split: scores on images seen in training are too high",
            severity=severity,
        )

    def _path(self, use: int) -> str:
        return self.tree.path(int(self.table.uses[use]))

    def _set_recurs(self, row: int) -> bool:
        """Whether one row of train contains all images of this row."""
        start, end = int(self.table.starts[row]), int(self.table.starts[row + 1])
        wanted = set(self.identities[start:end].tolist())
        if len(wanted) == 1:
            return True
        if self._postings is None:
            train = [split for split in self.order if self.table.splits[split] == TRAIN]
            uses = np.flatnonzero(np.isin(self.use_splits, train) & (self.identities >= 0))
            uses = uses[np.argsort(self.identities[uses], kind="stable")]
            self._postings = self.identities[uses], uses
        keys, uses = self._postings
        ranges = [(int(np.searchsorted(keys, key, "left")), int(np.searchsorted(keys, key, "right"))) for key in wanted]
        begin, stop = min(ranges, key=lambda bounds: bounds[1] - bounds[0])
        for use in uses[begin:stop].tolist():
            other = self.table.row_of_use(use)
            held = self.identities[int(self.table.starts[other]) : int(self.table.starts[other + 1])]
            if wanted.issubset(held.tolist()):
                return True
        return False

    def report_near(self) -> None:
        """Report `leak-near-image`: almost the same image in an earlier split, once per held-out image."""
        facts = self.report.images.facts
        good = (facts["flags"] & DECODED != 0) & (facts["flags"] & FLAT == 0)
        seen_images = np.zeros(len(self.tree), np.bool_)
        seen = np.empty(0, np.int64)  # entries of earlier splits, one per image
        self._first_use = np.full(len(self.tree), -1, np.int64)
        for split in self.order:
            uses = np.flatnonzero((self.use_splits == split) & (self.table.uses >= 0))
            entries, first = np.unique(self.table.uses[uses], return_index=True)
            keep = good[entries] & ~seen_images[self.pixels.identities[entries]]
            entries, uses = entries[keep].astype(np.int64), uses[first[keep]]
            self._report_near_split(entries, uses, seen)
            seen_images[self.pixels.identities[entries]] = True
            self._first_use[entries] = uses
            seen = np.concatenate((seen, entries))

    def _report_near_split(self, entries: Ints, uses: Ints, seen: Ints) -> None:
        if not len(seen) or not len(entries):
            return
        dhash = self.report.images.facts["dhash"]
        here, here_of = np.unique(dhash[entries], return_inverse=True)
        there, there_first = np.unique(dhash[seen], return_index=True)
        left, right, complete = near_pairs(here, there)
        if not complete:
            self.findings.add(
                "check-skipped",
                f"more than {MAX_PAIRS:,} pairs of images may look alike: only that many were compared",
                hint="images that are nearly empty all look alike",
            )
        partners: dict[int, list[int]] = {}
        for i, j in zip(left.tolist(), right.tolist(), strict=True):
            partners.setdefault(i, []).append(j)
        positions = np.flatnonzero(np.isin(here_of, left)).tolist()
        questions = [
            (int(entries[at]), [int(seen[there_first[j]]) for j in partners[int(here_of[at])][:8]]) for at in positions
        ]
        alike = [
            (int(uses[at]), entry, match)
            for at, (entry, _), match in zip(
                positions, questions, find_alike(self.tree, questions, self.engine), strict=True
            )
            if match is not None
        ]
        self.pixels.decode_rgb(image for _, *images in alike for image in images)
        for use, entry, match in alike:
            self._report_near_use(use, entry, match)

    def _report_near_use(self, use: int, entry: int, match: int) -> None:
        same_size = self.pixels.rgb(entry) == self.pixels.rgb(match)
        code = "leak-image" if same_size else "leak-near-image"
        words = "has the pixels of" if same_size else "looks almost like"
        splits = self.table.splits
        other_row = self.table.row_of_use(int(self._first_use[match]))
        severity: Severity = "warning"
        row = self.table.row_of_use(use)
        if same_size and splits[self.table.split_of_row(other_row)] == TRAIN and self.table.num_uses[row] == 1:
            severity = "error"
        self.report.report_use(
            code,
            use,
            f"{shown(self.tree.path(entry), 160)} {words} {shown(self.tree.path(match), 160)} of split "
            f"{shown(splits[self.table.split_of_row(other_row)])} ({self.table.name(other_row)})",
            "look at both; if they are the same image, keep it in one split",
            severity=severity,
        )
