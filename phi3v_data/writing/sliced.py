"""A directory whose parts are shared by several processes (`--slice K/N`), which need no lock: see `claims.py`.

The first process plans alone and writes `slices/plan.json`; the others then compare their plan with it. Each converts
the parts of its share that it can claim. Who finds all parts done claims the end, and publishes.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from phi3v_data.dataset import read_manifest
from phi3v_data.draft import DatasetInfo
from phi3v_data.engine.witness import PACKAGES
from phi3v_data.errors import UserError
from phi3v_data.files import MAX_JSON, read_regular, sync_disk, write_json
from phi3v_data.lock import join_lock
from phi3v_data.messages import counted, join_words, shown
from phi3v_data.schema import ConverterInfo, Manifest
from phi3v_data.splits import is_split_name
from phi3v_data.writing.claims import Claims, Watch, join, kept_elsewhere, remove_claims
from phi3v_data.writing.differences import differences
from phi3v_data.writing.journal import Journal, remove_tree
from phi3v_data.writing.output import busy, inspect, leave, make_folders, remove_if_empty, told_obstacles
from phi3v_data.writing.plan import Part
from phi3v_data.writing.publish import NothingMadeError, finish_publishing, merge, publish, refuse_dropped_weights
from phi3v_data.writing.resume import finished_parts

State: TypeAlias = Literal["finished", "first", "joined", "empty"]


@dataclass(frozen=True, slots=True)
class Slice:
    """Share `number` (from 1) of `count` of the samples, in whole parts."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, parts: Sequence[Part]) -> list[Part]:
        """The share: consecutive parts, as neighbours often read the same file of the source."""
        numbers = numbers_of([part.count for part in parts], self.count)
        return [part for part, number in zip(parts, numbers, strict=True) if number == self.number]


