"""Lengths of some rows, measured before a run: what samples cost on average, and which cost the most.

Rows spread evenly over every source give the mean. The longest row of a large set is hardly ever among them, so the
rows with most bytes are measured too: long texts and many images make long lines. No image is decoded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from phi3v_train.data.order import SampleRef
from phi3v_train.data.reader import Measure, Reader
from phi3v_train.data.sources import Source

SPREAD_ROWS = 64
"""Rows that are spread evenly over the sources."""

LONG_LINES = 448
"""Rows with the longest lines that are measured besides."""


@dataclass(frozen=True, slots=True)
class MeasuredRow:
    """A row and its size."""

    ref: SampleRef
    measure: Measure


@dataclass(frozen=True)
class Probe:
    """Sizes of some samples; `spread` are those that stand for all, `rows` all that were measured."""

    spread: tuple[Measure, ...]
    rows: tuple[MeasuredRow, ...]

    @property
    def mean_tokens(self) -> float:
        """Mean length."""
        return fmean(measure.cost.tokens for measure in self.spread)

    @property
    def max_tokens(self) -> int:
        """Longest."""
        return max(row.measure.cost.tokens for row in self.rows)

    @property
    def max_tiles(self) -> int:
        """Most tiles."""
        return max(row.measure.cost.tiles for row in self.rows)

    @property
    def max_labels(self) -> int:
        """Most supervised tokens."""
        return max(row.measure.num_supervised for row in self.rows)

    def longest(self, count: int) -> list[MeasuredRow]:
        """The longest rows, the longest first."""
        return sorted(self.rows, key=lambda row: -row.measure.cost.tokens)[:count]


def probe_rows(reader: Reader) -> Probe:
    """Measure up to 512 rows.

    Raises:
        UserError: one of them cannot be encoded.
    """
    share = max(1, SPREAD_ROWS // len(reader.sources))
    spread = []
    for number, source in enumerate(reader.sources):
        count = min(share, len(source))
        spread += [SampleRef(number, index * len(source) // count, 0) for index in range(count)]
    known = {ref: reader.measure(ref) for ref in spread}
    measures = {ref: known.get(ref) or reader.measure(ref) for ref in [*spread, *_long_lines(reader.sources)]}
    ordered = sorted(measures.items(), key=lambda item: (item[0].source, item[0].row))
    return Probe(tuple(known[ref] for ref in spread), tuple(MeasuredRow(*item) for item in ordered))


def _long_lines(sources: Sequence[Source]) -> list[SampleRef]:
    """The rows of all sources with most bytes."""
    sizes = [source.split.row_bytes() for source in sources]
    every = np.concatenate(sizes)
    longest = np.argsort(-every, kind="stable")[:LONG_LINES]
    starts = np.cumsum([0, *map(len, sizes)])
    numbers = np.searchsorted(starts, longest, side="right") - 1
    return [
        SampleRef(number, row - int(starts[number]), 0)
        for number, row in zip(numbers.tolist(), longest.tolist(), strict=True)
    ]
