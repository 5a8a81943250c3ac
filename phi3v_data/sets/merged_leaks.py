"""Finds samples and groups that a merge puts into several splits: one set has them in train, another one in test.

Images are compared by their bytes, and only those of rows whose texts and sizes of images are equal, so nothing is
decoded. `validate`, which compares pixels, finds more.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial

import numpy as np
import numpy.typing as npt

from phi3v_data.media.formats import UnreadableImageError
from phi3v_data.media.images import read_image_file
from phi3v_data.messages import counted
from phi3v_data.sets.collisions import Flags
from phi3v_data.sets.reading import SourceSet
from phi3v_data.validate.repeats import Ints, equal_groups, sample_content, sample_hashes


class MergedLeaks:
    """Finds what is in several splits of the new set, but not of one of the sets that are joined."""

    def __init__(self, sources: Sequence[SourceSet], splits: Sequence[Mapping[str, str]]) -> None:
        """`splits`: the new name of each split, for each set."""
        self.sources = sources
        self.bounds = np.cumsum([0, *(len(source.table) for source in sources)])
        names = list(dict.fromkeys(name for mapping in splits for name in mapping.values()))
        self.splits: Ints = np.concatenate(
            [
                np.array([names.index(mapping[split]) for split in source.table.splits])[source.table.split_of_rows()]
                for source, mapping in zip(sources, splits, strict=True)
            ]
        )

    def notes(self, renamed: Sequence[Flags]) -> Iterator[str]:
        """Yield a note on samples and one on groups, if there are any; `renamed`: rows whose group has a new name."""
        leaks = self._samples()
        if first := next(leaks, None):
            here, there = map(self._name, first)
            number = 1 + sum(1 for _ in leaks)
            yield (
                f"{counted(number, 'sample')} in several splits now, such as {here}, the same as {there}, which "
                "validate reports as leak-sample; `phi3v-data clean OUT NEW --drop leak-sample` leaves them out"
            )
        kept = [np.where(new, 0, source.table.groups) for source, new in zip(self.sources, renamed, strict=True)]
        apart = np.concatenate([self._straddling(keys, self._splits_of(n)) for n, keys in enumerate(kept)])
        if num := len(np.setdiff1d(self._straddling(np.concatenate(kept), self.splits), apart)):
            yield (
                f"{counted(num, 'group')} in several splits now, which validate reports as leak-group; "
                "`phi3v-data split OUT NEW --split SHARES --by group` keeps them whole"
            )

    def _splits_of(self, number: int) -> Ints:
        return self.splits[self.bounds[number] : self.bounds[number + 1]]

    @staticmethod
    def _straddling(groups: Ints, splits: Ints) -> Ints:
        """The groups that are in several splits."""
        pairs = np.unique(np.stack([groups[groups != 0], splits[groups != 0]]), axis=1)
        found, counts = np.unique(pairs[0], return_counts=True)
        several: Ints = found[counts > 1]
        return several

    def _samples(self) -> Iterator[tuple[int, int]]:
        """Yield each row whose sample an earlier set has in another split, and the row of that one."""
        hashes = np.concatenate([sample_hashes(source.table, _sizes(source)) for source in self.sources])
        digest = cache(self._digest)
        for rows in equal_groups(hashes):
            numbers = np.searchsorted(self.bounds, rows, side="right") - 1
            if len(np.unique(numbers)) < 2 or len(np.unique(self.splits[rows])) < 2:
                continue
            known: dict[object, dict[tuple[int, int], int]] = {}  # content -> first row of each set and split
            for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
                table, own, split = self.sources[number].table, row - int(self.bounds[number]), int(self.splits[row])
                content = sample_content(table.load(own), own, table, partial(digest, number))
                places = known.setdefault(content, {})
                elsewhere = [at for (other, name), at in places.items() if other != number and name != split]
                if elsewhere:
                    yield row, elsewhere[0]
                places.setdefault((number, split), row)

    def _digest(self, number: int, entry: int) -> object:
        """Digest of the bytes of an image; one that cannot be read equals no other."""
        try:
            return hashlib.sha256(read_image_file(self.sources[number].image_path(entry))).digest()
        except (OSError, UnreadableImageError):
            return number, entry

    def _name(self, row: int) -> str:
        """Where a row is in its set: `set/train.jsonl:3`."""
        number = int(np.searchsorted(self.bounds, row, side="right")) - 1
        table = self.sources[number].table
        return f"{table.directory}/{table.name(row - int(self.bounds[number]))}"


def _sizes(source: SourceSet) -> Callable[[npt.NDArray[np.int32]], Ints]:
    """A function from images, by their place in the tree, to the sizes of their files."""
    sizes = np.append(source.survey.tree.sizes, -1)  # the last is that of -1, an image that is missing
    return lambda uses: sizes[uses]
