"""The one path from a source to a finished directory, for Python and the command line alike.

find converter -> open DIR (lock) -> open source -> plan (spooled) -> identity -> parts (engine) -> merge -> publish
"""

import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Unpack

from phi3v_data.draft import Converter, DatasetInfo, Draft, GeneratorConverter, Item, Options
from phi3v_data.earlier_run import already_complete, has_digests, interrupted, run_identity, starts_over
from phi3v_data.engine.base import WorkerDiedError
from phi3v_data.engine.make_engine import make_engine
from phi3v_data.engine.worker import WORKER_VARIABLE
from phi3v_data.errors import UserError
from phi3v_data.messages import counted, shown
from phi3v_data.metric_names import unknown_metric
from phi3v_data.registry import (
    ConverterLike,
    reference,
    source_file,
)
from phi3v_data.same_source import Drawn, SourceChangedError, SourceCheck
from phi3v_data.schema import ConverterInfo, Manifest
from phi3v_data.sources.fingerprint import drawn_fingerprint
from phi3v_data.sources.left_out import UsedPaths
from phi3v_data.sources.reads import Reads, Roots, noting
from phi3v_data.sources.source import Source
from phi3v_data.splits import SPLIT_FOLDERS, canonical_split, file_name, is_split_name, split_problem
from phi3v_data.user_code import describe_error
from phi3v_data.writing.journal import Begun
from phi3v_data.writing.output import Output, check_free, open_output
from phi3v_data.writing.output import finish as finish_output
from phi3v_data.writing.parts import DISK_ERRORS, ConvertWork, Job, PartCounts, describe_death
from phi3v_data.writing.plan import UNNAMED_SPLIT, Plan, choose_split, part_size, spool_plan
from phi3v_data.writing.publish import NothingMadeError, merge, publish
from phi3v_data.writing.request import ConvertSettings, Progress, Request, make_request
from phi3v_data.writing.resume import finished_in_order, finished_parts
from phi3v_data.writing.writer import WEIGHTS_DROPPED, PartWriter, RowSettings, Slot


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
    if os.environ.get(WORKER_VARIABLE):
        raise UserError(
            "convert() was called while a worker imported this script; put the call under if __name__ == '__main__':"
        )
    request = make_request(converter, source, out_dir, options=options, progress=progress, settings=settings)
    with open_output(request.out_dir, overwrite=request.overwrite) as output:
        if issubclass(request.cls, GeneratorConverter):
            return _convert_generator(request, output)
        return _convert_planned(request, output)


def _convert_planned(request: Request, output: Output) -> ConvertResult:
    journal = output.journal
    converter = request.cls()
    journal.run.mkdir(parents=True, exist_ok=True)
    source = Source.open(request.source, work_dir=journal.source)
    roots = source.roots(journal.source)
    used = UsedPaths()
    with noting(roots) as planned:
        items = _guard(lambda: converter.plan(source, request.options), request, "plan")
        plan = spool_plan(
            chain(used.of_items(items), _rejected_members(source)),
            journal.run,
            roots=roots,
            shares=request.shares,
            seed=request.seed,
            limit=request.limit,
            progress=lambda count: request.progress("plan", count, None),
        )
        if not plan.num_items:
            raise UserError(f"{request.cls.name} found no samples in {request.source}: {source.describe()}")
        request.progress("plan", plan.num_items, plan.num_items)
        info = _describe(converter, source, request)
    warnings = used.left_out(source)
    unlabelled = _unlabelled(request, info, plan.counts)
    identity = run_identity(request, unlabelled, plan)
    if (manifest := already_complete(request, output, identity, planned)) is not None:
        return ConvertResult(
            request.out_dir, manifest, already_complete=True, warnings=warnings, notes=tuple(info.notes)
        )
    saved = interrupted(request, output, identity, planned)
    warnings += starts_over(saved)
    done = _done_before(request, output, identity, plan, planned, saved)
    for split in plan.counts:
        check_free(output, file_name(info.name, split))
    settings = RowSettings(info.name, info.num_crops, request.plain, unlabelled, _roots(request, source, output))
    resumed = sum(part.count for part in plan.parts if part.index in done)
    _convert_parts(request, plan, done, resumed, settings, roots)
    return _finish(request, output, len(plan.parts), info, unlabelled, resumed, warnings)


