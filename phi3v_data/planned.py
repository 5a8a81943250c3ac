"""A planned conversion up to its finished parts: source, plan, identity, and what an earlier run has done of it."""

import json
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from phi3v_data.draft import Converter, DatasetInfo, Item
from phi3v_data.earlier_run import has_digests, run_identity
from phi3v_data.engine.base import Shared, WorkerDiedError
from phi3v_data.engine.make_engine import open_engine
from phi3v_data.engine.worker import WORKER_VARIABLE
from phi3v_data.errors import UserError
from phi3v_data.files import SHARDS
from phi3v_data.messages import shown
from phi3v_data.metric_names import unknown_metric
from phi3v_data.registry import reference, source_file
from phi3v_data.same_source import SourceChangedError, SourceCheck
from phi3v_data.schema import ConverterInfo, Manifest
from phi3v_data.sources.left_out import UsedPaths
from phi3v_data.sources.reads import Reads, Roots, noting
from phi3v_data.sources.source import Source
from phi3v_data.splits import SPLIT_FOLDERS, canonical_split, is_split_name
from phi3v_data.user_code import describe_error
from phi3v_data.writing.journal import Journal
from phi3v_data.writing.output import Output, check_free
from phi3v_data.writing.parts import DISK_ERRORS, ConvertWork, Job, PartCounts, describe_death
from phi3v_data.writing.plan import Part, Plan, spool_plan
from phi3v_data.writing.records import Begun
from phi3v_data.writing.request import Request
from phi3v_data.writing.resume import finished_parts
from phi3v_data.writing.rows import RowSettings


@dataclass(frozen=True, slots=True)
class Prepared:
    """A planned conversion.

    Attributes:
        planned: the files from which the plan was made.
        hidden: folders of this machine that must not be in the output.
    """

    plan: Plan
    info: DatasetInfo
    unlabelled: frozenset[str]
    identity: Mapping[str, Any]
    planned: Reads
    roots: Roots
    hidden: tuple[str, ...]
    warnings: tuple[str, ...]


