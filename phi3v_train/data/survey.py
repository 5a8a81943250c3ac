"""Lengths of a split, measured before a run: from text and image headers, no picture is decoded."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from phi3v_data.errors import UserError
from phi3v_train.data.encode import Encoder
from phi3v_train.data.order import SampleRef
from phi3v_train.data.reader import Measure, Reader
from phi3v_train.data.workers import Workers

CHUNK = 64


@dataclass(frozen=True, slots=True)
class Survey:
    """Of the rows that were measured: token counts are those of whole samples, whatever `--max_length` says.

    `num_too_long` samples are over `--max_length`; `first_too_long` is the place of the first, with its length.
    """

    num_rows: int
    num_measured: int
    num_tokens: int
    num_supervised: int
    num_tiles: int
    num_images: int
    longest: int
    most_tiles: int
    num_too_long: int
    first_too_long: str

    @property
    def is_whole(self) -> bool:
        """Whether every row was measured."""
        return self.num_measured == self.num_rows

    @property
    def mean_tokens(self) -> float:
        """Tokens of a sample, image tokens among them."""
        return self.num_tokens / self.num_measured

    @property
    def mean_tiles(self) -> float:
        """Tiles with a picture on them, of a sample."""
        return self.num_tiles / self.num_measured


def survey(
    reader: Reader,
    *,
    max_rows: int = 2000,
    num_workers: int = 0,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Survey:
    """Measure all rows, or of more than `max_rows` that many, evenly spread over the sources.

    Raises:
        UserError: a sample cannot be encoded; or one is over `--max_length` and `--truncate turns` was not given, which
            the message counts.
    """
    options = reader.encoder.options
    whole = Reader(reader.sources, _without_limit(reader.encoder))
    refs = spread(tuple(len(source) for source in reader.sources), max_rows)
    chunks = [refs[index : index + CHUNK] for index in range(0, len(refs), CHUNK)]
    measures: list[Measure] = []
    with Workers(whole, num_workers if len(refs) > 8 * CHUNK else 0) as workers:
        for part in workers.map(measure_chunk, chunks):
            measures += part
            if progress is not None:
                progress("measuring", len(measures), len(refs))
    limit = options.max_length
    long = [index for index, measure in enumerate(measures) if limit is not None and measure.cost.tokens > limit]
    first = f"{whole.place(refs[long[0]])} (id {measures[long[0]].provenance.id!r})" if long else ""
    result = Survey(
        num_rows=sum(len(source) for source in reader.sources),
        num_measured=len(refs),
        num_tokens=sum(measure.cost.tokens for measure in measures),
        num_supervised=sum(measure.num_supervised for measure in measures),
        num_tiles=sum(measure.cost.tiles for measure in measures),
        num_images=sum(measure.num_images for measure in measures),
        longest=max(measure.cost.tokens for measure in measures),
        most_tiles=max(measure.cost.tiles for measure in measures),
        num_too_long=len(long),
        first_too_long=first,
    )
    if long and options.truncate == "refuse":
        raise UserError(
            f"{len(long)} of {len(refs)} samples measured are over --max_length {limit}, the longest has "
            f"{result.longest} tokens, the first is {first}: raise --max_length, lower --num_crops, or cut at a turn's "
            "border with --truncate turns"
        )
    return result


def spread(sizes: tuple[int, ...], max_rows: int) -> list[SampleRef]:
    """All rows in order, or `max_rows` of them at even distances."""
    total = sum(sizes)
    count = min(total, max_rows)
    refs: list[SampleRef] = []
    source, before = 0, 0
    for index in range(count):
        place = index * total // count
        while place - before >= sizes[source]:
            before += sizes[source]
            source += 1
        refs.append(SampleRef(source, place - before, 0))
    return refs


def measure_chunk(reader: Reader, refs: list[SampleRef]) -> list[Measure]:
    """Measure some samples, in a worker."""
    return [reader.measure(ref) for ref in refs]


def _without_limit(encoder: Encoder) -> Encoder:
    return encoder.with_options(replace(encoder.options, max_length=None))