def _convert_parts(
    request: Request, plan: Plan, done: Set[int], resumed: int, settings: RowSettings, roots: Roots
) -> None:
    """Convert the parts that are not done; `resumed` counts the items of those that are."""
    ref = reference(request.cls)
    if ref is None and (request.engine != "local" or request.workers != 0):
        raise UserError(
            f"{request.cls.__qualname__} cannot be imported by workers, because it was defined in a function or a "
            "notebook; move it to a file, or pass workers=0 to convert in this process"
        )
    job = Job(request.out_dir, plan.folder, ref, pickle.dumps(request.options) if ref else b"", settings, roots)
    here = (request.cls(), request.options) if request.workers == 0 else None
    finished = resumed

    def report(running: int) -> None:
        request.progress("convert", finished + running, plan.num_items)

    def died(death: WorkerDiedError) -> PartCounts:
        raise describe_death(death, plan.folder)

    engine = make_engine(request.engine, request.workers)
    parts = (part for part in plan.parts if part.index not in done)
    results = engine.run(ConvertWork(job, here), parts, in_order=False, on_death=died, ticked=report)
    with closing(results):
        for part, _ in results:
            finished += part.count
    request.progress("convert", plan.num_items, plan.num_items)


def _done_before(
    request: Request, output: Output, identity: Mapping[str, Any], plan: Plan, planned: Reads, saved: Begun | None
) -> set[int]:
    """The parts of an interrupted run that count, after the source was compared; else a new journal is begun."""
    journal = output.journal
    if saved is not None and has_digests(saved):
        done = finished_parts(journal, plan.parts)
        check = SourceCheck(request.out_dir, planned.roots)
        try:
            check.check_plan(journal, plan, done, saved.planned)
        except SourceChangedError:
            if not request.overwrite:
                raise
        else:
            journal.write_identity(identity, overwrite=saved.overwrite, planned=saved.planned)
            return done
    overwrite = request.overwrite or (saved is not None and saved.overwrite)
    journal.start(identity, overwrite=overwrite, planned=planned.records())
    return set()


def _convert_generator(request: Request, output: Output) -> ConvertResult:
    """One process, drafts as they come; a resumed run draws the finished ones again and compares them."""
    journal = output.journal
    converter = request.cls()
    assert isinstance(converter, GeneratorConverter)
    journal.run.mkdir(parents=True, exist_ok=True)
    source = Source.open(request.source, work_dir=journal.source)
    info = _describe(converter, source, request)
    identity = run_identity(request, None, None)
    if (manifest := already_complete(request, output, identity)) is not None:
        return ConvertResult(request.out_dir, manifest, already_complete=True)
    roots = source.roots(journal.source)
    hidden = _roots(request, source, output)
    settings = RowSettings(info.name, info.num_crops, request.plain, frozenset(), hidden, request.unlabelled)
    used = UsedPaths()

    def draw() -> Iterator[Drawn]:
        drawn = used.of_drafts(_guard(lambda: converter.drafts(source), request, "the generator"))
        return _numbered(chain(drawn, _rejected_members(source)), request)

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