def prepare(request: Request, journal: Journal, *, shared: bool = False) -> Prepared:
    """Open the source, unpack its archives and plan.

    With `shared`, other processes read what is unpacked, so that nothing of it is replaced.

    Raises:
        UserError: the source cannot be read, or contains no samples.
    """
    converter = request.cls()
    journal.run.mkdir(parents=True, exist_ok=True)
    source = Source.open(request.source, work_dir=journal.source, shared=shared)
    roots = source.roots(journal.source)
    used = UsedPaths()
    with noting(roots) as planned:
        items = guard(lambda: converter.plan(source, request.options), request, "plan")
        plan = spool_plan(
            chain(used.of_items(items), rejected_members(source)),
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
        info = describe(converter, source, request)
    unlabelled = _unlabelled(request, info, plan.counts)
    identity = run_identity(request, unlabelled, plan)
    hidden = hidden_roots(request, source, journal)
    return Prepared(plan, info, unlabelled, identity, planned, roots, hidden, used.left_out(source))


def done_before(request: Request, output: Output, prepared: Prepared, saved: Begun | None) -> set[int]:
    """The parts of an interrupted run that count, after the source was compared; else a new journal is begun."""
    journal, planned = output.journal, prepared.planned
    if saved is not None and has_digests(saved):
        done = finished_parts(journal, prepared.plan.parts)
        check = SourceCheck(request.out_dir, planned.roots)
        try:
            is_other = check.check_plan(journal, prepared.plan, done, saved.planned, planned.tables)
        except SourceChangedError:
            if not request.overwrite:
                raise
        else:
            now = planned.records() if is_other else saved.planned
            journal.write_identity(prepared.identity, overwrite=saved.overwrite, planned=now)
            return done
    overwrite = request.overwrite or (saved is not None and saved.overwrite)
    journal.start(prepared.identity, overwrite=overwrite, planned=planned.records())
    return set()


def run_parts(
    request: Request, prepared: Prepared, journal: Journal, parts: Iterable[Part], *, done: int, total: int
) -> list[tuple[Part, PartCounts]]:
    """Convert parts, each of which is asked for when a worker is free for it; `done` of `total` items were before."""
    ref = reference(request.cls)
    if ref is None and (request.engine != "local" or request.workers != 0):
        raise UserError(
            f"{request.cls.__qualname__} cannot be imported by workers, because it was defined in a function or a "
            "notebook; move it to a file, or pass workers=0 to convert in this process"
        )
    plan, info = prepared.plan, prepared.info
    settings = RowSettings(
        info.name, info.num_crops, request.plain, prepared.unlabelled, prepared.hidden, store=request.store
    )
    job = Job(journal, plan.folder, ref, pickle.dumps(request.options) if ref else b"", settings, prepared.roots)
    here = (request.cls(), request.options) if request.workers == 0 else None
    finished = done

    def report(running: int) -> None:
        request.progress("convert", finished + running, total)

    def died(death: WorkerDiedError) -> PartCounts:
        raise describe_death(death, plan.folder)

    folders = tuple(Path(folder) for _, folder in prepared.roots.folders if os.path.isdir(folder))
    shared = Shared(folders, (journal.run,))
    work, converted = ConvertWork(job, here), []
    with open_engine(request.workers, **request.engine_settings) as engine:
        results = engine.run(work, parts, in_order=False, on_death=died, ticked=report, shared=shared)
        with closing(results):
            for part, counts in results:
                converted.append((part, counts))
                finished += part.count
    return converted


def check_images_free(output: Output, request: Request) -> None:
    """Refuse to replace a folder `shards/` that is not part of the set being overwritten.

    Raises:
        UserError: there is one, and this run makes its own.
    """
    if request.store == "shards":
        check_free(output, SHARDS)


def refuse_in_worker(call: str) -> None:
    """Refuse a conversion that a script starts while a worker imports it.

    Raises:
        UserError: this process is a worker.
    """
    if os.environ.get(WORKER_VARIABLE):
        raise UserError(
            f"{call} was called while a worker imported this script; put the call under if __name__ == '__main__':"
        )


def converter_info(request: Request) -> ConverterInfo:
    """The record of the converter for `dataset.json`."""
    options = request.options.model_dump(mode="json")
    return ConverterInfo(name=request.cls.name, version=request.cls.version, options=options)


def all_notes(request: Request, info: DatasetInfo, manifest: Manifest) -> tuple[str, ...]:
    """Notes of the converter, and those about the shares of the splits."""
    if not request.shares:
        return tuple(info.notes)
    from phi3v_data.sets.shares import share_notes  # with all that validates a set, which few runs need

    grouped = any(first_row(request.out_dir / next(iter(info.files))).get("group") for info in manifest.splits.values())
    return (*info.notes, *share_notes(request.shares, manifest, request.limit, grouped=grouped))


def first_row(path: Path) -> dict[str, Any]:
    """The first row of a file that was just written; without a `Dataset`, which would leave an index beside it."""
    with path.open("rb") as file:
        row: dict[str, Any] = json.loads(file.readline())
    return row


def rejected_members(source: Source) -> Iterator[Item]:
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


def describe(converter: Converter[Any], source: Source, request: Request) -> DatasetInfo:
    """The converter's facts about the set, checked."""
    [info] = guard(lambda: [converter.describe(source, request.options)], request, "describe")
    if isinstance(info, DatasetInfo):
        info = replace(
            info,
            name=request.name or info.name,
            source=request.origin or info.source,
            license=request.license or info.license,
        )
    if not isinstance(info, DatasetInfo) or not is_split_name(info.name):
        raise UserError(f"describe() of {request.cls.name} must return a DatasetInfo whose name can name a file")
    if why := unknown_metric(tuple(info.metrics)):
        raise UserError(f"describe() of {request.cls.name}: metrics: {why}")
    return info


def guard(call: Callable[[], Iterable[Any]], request: Request, what: str) -> Iterable[Any]:
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


def hidden_roots(request: Request, source: Source, journal: Journal) -> tuple[str, ...]:
    """Folders of this machine that must not be in the output; paths in the source are relative to them."""
    folders = {request.out_dir, journal.source, journal.run}
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
