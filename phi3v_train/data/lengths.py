"""Number of samples over `--max_length`, counted before a run instead of in the middle of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from phi3v_data.errors import UserError
from phi3v_train.data.order import SampleRef
from phi3v_train.data.reader import Reader
from phi3v_train.data.workers import Workers, measure_all

CHUNK = 64


@dataclass(frozen=True, slots=True)
class Lengths:
    """Counts of the rows that were measured, uncut: how many are over `--max_length`, and the longest."""

    num_measured: int
    num_too_long: int
    longest: int


def check_lengths(
    reader: Reader,
    *,
    max_rows: int = 2000,
    num_workers: int = 0,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Lengths:
    """Measure all rows, or of more than `max_rows` that many, evenly spread; no image is decoded.

    Rows that are not measured here are still refused or cut when their turn comes.

    Raises:
        UserError: a sample cannot be encoded or cut; or some are over `--max_length` without `--truncate turns`: how
            many, and which is the first.
    """
    encoder = reader.encoder
    limit = encoder.options.max_length
    whole = Reader(reader.sources, encoder.with_options(replace(encoder.options, max_length=None)))
    refs = spread(tuple(len(source) for source in reader.sources), max_rows)
    chunks = [refs[index : index + CHUNK] for index in range(0, len(refs), CHUNK)]
    lengths: list[int] = []
    with Workers(whole, num_workers if len(refs) > 8 * CHUNK else 0) as workers:
        for measures in workers.map(measure_all, chunks):
            lengths += [measure.cost.tokens for measure in measures]
            if progress is not None:
                progress("lengths", len(lengths), len(refs))
    long = [index for index, length in enumerate(lengths) if limit is not None and length > limit]
    if long and encoder.options.truncate == "refuse":
        first = refs[long[0]]
        tokens = encoder.renderer.tokens
        fewer = f"lower --{tokens.budget_option}, " if tokens.max_budget is not None else ""
        raise UserError(
            f"{len(long)} of {len(refs)} samples measured are over --max_length {limit}; the longest has "
            f"{max(lengths)} tokens, the first is {whole.location(first)} with {lengths[long[0]]}; raise --max_length, "
            f"{fewer}or cut at a turn's border with --truncate turns"
        )
    for index in long:
        reader.measure(refs[index])  # refuses a sample whose first turn alone is too long
    return Lengths(len(refs), len(long), max(lengths))


def spread(sizes: tuple[int, ...], max_rows: int) -> list[SampleRef]:
    """All rows in order, or `max_rows` of them at even distances."""
    total = sum(sizes)
    count = min(total, max_rows)
    refs: list[SampleRef] = []
    source, before = 0, 0
    for index in range(count):
        row = index * total // count
        while row - before >= sizes[source]:
            before += sizes[source]
            source += 1
        refs.append(SampleRef(source, row - before, 0))
    return refs
