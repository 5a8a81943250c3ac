"""The path from a directory to an export: check every row, then write them aside, then rename."""

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias, Unpack

import numpy as np
import numpy.typing as npt

from phi3v_data.dataset import Dataset, Split
from phi3v_data.engine.base import Engine, EngineSettings, Shared, Tick
from phi3v_data.engine.make_engine import FEW, open_engine
from phi3v_data.errors import UserError
from phi3v_data.exporting.bucket import BucketTarget, check_store, staging, upload_shard
from phi3v_data.exporting.bucket import find_earlier as bucket_export
from phi3v_data.exporting.earlier import are_linked, earlier_result, export_identity
from phi3v_data.exporting.exporter import Exporter, Part
from phi3v_data.exporting.folder import check_free, find_earlier, new_folder, write_record
from phi3v_data.exporting.images import Images
from phi3v_data.exporting.registry import make_exporter
from phi3v_data.exporting.request import ExportRequest, ExportResult, Loss, Tally
from phi3v_data.exporting.row_check import RowCheck, check_references, check_target
from phi3v_data.exporting.row_files import PARTS
from phi3v_data.formats.chat import Chat
from phi3v_data.formats.consumers.base import Consumer
from phi3v_data.formats.turns import to_chat
from phi3v_data.remote.address import Address, is_remote, parse_address, spelled
from phi3v_data.remote.store import StoredObject
from phi3v_data.schema import Sample
from phi3v_data.sets.writing import check_places
from phi3v_data.shards.view import data_directory
from phi3v_data.validate.foreign import refuse_foreign

Progress: TypeAlias = Callable[[str, int, int | None], None]

PART_BYTES = 4 << 20
"""JSON bytes of the rows that one process takes at a time."""


class LossyError(Exception):
    """The format cannot carry some rows; nothing was written.

    Attributes:
        title: the tools that read the format.
        lost: what would be lost, by code.
    """

    def __init__(self, title: str, lost: dict[str, Loss]) -> None:
        super().__init__(", ".join(lost))
        self.title = title
        self.lost = lost


def export_set(
    name: str,
    directory: str | Path,
    path: str | Path,
    request: ExportRequest | None = None,
    *,
    overwrite: bool = False,
    workers: int | None = 0,
    progress: Progress | None = None,
    **engine: Unpack[EngineSettings],
) -> ExportResult:
    """Write a directory in the format of another tool; if the same export is there already, nothing is done.

    Args:
        name: the format, a key of `EXPORTERS`.
        workers: processes; 0 or 1 runs in this one, None: one per core. The files do not depend on it.
        engine: rows are checked and written there (`EngineSettings`).

    Raises:
        LossyError: the format cannot carry some rows; not raised if the request is `lossy`.
        UserError: a row or an image cannot be read, or `path` has something else, such as an export of other rows.

    `path` may be the address of a folder in a store (`s3://BUCKET/PREFIX`): `bucket.py`.
    """
    exporter = make_exporter(name, request or ExportRequest())
    folder = data_directory(directory)
    refuse_foreign(folder)
    dataset = Dataset(folder)
    exporter.check_set(dataset)
    check_target(exporter)
    warned = check_references(exporter)
    address = parse_address(path) if is_remote(path) else None
    if address:
        check_store(address)
    target = Path(path) if address else check_places(Path(path), [Path(directory)])
    linked = are_linked(exporter, folder, None if address else target)
    identify = partial(export_identity, name, exporter, folder, linked=linked)
    identity = identify()
    earlier = None if overwrite else bucket_export(address) if address else find_earlier(target)
    if earlier is not None:
        return earlier_result(spelled(path), target, earlier[0], identity, earlier[1])
    bucket = BucketTarget(address, overwrite=overwrite) if address else None
    if bucket is None:
        check_free(target, overwrite=overwrite)
    with open_engine(workers, few=FEW, **engine) as opened:
        run = _Run(dataset, exporter, opened, progress or (lambda stage, done, total: None), bucket)
        result = _export(run, identify, identity, path, target, overwrite)
    return replace(result, notes=(*warned, *result.notes))


def _export(
    run: "_Run",
    identify: Callable[[], dict[str, Any]],
    identity: Mapping[str, Any],
    path: str | Path,
    target: Path,
    overwrite: bool,
) -> ExportResult:
    dataset, exporter = run.dataset, run.exporter
    tally, sizes, advice = run.check()
    if tally.lost and not exporter.request.lossy:
        raise LossyError(exporter.readers, tally.lost)
    run.exporter = exporter.with_fields(frozenset(tally.present))
    with staging() if run.bucket else new_folder(target, overwrite=overwrite) as stage:
        parts = run.parts(sizes)
        rows, num_images = run.write(parts, stage)
        notes = tuple(note.replace("PATH", spelled(path)) for note in run.exporter.finish(stage, dataset, parts, rows))
        result = ExportResult(target, rows, num_images, tally.lost, tally.warnings, tally.left_out, (*advice, *notes))
        if identify() != identity:
            raise UserError(f"{dataset.directory}: changed while it was exported; run the same command again")
        if run.bucket is None:
            write_record(stage, _record(identity, exporter, result), identity)
        else:
            run.bucket.upload(stage)
            run.bucket.finish({**_record(identity, exporter, result), "identity": identity})
    return result


