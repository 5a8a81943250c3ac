"""Whether a source still says what an interrupted run was made from; where it does not, that run is not resumed.

Resuming must end with what a fresh run would make of the source as it is now. So each finished sample is compared with
the plan of today, and each file that was read for it with its state, then its digest.
"""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

from phi3v_data.draft import Draft, Item
from phi3v_data.errors import UserError
from phi3v_data.sources.fingerprint import fingerprint
from phi3v_data.sources.item_fingerprint import drawn_fingerprint, item_fingerprint
from phi3v_data.sources.reads import ReadRecord, Roots, folder_state, known_digest, state_of
from phi3v_data.sources.tables import RowLocation
from phi3v_data.writing.journal import Journal
from phi3v_data.writing.parts import item_name, item_roots
from phi3v_data.writing.plan import Plan, read_items
from phi3v_data.writing.records import SourceRecord
from phi3v_data.writing.rows import Slot

Drawn = tuple[Slot, Draft | Item]


class SourceChangedError(UserError):
    """The source says something else than when the interrupted run was begun."""


@dataclass(slots=True)
class SourceCheck:
    """Compares what is read now with what was read then; asks each file only once."""

    out_dir: Path
    roots: Roots
    _states: dict[str, str] = field(default_factory=dict)

    def check_plan(
        self,
        journal: Journal,
        plan: Plan,
        done: AbstractSet[int],
        planned: Sequence[ReadRecord],
        tables: AbstractSet[str] = frozenset(),
    ) -> bool:
        """Compare the files that the plan was made from, then each finished sample.

        Args:
            tables: files that may have other content, though not in a row that a finished sample was made from.

        Returns:
            Whether one of `tables` has other content.

        Raises:
            SourceChangedError: names the first file and item that differ.
        """
        differing = [read for read in planned if self.differs(read)]
        changed = next((read for read in differing if self.roots.locate(read) not in tables), None)
        finished = self._finished(journal, plan, done)
        if changed is not None:
            item = next((key for key, record, digest, _ in finished if record.digest != digest), "")
            raise self._refusal(f"'{self.roots.where(changed)}' of the source", f" (item {item!r})" if item else "")
        for key, record, digest, roots in finished:
            self.check_reads(record, key, roots)
            if record.digest != digest:
                raise self._refusal(f"item {key!r}", " (the converter now reads other values for it)")
        return bool(differing)

    def changed_read(self, journal: Journal) -> ReadRecord | None:
        """The first of the source's files that finished samples were made from that has other content now."""
        reads = (read for kept in journal.finished_parts() for record in kept.sources for read in record.reads)
        return next((read for read in reads if self.roots.locate(read) and read.root and self.differs(read)), None)

    def _finished(
        self, journal: Journal, plan: Plan, done: AbstractSet[int]
    ) -> Iterator[tuple[str, SourceRecord, str, Roots]]:
        """Name, record, digest as of today and roots of each item of the finished parts."""
        for part in plan.parts:
            if part.index not in done:
                continue
            kept = journal.read_part(part.index)
            assert kept is not None
            for item, record in zip(read_items(plan.folder, part), kept.sources, strict=True):
                yield item_name(item), record, item_fingerprint(item, self.roots), item_roots(self.roots, item)

    def check_drafts(self, journal: Journal, parts: int, drafts: Iterator[Drawn]) -> None:
        """Draw the drafts that were kept once more, and compare each.

        Raises:
            SourceChangedError: names the first draft that differs, or says that there are fewer.
        """
        for kept in journal.part_records(parts):
            rows = {row.number for row in kept.rows}
            for record in kept.sources:
                drawn = next(drafts, None)
                if drawn is None:
                    raise self._refusal("the source", f": the generator now ends before draft {record.number}")
                slot, draft = drawn
                digest = drawn_fingerprint(draft, slot.split, self.roots, images=record.number in rows)
                if (slot.number, digest) != (record.number, record.digest):
                    raise self._refusal(slot.item, "")
                self.check_reads(record, slot.item, self.roots)

    def check_reads(self, record: SourceRecord, key: str, roots: Roots) -> None:
        """Compare what was read for one sample.

        Raises:
            SourceChangedError: names the file and the item.
        """
        for read in record.reads:
            if self.differs(read, roots):
                row = f", {read.place}" if read.place else ""
                raise self._refusal(f"'{roots.where(read)}'{row} of the source", f" (item {key!r})")

    def differs(self, read: ReadRecord, roots: Roots | None = None) -> bool:
        """Whether a file, or a row of one, has other content than it had; `roots` of one item where it has its own."""
        path = (roots or self.roots).locate(read)
        state = self._state(path)
        if read.state and read.state == state:
            return False
        if not read.place:
            return known_digest(path, state) != read.digest
        try:
            return fingerprint(RowLocation.of(path, read.place).read()) != read.digest
        except (UserError, ValueError, LookupError, StopIteration):
            return True

    def _state(self, path: str) -> str:
        if path not in self._states:
            self._states[path] = state_of(path) or folder_state(path)
        return self._states[path]

    def _refusal(self, what: str, more: str) -> SourceChangedError:
        return SourceChangedError(
            f"{what} has changed since {self.out_dir} was begun{more}, so it cannot be resumed; put the old content "
            "back, or start over with --overwrite"
        )