def numbers_of(samples: Sequence[int], slices: int) -> list[int]:
    """The slice (from 1) of each part, by the place of its middle in all samples, as parts differ in size."""
    total = 2 * sum(samples)
    return [(2 * end - count) * slices // total + 1 for count, end in zip(samples, accumulate(samples), strict=True)]


def parse_slice(text: str) -> Slice:
    """Read `K/N`.

    Raises:
        UserError: it is something else.
    """
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UserError(f"--slice {shown(text)} is not K/N, share K of N with K from 1 to N; write for example 2/8")
    return Slice(int(number), int(count))


class SlicedPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`slices/plan.json`: what is needed to publish without the source.

    `slices` is the N of the process that joined last; `parts` has the planned samples of each part; `packages` are the
    versions of `PACKAGES` where the first process ran.
    """

    slices: int
    parts: tuple[int, ...]
    info: DatasetInfo
    converter: dict[str, Any]
    unlabelled: tuple[str, ...] = ()
    lossy: bool = False
    packages: tuple[str, ...] = ()

    def as_parts(self) -> list[Part]:
        """The parts, without the location of their items."""
        parts: list[Part] = []
        first = 0
        for index, count in enumerate(self.parts):
            parts.append(Part(index, "", "", (), count, first))
            first += count
        return parts

    def slices_of(self, parts: Sequence[int]) -> dict[str, int]:
        """The slices to which these parts belong, with the number of each one's parts."""
        numbers = numbers_of(self.parts, self.slices)
        return dict(Counter(str(Slice(numbers[part], self.slices)) for part in sorted(parts)))


@dataclass(frozen=True, slots=True)
class Joined:
    """One process of several in a directory."""

    journal: Journal
    claims: Claims
    state: State


@contextmanager
def join_output(
    out_dir: Path, label: str, *, begin: bool = True, waiting: Callable[[], None] = lambda: None
) -> Iterator[Joined]:
    """Join the processes that share a directory; it is created if needed, and restored if nothing was begun.

    With the state `first`, the others wait until this process has called `begin_plan` or has ended; `waiting` is called
    meanwhile. With `begin` false, a directory in which nothing was begun is `empty`.

    Raises:
        UserError: the directory is not writable, contains other files, or another kind of run is writing to it.
    """
    journal = Journal(out_dir)
    with told_obstacles(out_dir):
        inspect(journal, overwrite=False)
        if journal.is_finished():
            yield Joined(journal, Claims(journal, "", Watch(journal)), "finished")
            return
        created = make_folders(journal.hidden)
        try:
            with join_lock(journal.lock, busy(out_dir)) as is_alone:
                try:
                    with join(journal, label) as claims:
                        yield Joined(claims.journal, claims, _enter(claims, begin, waiting))
                finally:
                    _leave(journal, is_alone)
        finally:
            for folder in reversed(created):
                remove_if_empty(folder)


def _enter(claims: Claims, begin: bool, waiting: Callable[[], None]) -> State:
    """Wait until the plan is there, or until it is for this process to make it."""
    journal = claims.journal
    while True:
        if state := _state(claims):
            return state
        if not begin and not journal.publishing.exists():
            return "empty"
        if claims.claim("begin") == "ours" and not journal.publishing.exists():
            return _state(claims) or "first"
        waiting()
        claims.wait()


def _state(claims: Claims) -> State | None:
    journal = claims.journal
    if journal.is_finished():
        return "finished"
    if journal.publishing.exists():
        if claims.claim("end") == "ours":
            finish_publishing(journal)
            return "finished"
        return None
    return "joined" if journal.sliced.exists() and journal.identity.exists() else None


def _leave(journal: Journal, is_alone: Callable[[], bool]) -> None:
    """Remove what no other process needs: everything if nothing was begun, the claims if all is finished."""
    if journal.is_finished():
        remove_claims(journal)
        return
    if journal.publishing.exists() or (journal.sliced.exists() and journal.identity.exists()):
        return
    with suppress(OSError):  # there are others
        journal.owners.rmdir()
        if is_alone():
            remove_tree(journal.slices)
            leave(journal)


def begin_plan(journal: Journal, plan: SlicedPlan) -> None:
    """Let the others join; the identity must have been written."""
    write_json(journal.sliced, msgspec.to_builtins(plan))


def read_plan(journal: Journal) -> SlicedPlan:
    """Read `slices/plan.json`.

    Raises:
        UserError: phi3v cannot have written it.
    """
    try:
        plan = msgspec.json.decode(read_regular(journal.sliced, MAX_JSON), type=SlicedPlan)
        ConverterInfo.model_validate(plan.converter)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise journal.foreign(journal.sliced, error) from None
    if not is_split_name(plan.info.name) or not plan.slices > 0 or min(plan.parts, default=0) < 1:
        raise journal.foreign(journal.sliced, "it has a name or a number that cannot be")
    return plan


def join_plan(journal: Journal, plan: SlicedPlan) -> tuple[str, ...]:
    """Compare the plan of this process with that of the first one; record the number of slices if it is another.

    Returns a warning if packages that decide bytes have other versions here.

    Raises:
        UserError: they are not the same.
    """
    saved = read_plan(journal)
    theirs, ours = (
        msgspec.json.decode(msgspec.json.encode(each)) | {"slices": 0, "lossy": False, "packages": []}
        for each in (saved, plan)
    )
    if changed := differences(theirs, ours):
        raise UserError(
            f"{journal.out_dir} is being written by other slices with other settings: {join_words(changed, 3)}; give "
            "all slices the same settings, or choose another --out_dir"
        )
    if (saved.slices, saved.lossy) != (plan.slices, plan.lossy):
        kept = msgspec.structs.replace(plan, packages=saved.packages)
        write_json(journal.sliced, msgspec.to_builtins(kept))
    others = [
        f"{name} {here or 'not'} installed, the first slice had {there or 'none'}"
        for name, there, here in zip(PACKAGES, saved.packages, plan.packages, strict=False)
        if there != here
    ]
    if not others:
        return ()
    return (f"this machine has {join_words(others, 3)}: images that are encoded again may have other bytes than there",)


def missing_parts(journal: Journal, plan: SlicedPlan) -> list[int]:
    """Parts that are not done."""
    try:
        there = {path.name for path in journal.parts.iterdir()}
    except FileNotFoundError:
        there = set()
    return [index for index in range(len(plan.parts)) if journal.part_path(index).name not in there]


def describe_missing(plan: SlicedPlan, missing: Sequence[int]) -> str:
    """`4 of 12 parts are missing, of slices 1/3 (3) and 2/3 (1)`."""
    slices = [f"{name} ({count:,})" for name, count in plan.slices_of(missing).items()]
    verb = "is" if len(missing) == 1 else "are"
    word = "slice" if len(slices) == 1 else "slices"
    return f"{len(missing):,} of {counted(len(plan.parts), 'part')} {verb} missing, of {word} {join_words(slices, 6)}"


def leave_parts(claims: Claims, parts: Sequence[int]) -> None:
    """Let parts that this process converted, or verified, reach the disk, and record that they did."""
    if parts:
        sync_disk(claims.journal.stage)
        claims.keep(parts)


def publish_if_done(
    claims: Claims, plan: SlicedPlan, *, lossy: bool, check: Callable[[], None] | None = None
) -> Manifest | list[int]:
    """Publish if all parts are done, in one process only; wait for it in the others.

    `check` is called before anything is moved. Returns the manifest, or the parts that are missing.

    Raises:
        UserError: the set cannot be published.
    """
    journal = claims.journal
    while True:
        if journal.is_finished():
            return _manifest(journal)
        moving = journal.publishing.exists()
        if not moving and not journal.identity.exists():
            if journal.is_finished() or journal.publishing.exists():
                continue
            raise UserError(
                f"{journal.out_dir}: no sample could be converted, or the directory was removed; see what the other "
                "slices printed"
            )
        if not moving and (missing := missing_parts(journal, plan)):
            if journal.is_finished() or journal.publishing.exists():
                continue
            return missing
        if claims.claim("end") == "ours":
            if damaged := _publish(claims, plan, lossy, check):
                slices = join_words([f"--slice {name}" for name in plan.slices_of(damaged)], 6)
                raise UserError(
                    f"{journal.out_dir}: parts that had been converted were lost or damaged ({len(damaged):,} of "
                    f"{len(plan.parts):,}); run the same command again with {slices}"
                )
            continue
        claims.wait()


def _publish(claims: Claims, plan: SlicedPlan, lossy: bool, check: Callable[[], None] | None) -> list[int]:
    """Publish, as the only process; return the parts that turned out to be damaged."""
    journal = claims.journal
    if journal.is_finished():
        return []
    if journal.publishing.exists():
        finish_publishing(journal)
        return []
    parts = plan.as_parts()
    finished = finished_parts(journal, parts, kept_elsewhere(journal))
    if len(finished) < len(parts):
        return [part.index for part in parts if part.index not in finished]
    if check is not None:
        check()
    converter = ConverterInfo.model_validate(plan.converter)
    try:
        manifest = merge(journal, len(parts), plan.info, converter, frozenset(plan.unlabelled))
    except NothingMadeError:
        journal.discard()
        raise
    refuse_dropped_weights(manifest, lossy)
    if claims.claim("end") == "ours":  # still: another process may have taken this one for dead
        publish(journal, ())
    return []


def _manifest(journal: Journal) -> Manifest:
    manifest = read_manifest(journal.out_dir)
    if manifest is None:
        raise UserError(f"{journal.out_dir}: another process has removed the set meanwhile")
    return manifest


def finish_slices(out_dir: Path) -> tuple[Manifest, bool]:
    """Publish a directory whose slices are done; needs no source.

    Returns its manifest, and whether there was anything left to do.

    Raises:
        UserError: parts are missing; names the slices to run again.
    """
    with join_output(out_dir, "--finish", begin=False) as joined:
        if joined.state == "finished":
            return _manifest(joined.journal), True
        if joined.state == "empty":
            raise UserError(f"{out_dir}: there is nothing to finish, no slice has planned its parts yet")
        plan = read_plan(joined.journal)
        done = publish_if_done(joined.claims, plan, lossy=plan.lossy)
        if isinstance(done, Manifest):
            return done, True
        others = joined.claims.others()
        running = f" (running: {join_words(others, 2)})" if others else ""
        raise UserError(
            f"{out_dir} cannot be finished: {describe_missing(plan, done)}{running}; run the same command again with "
            "--slice for each of them"
        )