def _record(identity: Mapping[str, Any], exporter: Exporter, result: ExportResult) -> dict[str, object]:
    return {
        "export": identity["export"],
        "image_refs": exporter.image_refs.value if exporter.image_refs else "inside",
        "rows": dict(result.rows),
        "images": result.images,
        "lost": {code: loss.rows for code, loss in result.lost.items()},
        "warnings": {code: loss.rows for code, loss in result.warnings.items()},
        "not_carried": dict(result.left_out),
    }


@dataclass
class _Run:
    """One export."""

    dataset: Dataset
    exporter: Exporter
    engine: Engine
    progress: Progress
    bucket: BucketTarget | None = None

    @property
    def row_check(self) -> RowCheck:
        """The check of each row."""
        return RowCheck(self.exporter, self.dataset.directory)

    def check(self) -> tuple[Tally, dict[str, npt.NDArray[np.int64]], list[str]]:
        """Go through all rows without writing: counts, the size of each (-1: it is left out), and notes."""
        tally = Tally()
        found: dict[str, list[npt.NDArray[np.int64]]] = {split: [] for split in self.dataset}
        with_images = dict.fromkeys(self.dataset, 0)
        work = _Check(self.dataset, self.row_check)
        for part, (counts, sizes) in self.each(work, self.even_parts(), "check", Shared(self._read())):
            tally.add(counts)
            with_images[part.split] += counts.with_images
            found[part.split].append(np.frombuffer(sizes, np.int64))
        joined = {split: np.concatenate([*sizes, np.empty(0, np.int64)]) for split, sizes in found.items()}
        notes = [
            note
            for split, sizes in joined.items()
            for note in self.row_check.check_totals(split, int((sizes >= 0).sum()), with_images[split])
        ]
        return tally, joined, notes

    def write(self, parts: Sequence[Part], stage: Path) -> tuple[dict[str, int], int]:
        """Write all parts: rows by split, and the number of images."""
        exporter, bucket = self.exporter, self.bucket if self.exporter.sharded else None
        if not exporter.sharded:
            (stage / PARTS).mkdir()
        if bucket is not None:
            bucket.begin(set(map(exporter.shard_of, parts)))
        rows = dict.fromkeys(self.dataset, 0)
        num_images = 0
        work = _Write(self.dataset, exporter, stage, bucket.store.address if bucket else None)
        for part, (count, images, uploaded) in self.each(work, parts, "write", Shared(self._read(), (stage,))):
            rows[part.split] += count
            num_images += images
            if bucket is not None:
                bucket.uploaded[exporter.shard_of(part)] = uploaded
        return rows, self.exporter.count_images(stage, rows, num_images)

    def _read(self) -> tuple[Path, ...]:
        """A file of the directory, by which a machine shows that it sees it."""
        return tuple(split.directory / split.location(0)[0] for split in self.dataset.values() if len(split))[:1]

    def parts(self, sizes: dict[str, npt.NDArray[np.int64]]) -> list[Part]:
        """The parts to be written."""
        limit = self.exporter.cut_bytes
        parts = (
            [part for split, found in sizes.items() for part in _cut(split, found, limit)]
            if self.exporter.sharded
            else self.even_parts()
        )
        return [
            replace(
                part,
                left_out=tuple((np.flatnonzero(sizes[part.split][part.start : part.stop] < 0) + part.start).tolist()),
            )
            for part in parts
        ]

    def even_parts(self) -> list[Part]:
        """Parts with about equal bytes of JSON."""
        return [part for name in self.dataset for part in _cut(name, self.dataset[name].row_bytes(), PART_BYTES)]

    def each(self, work: Any, parts: Sequence[Part], stage: str, shared: Shared) -> Iterator[tuple[Part, Any]]:
        """Each part with its result, in order."""
        total = sum(part.stop - part.start for part in parts)
        done = 0
        with closing(self.engine.run(work, parts, shared=shared)) as results:
            for part, result in results:
                done += part.stop - part.start
                self.progress(stage, done, total)
                yield part, result


