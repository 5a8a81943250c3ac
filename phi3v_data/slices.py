"""One share of a conversion that several processes do together, on one machine or on many with a shared file system.

Each process plans for itself, and compares its plan with that of the first. So nothing has to be sent from one to
another, and every process says when it has other settings or another source. See `writing/sliced.py`.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from phi3v_data.conversion import ConvertResult
from phi3v_data.draft import GeneratorConverter, Options
from phi3v_data.earlier_run import already_complete, interrupted, starts_over
from phi3v_data.engine.witness import package_versions
from phi3v_data.errors import UserError
from phi3v_data.lock import wait_for_workers
from phi3v_data.planned import (
    Prepared,
    all_notes,
    converter_info,
    done_before,
    prepare,
    refuse_in_worker,
    run_parts,
)
from phi3v_data.registry import ConverterLike
from phi3v_data.same_source import SourceCheck
from phi3v_data.schema import Manifest
from phi3v_data.splits import file_name
from phi3v_data.writing.claims import Claims
from phi3v_data.writing.journal import remove_tree
from phi3v_data.writing.output import Output, check_free, finished_output
from phi3v_data.writing.plan import Part
from phi3v_data.writing.request import ConvertSettings, Progress, Request, make_request
from phi3v_data.writing.resume import kept_parts
from phi3v_data.writing.sliced import (
    Joined,
    Slice,
    SlicedPlan,
    begin_plan,
    describe_missing,
    join_output,
    join_plan,
    leave_parts,
    parse_slice,
    publish_if_done,
)


@dataclass(frozen=True, slots=True)
class SliceResult:
    """Result of one slice.

    Attributes:
        samples: rows of the slice, made by this process or found made.
        rejects: planned samples of it that could not be converted.
        resumed: planned samples of it that were done before.
        notes: of the converter, such as the format that it guessed.
        missing: of the whole set, the parts that are still to be converted, in words; empty if there are none.
        whole: the whole set, if it is complete.
    """

    out_dir: Path
    slice: Slice
    samples: int = 0
    rejects: int = 0
    resumed: int = 0
    missing: str = ""
    whole: ConvertResult | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def convert_slice(
    converter: ConverterLike,
    source: str | Path | None,
    out_dir: str | Path,
    slice: str,  # noqa: A002 - the word of the command line
    *,
    options: Options | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **settings: Unpack[ConvertSettings],
) -> SliceResult:
    """Convert one share of a source; whichever process finishes the last part publishes the directory.

    Args:
        slice: `K/N`, share K of N, from 1. Interrupted, the same call resumes, and so does any other N.
        converter, source, out_dir, options, progress, settings: as for `convert`, the same for all slices.

    Raises:
        UserError: anything that keeps the slice from its end; the message says what to do.
    """
    refuse_in_worker("convert_slice()")
    share = parse_slice(slice)
    request = make_request(converter, source, out_dir, options=options, progress=progress, settings=settings)
    if request.overwrite:
        raise UserError(
            "--overwrite cannot be combined with --slice, as each slice would start over: choose another --out_dir, or "
            "replace the set without --slice"
        )
    if request.engine != "local":
        raise UserError(f"--slice needs no --engine {request.engine}: leave out one of the two, both share the parts")
    if issubclass(request.cls, GeneratorConverter):
        raise UserError(
            f"{request.cls.name} is a generator, which has no plan that slices could share; write a Converter with "
            "plan() and convert(), or convert without --slice"
        )

    def waiting() -> None:
        request.progress("wait for the slice that plans first", 0, None)

    with join_output(request.out_dir, f"slice {share}", waiting=waiting) as joined:
        if joined.state == "finished":
            return _finished(request, share, joined)
        try:
            return _convert(request, share, joined)
        except FileNotFoundError:  # of its own folder, if others took this process for dead
            if joined.journal.is_finished():
                return _finished(request, share, joined)
            joined.claims.check_alive()
            raise


def _finished(request: Request, share: Slice, joined: Joined) -> SliceResult:
    """Compare a finished directory with what this slice would make."""
    with finished_output(joined.journal) as output:
        prepared = prepare(request, output.journal)
        manifest = already_complete(request, output, prepared.identity, prepared.planned, prepared.plan)
        if manifest is None:
            raise UserError(f"{request.out_dir}: another process has removed the set meanwhile")
        notes = tuple(prepared.info.notes)
        whole = ConvertResult(request.out_dir, manifest, already_complete=True, notes=notes)
    return SliceResult(request.out_dir, share, whole=whole, warnings=prepared.warnings, notes=notes)


def _convert(request: Request, share: Slice, joined: Joined) -> SliceResult:
    journal = joined.journal
    output = Output(journal, None)
    prepared = prepare(request, journal, shared=joined.state == "joined")
    plan = SlicedPlan(
        share.count,
        tuple(part.count for part in prepared.plan.parts),
        prepared.info,
        converter_info(request).model_dump(mode="json"),
        tuple(sorted(prepared.unlabelled)),
        request.lossy,
        package_versions(),
    )
    warnings = prepared.warnings
    joining = joined.state == "joined"
    saved = interrupted(request, output, prepared.identity, prepared.planned, joining=joining)
    mine = share.of(prepared.plan.parts)
    damaged: set[int] = set()
    if joining:
        warnings += join_plan(journal, plan)
        damaged.update(part.index for part in mine if journal.part_path(part.index).exists())
        done = {part.index: (len(kept.rows), len(kept.rejects)) for part, kept in kept_parts(journal, mine)}
        damaged -= done.keys()
        assert saved is not None
        check = SourceCheck(request.out_dir, prepared.planned.roots)
        check.check_plan(journal, prepared.plan, done.keys(), saved.planned)
    else:
        wait_for_workers(journal.workers_lock, required=False)
        remove_tree(journal.root / "run")
        journal.sliced.unlink(missing_ok=True)
        done_before(request, output, prepared, saved)
        for split in prepared.plan.counts:
            check_free(output, file_name(prepared.info.name, split))
        done = {part.index: (len(kept.rows), len(kept.rejects)) for part, kept in kept_parts(journal, mine)}
        begin_plan(journal, plan)
    resumed = sum(part.count for part in mine if part.index in done)
    todo = [part for part in mine if part.index not in done]
    converted = _convert_share(request, prepared, joined.claims, todo, damaged, resumed)
    leave_parts(joined.claims, sorted({*done, *converted}))
    counts = [*done.values(), *converted.values()]
    result = SliceResult(
        request.out_dir,
        share,
        samples=sum(rows for rows, _ in counts),
        rejects=sum(rejects for _, rejects in counts),
        resumed=resumed,
        warnings=(*warnings, *(() if joining else starts_over(saved))),
        notes=tuple(prepared.info.notes),
    )
    ours = {*done, *converted}
    others = {part.index for part in prepared.plan.parts} - ours

    def check_others() -> None:
        """Compare the source with the parts that other processes made, perhaps days ago."""
        request.progress("finish", 0, 1)
        begun = journal.begun(journal.identity)
        assert begun is not None
        roots = prepared.planned.roots
        SourceCheck(request.out_dir, roots).check_plan(journal, prepared.plan, others, begun.planned)

    outcome = publish_if_done(joined.claims, plan, lossy=request.lossy, check=check_others)
    if not isinstance(outcome, Manifest):
        return replace(result, missing=describe_missing(plan, outcome))
    request.progress("finish", 1, 1)
    whole = ConvertResult(request.out_dir, outcome, resumed=resumed, notes=all_notes(request, prepared.info, outcome))
    return replace(result, whole=whole)


def _convert_share(
    request: Request,
    prepared: Prepared,
    claims: Claims,
    todo: Sequence[Part],
    damaged: Set[int],
    resumed: int,
) -> dict[int, tuple[int, int]]:
    """Convert what nobody has done or claimed; rows and rejects of each part.

    Parts of a process that seems to have died are taken over, once that is certain. Records of `damaged` parts do not
    count.
    """
    total = resumed + sum(part.count for part in todo)
    converted: dict[int, tuple[int, int]] = {}
    finished = resumed
    while todo:
        unclear: list[Part] = []
        claimed = _claimed(claims, todo, damaged, unclear)
        for part, counts in run_parts(request, prepared, claims.journal, claimed, done=finished, total=total):
            converted[part.index] = counts.rows, counts.rejects
            finished += part.count
        todo = unclear
        if todo:
            request.progress("wait for a slice that does not answer", len(todo), None)
            claims.wait()
    request.progress("convert", total, total)
    return converted


def _claimed(claims: Claims, parts: Sequence[Part], damaged: Set[int], unclear: list[Part]) -> Iterator[Part]:
    """The parts that this process has to convert; those of which it is not yet known are put into `unclear`."""
    for part in parts:
        record = claims.journal.part_path(part.index)
        if record.exists() and part.index not in damaged:
            continue
        claim = claims.claim(f"part-{part.index:06d}")
        if claim == "unclear":
            unclear.append(part)
        elif claim == "ours" and (part.index in damaged or not record.exists()):
            yield part
