"""The one path from a source to a finished directory, for Python and the command line alike.

find converter -> open DIR (lock) -> open source -> plan (spooled) -> identity -> parts (engine) -> merge -> publish
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Unpack

from phi3v_data.draft import DatasetInfo, Draft, GeneratorConverter, Item, Options
from phi3v_data.earlier_run import already_complete, has_digests, interrupted, run_identity, starts_over
from phi3v_data.errors import UserError
from phi3v_data.planned import (
    all_notes,
    check_images_free,
    converter_info,
    describe,
    done_before,
    guard,
    hidden_roots,
    prepare,
    refuse_in_worker,
    rejected_members,
    run_parts,
)
from phi3v_data.registry import ConverterLike
from phi3v_data.remote.address import refuse_address
from phi3v_data.same_source import Drawn, SourceChangedError, SourceCheck
from phi3v_data.schema import Manifest
from phi3v_data.sources.item_fingerprint import drawn_fingerprint
from phi3v_data.sources.left_out import UsedPaths
from phi3v_data.sources.reads import noting
from phi3v_data.sources.source import Source
from phi3v_data.splits import canonical_split, file_name, split_problem
from phi3v_data.writing.finish import finish as finish_output
from phi3v_data.writing.output import Output, check_free, open_output
from phi3v_data.writing.plan import UNNAMED_SPLIT, choose_split, part_size
from phi3v_data.writing.publish import NothingMadeError, merge, publish, refuse_dropped_weights
from phi3v_data.writing.request import ConvertSettings, Progress, Request, make_request
from phi3v_data.writing.resume import finished_in_order
from phi3v_data.writing.rows import RowSettings, Slot
from phi3v_data.writing.writer import PartWriter


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """Result of a conversion; `resumed` counts planned samples that an earlier, interrupted run had finished."""

    out_dir: Path
    manifest: Manifest
    already_complete: bool = False
    resumed: int = 0
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """Rows written."""
        return sum(split.rows for split in self.manifest.splits.values())

    @property
    def images(self) -> int:
        """Images written, those of one split counted once."""
        return sum(split.images for split in self.manifest.splits.values())

    @property
    def rejects(self) -> int:
        """Planned samples that could not be converted; `manifest.rejects` has them by reason."""
        return sum(self.manifest.rejects.values())


def convert(
    converter: ConverterLike,
    source: str | Path | None = None,
    out_dir: str | Path = "",
    *,
    options: Options | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **settings: Unpack[ConvertSettings],
) -> ConvertResult:
    """Convert a source into a conversations directory; interrupted, the same call resumes.

    Args:
        converter: a name, `FILE.py:NAME`, or a class.
        source: a folder, an archive, a Hub id; left out, the converter's own Hub id.
        options: the converter's options, as its model or as a dict.
        progress: called as `progress(stage, done, total)`.
        settings: as the options of `phi3v-data convert`: `limit`, `split`, `seed`, `workers`, ... (`ConvertSettings`).

    Raises:
        UserError: anything that keeps the run from its end; the message says what to do.
    """
    refuse_in_worker("convert()")
    request = make_request(converter, source, out_dir, options=options, progress=progress, settings=settings)
    with open_output(request.out_dir, overwrite=request.overwrite) as output:
        if issubclass(request.cls, GeneratorConverter):
            return _convert_generator(request, output)
        return _convert_planned(request, output)


def _convert_planned(request: Request, output: Output) -> ConvertResult:
    prepared = prepare(request, output.journal)
    plan, info, identity, planned = prepared.plan, prepared.info, prepared.identity, prepared.planned
    warnings = prepared.warnings
    if (manifest := already_complete(request, output, identity, planned, plan)) is not None:
        return ConvertResult(
            request.out_dir, manifest, already_complete=True, warnings=warnings, notes=tuple(info.notes)
        )
    saved = interrupted(request, output, identity, planned)
    warnings += starts_over(saved)
    done = done_before(request, output, prepared, saved)
    check_images_free(output, request)
    for split in plan.counts:
        check_free(output, file_name(info.name, split))
    resumed = sum(part.count for part in plan.parts if part.index in done)
    parts = (part for part in plan.parts if part.index not in done)
    run_parts(request, prepared, output.journal, parts, done=resumed, total=plan.num_items)
    request.progress("convert", plan.num_items, plan.num_items)
    return _finish(request, output, len(plan.parts), info, prepared.unlabelled, resumed, warnings)


def _convert_generator(request: Request, output: Output) -> ConvertResult:
    """One process, drafts as they come; a resumed run draws the finished ones again and compares them."""
    journal = output.journal
    converter = request.cls()
    assert isinstance(converter, GeneratorConverter)
    journal.run.mkdir(parents=True, exist_ok=True)
    source = Source.open(request.source, work_dir=journal.source)
    info = describe(converter, source, request)
    identity = run_identity(request, None, None)
    if (manifest := already_complete(request, output, identity)) is not None:
        return ConvertResult(request.out_dir, manifest, already_complete=True)
    roots = source.roots(journal.source)
    hidden = hidden_roots(request, source, journal)
    settings = RowSettings(
        info.name, info.num_crops, request.plain, frozenset(), hidden, request.unlabelled, request.store
    )
    used = UsedPaths()

    def draw() -> Iterator[Drawn]:
        drawn = used.of_drafts(guard(lambda: converter.drafts(source), request, "the generator"))
        return _numbered(chain(drawn, rejected_members(source)), request)

    drafts = draw()
    part = resumed = 0
    saved = interrupted(request, output, identity)
    if saved is None or not has_digests(saved):
        journal.start(identity, overwrite=request.overwrite or (saved is not None and saved.overwrite))
    else:
        part, resumed = finished_in_order(journal)
        try:
            SourceCheck(request.out_dir, roots).check_drafts(journal, part, drafts)
        except SourceChangedError:
            if not request.overwrite:
                raise
            journal.start(identity, overwrite=True)
            drafts, part, resumed = draw(), 0, 0
    check_images_free(output, request)
    splits: set[str] = set()
    while batch := list(islice(drafts, part_size(None))):
        writer = PartWriter(journal, part, settings, journal.run / "scratch")
        for slot, draft in batch:
            if slot.split not in splits:
                check_free(output, file_name(info.name, slot.split))
                splits.add(slot.split)
            with noting(roots) as reads:
                if isinstance(draft, Item):
                    writer.reject(slot, draft.reject, draft.message)
                else:
                    writer.add(slot, draft)
            digest = drawn_fingerprint(draft, slot.split, roots, images=writer.has_row(slot))
            writer.made_from(slot, digest, reads.records())
        writer.finish()
        part += 1
        request.progress("convert", batch[-1][0].number + 1, None)
    if not part:
        raise UserError(f"{request.cls.name} found no samples in {request.source}: {source.describe()}")
    warnings = (*used.left_out(source), *starts_over(saved))
    return _finish(request, output, part, info, None if request.unlabelled else frozenset(), resumed, warnings)


def _numbered(drafts: Iterable[Draft | Item], request: Request) -> Iterator[Drawn]:
    """Number what a generator yields, within the limit of each split."""
    counts: dict[str, int] = {}
    number = 0
    for index, draft in enumerate(drafts):
        if not isinstance(draft, Draft | Item) or (isinstance(draft, Item) and not draft.reject):
            raise UserError(f"{request.cls.name} must yield Draft objects; number {index} is {draft!r:.200}")
        split = canonical_split(draft.split or "train")
        if request.shares:
            split = choose_split(draft.group or str(index), request.shares, request.seed)
        if problem := split_problem(split):
            split = UNNAMED_SPLIT
            draft = Item(split, f"draft {index}", reject="row-invalid", message=f"draft {index}: the split {problem}")
        counts[split] = counts.get(split, 0) + 1
        if request.limit is not None and counts[split] > request.limit:
            continue
        yield Slot(number, split, draft.key if isinstance(draft, Item) else f"draft {index}", draft.group), draft
        number += 1


def _finish(
    request: Request,
    output: Output,
    num_parts: int,
    info: DatasetInfo,
    unlabelled: frozenset[str] | None,
    resumed: int,
    warnings: tuple[str, ...],
) -> ConvertResult:
    journal = output.journal
    request.progress("finish", 0, 1)
    try:
        manifest = merge(journal, num_parts, info, converter_info(request), unlabelled)
    except NothingMadeError:
        journal.discard()
        raise
    refuse_dropped_weights(manifest, request.lossy)
    publish(journal, output.owned)
    request.progress("finish", 1, 1)
    return ConvertResult(
        request.out_dir, manifest, resumed=resumed, warnings=warnings, notes=all_notes(request, info, manifest)
    )


def finish(out_dir: str | Path) -> ConvertResult:
    """Complete a directory whose slices are done, or whose files were being moved into place when its run was killed.

    It needs no source. Serves `convert`, `split`, `merge` and `clean` alike, and gives the bytes that the same command
    would.

    Raises:
        UserError: nothing of the kind is there, slices are missing, or another process is writing it.
    """
    refuse_address(out_dir, "--finish")
    path = Path(os.path.abspath(Path(out_dir).expanduser()))
    manifest, completed = finish_output(path)
    return ConvertResult(path, manifest, already_complete=not completed)