def _cut(split: str, sizes: npt.NDArray[np.int64], limit: int) -> list[Part]:
    """Ranges of rows of at most `limit` bytes each, or of one row; a row of negative size is left out."""
    kept = sizes >= 0
    sizes = np.where(kept, sizes, 0)
    if not kept.any():
        return []
    ends = np.cumsum(sizes)
    bounds = [0]
    while bounds[-1] < len(sizes):
        start = bounds[-1]
        before = int(ends[start - 1]) if start else 0
        bounds.append(max(start + 1, int(np.searchsorted(ends, before + limit, side="right"))))
    number = len(bounds) - 1
    return [Part(split, at, number, start, stop) for at, (start, stop) in enumerate(pairwise(bounds))]


@dataclass(frozen=True)
class _Check:
    """Reads the rows of a part and tells what is lost; writes nothing."""

    dataset: Dataset
    rows: RowCheck

    @contextmanager
    def open(self) -> Iterator[Callable[[Part, Tick], tuple[Tally, bytes]]]:
        images = Images(self.dataset)
        consumer = self.rows.make_consumer()
        yield lambda part, tick: self.run(part, images, consumer)

    def run(self, part: Part, images: Images, consumer: Consumer | None) -> tuple[Tally, bytes]:
        tally = Tally()
        sizes = array("q")
        split = self.dataset[part.split]
        row_bytes = split[part.start : part.stop].row_bytes().tolist()
        for number, sample in _samples(split, part):
            verdict = self.rows.check(sample, consumer)
            tally.rows += 1
            tally.with_images += bool(verdict.chat.images) and not verdict.is_left_out
            for reasons, counts in ((verdict.lost, tally.lost), (verdict.warnings, tally.warnings)):
                for code, why in reasons.items():
                    counts.setdefault(code, Loss(0, part.split, sample.id, why)).rows += 1
            for name in verdict.written.left_out:
                tally.left_out[name] = tally.left_out.get(name, 0) + 1
            tally.present.update(optional_fields(verdict.chat))
            if not verdict.is_left_out:
                tally.present.update(self.rows.exporter.marks(sample, images))
            size = self.rows.exporter.cut_size(row_bytes[number - part.start], sample)
            size += sum(map(images.size, sample.images))
            sizes.append(-1 if verdict.is_left_out else size)
        return tally, sizes.tobytes()


@dataclass(frozen=True)
class _Write:
    """Writes the rows of a part, and uploads its shard if the export is in a store.

    Gives the numbers of rows and images, and the uploaded object.
    """

    dataset: Dataset
    exporter: Exporter
    stage: Path
    address: Address | None

    @contextmanager
    def open(self) -> Iterator[Callable[[Part, Tick], tuple[int, int, StoredObject | None]]]:
        images = Images(self.dataset)
        yield lambda part, tick: self.run(part, images)

    def run(self, part: Part, images: Images) -> tuple[int, int, StoredObject | None]:
        if self.address is None:
            return (*self._write(part, images, self.stage), None)
        with TemporaryDirectory(dir=self.stage) as folder:
            counts = self._write(part, images, Path(folder))
            uploaded = upload_shard(self.address, Path(folder), self.exporter.shard_of(part), self.stage)
        return (*counts, uploaded)

    def _write(self, part: Part, images: Images, stage: Path) -> tuple[int, int]:
        count = 0

        def rows() -> Iterator[tuple[Sample, dict[str, Any]]]:
            nonlocal count
            for _, sample in _samples(self.dataset[part.split], part):
                chat = to_chat(sample, lambda name: self.exporter.refer(name, images, stage))
                count += 1
                yield sample, self.exporter.row_format.write(chat).row

        num_images = self.exporter.write_part(part, rows(), images, stage)
        return count, num_images


def _samples(split: Split, part: Part) -> Iterator[tuple[int, Sample]]:
    """Number and sample of each row of a part.

    Raises:
        UserError: a row cannot be read, or its `image_offsets` do not fit its text and images.
    """
    left_out = frozenset(part.left_out)
    rows = range(part.start, part.stop)
    for number, sample in zip(rows, split[part.start : part.stop], strict=True):
        if number in left_out:
            continue
        for turn, value in enumerate(sample.conversations):
            offsets = value.image_offsets
            if offsets and (
                len(offsets) != len(value.images) or list(offsets) != sorted(offsets) or offsets[-1] > len(value.user)
            ):
                file, line = split.location(number)
                raise UserError(
                    f"{split.directory / file}:{line}: conversations[{turn}].image_offsets do not fit the text and its "
                    f"images; `phi3v-data validate {split.directory}` lists all such rows"
                )
        yield number, sample


def optional_fields(chat: Chat) -> Iterator[str]:
    """Optional fields that a conversation has."""
    for name in ("id", "answers", "group", "meta", "rejected", "tools"):
        if getattr(chat, name):
            yield name
    if any(message.weight == 0 for message in chat.messages):
        yield "weight"