def _rejected_members(source: Source) -> Iterator[Item]:
    """Items for the members of the source's archives that could not be unpacked; to be asked for when all is listed."""
    counts: Counter[str] = Counter()
    for archive, member in source.rejected:
        folders = [piece.lower() for piece in member.name.split("/")[:-1]]
        split = next((SPLIT_FOLDERS[folder] for folder in folders if folder in SPLIT_FOLDERS), "train")
        counts[member.name] += 1
        again = f" ({counts[member.name]})" if counts[member.name] > 1 else ""
        yield Item(
            split,
            f"{archive}: {member.name}{again}",
            reject="archive-member",
            message=f"the member {shown(member.name)} of {archive} is not unpacked: {member.why}",
        )


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
    converter = ConverterInfo(
        name=request.cls.name, version=request.cls.version, options=request.options.model_dump(mode="json")
    )
    try:
        manifest = merge(journal, num_parts, info, converter, unlabelled)
    except NothingMadeError:
        journal.discard()
        raise
    if (num_weighted := manifest.notes.get(WEIGHTS_DROPPED, 0)) and not request.lossy:
        raise UserError(
            f"{counted(num_weighted, 'row')} with turns of weight 0, which --plain cannot write: run the same command "
            "with --lossy to drop the weights, so that all answers are trained, or without --plain and with --overwrite"
        )
    publish(journal, output.owned)
    request.progress("finish", 1, 1)
    notes = tuple(info.notes)
    if request.shares:
        from phi3v_data.sets.shares import share_notes  # with all that validates a set, which few runs need

        notes += tuple(share_notes(request.shares, manifest, request.limit))
    return ConvertResult(request.out_dir, manifest, resumed=resumed, warnings=warnings, notes=notes)


def _describe(converter: Converter[Any], source: Source, request: Request) -> DatasetInfo:
    [info] = _guard(lambda: [converter.describe(source, request.options)], request, "describe")
    if request.name and isinstance(info, DatasetInfo):
        info = replace(info, name=request.name)
    if not isinstance(info, DatasetInfo) or not is_split_name(info.name):
        raise UserError(f"describe() of {request.cls.name} must return a DatasetInfo whose name can name a file")
    if why := unknown_metric(tuple(info.metrics)):
        raise UserError(f"describe() of {request.cls.name}: metrics: {why}")
    return info


def _guard(call: Callable[[], Iterable[Any]], request: Request, what: str) -> Iterable[Any]:
    """Run a user's code; what it raises ends the run with its type, message and line, not with our traceback."""
    try:
        yield from call()
    except (UserError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        reason = describe_error(error, source_file(request.cls))
        raise UserError(f"{what} of {request.cls.name} failed: {reason}") from error


def _unlabelled(request: Request, info: DatasetInfo, counts: Mapping[str, int]) -> frozenset[str]:
    """Splits whose answers stay empty: under --unlabelled those that the source has none for, else none."""
    if not request.unlabelled:
        return frozenset()
    if info.unlabelled is None:
        return frozenset(counts)
    if request.shares and info.unlabelled:
        raise UserError(
            f"--unlabelled and --split do not go together here: {', '.join(info.unlabelled)} of the source has no "
            "answers and would be mixed with what has; convert without --unlabelled, or without --split"
        )
    return frozenset(map(canonical_split, info.unlabelled)) & counts.keys()


def _roots(request: Request, source: Source, output: Output) -> tuple[str, ...]:
    """Folders of this machine that must not be in the output; paths in the source are relative to them."""
    folders = {request.out_dir, output.journal.source, output.journal.run}
    spelled = Path(request.source).expanduser()
    if spelled.exists():
        here = spelled if spelled.is_dir() else spelled.parent
        folders |= {here.absolute(), Path(os.path.abspath(here))}
        if not here.is_absolute() and not os.path.lexists(source.root / here):  # else it may be a folder in the source
            folders.add(here)
    if source.root.is_absolute():
        folders.add(source.root if source.root.is_dir() else source.root.parent)
    folders |= {folder.resolve() for folder in folders}
    return tuple(str(folder) for folder in folders if folder.name)


def finish(out_dir: str | Path) -> ConvertResult:
    """Complete a directory whose files were being moved into place when its run was killed; needs no source.

    Serves `convert`, `split`, `merge` and `clean` alike, and gives the bytes that the same command would.

    Raises:
        UserError: nothing of the kind is there, or another process is writing it.
    """
    path = Path(os.path.abspath(Path(out_dir).expanduser()))
    manifest, completed = finish_output(path)
    return ConvertResult(path, manifest, already_complete=not completed)
