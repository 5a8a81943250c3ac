"""From drafts to the finished parts of a directory.

A `PartWriter` takes the drafts of one part on any worker: images go to the staged `images/`, rows and rejects into
the part's record, which is written last and makes the part count as done.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from json.encoder import encode_basestring
from pathlib import Path

from phi3v_data.draft import Draft
from phi3v_data.errors import Reject
from phi3v_data.messages import short
from phi3v_data.sources.archive import FOLDER, INNER, archive_name, member_name
from phi3v_data.sources.reads import ReadRecord
from phi3v_data.writing.boot import boot_id
from phi3v_data.writing.images import store_image
from phi3v_data.writing.journal import Journal
from phi3v_data.writing.packing import PartImages
from phi3v_data.writing.plan import Planned
from phi3v_data.writing.records import ImageRecord, PartRecord, RejectRecord, RowRecord, SourceRecord
from phi3v_data.writing.rows import RowSettings, Slot, make_row

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(slots=True)
class PartWriter:
    """Collects one part; `scratch` is a file name of this process alone, on the same disk as the journal."""

    journal: Journal
    part: int
    settings: RowSettings
    scratch: Path
    rows: list[RowRecord] = field(default_factory=list)
    rejects: list[RejectRecord] = field(default_factory=list)
    collided: set[str] = field(default_factory=set)
    sources: list[SourceRecord] = field(default_factory=list)
    packed: PartImages | None = None
    source: str = ""  # as JSON

    def __post_init__(self) -> None:
        self.source = encode_basestring(self.settings.source)
        if self.settings.store == "shards":
            self.packed = PartImages(self.journal, self.part, self.scratch.with_name(f"{self.scratch.name}-images"))

    def add(self, slot: Slot, draft: Draft) -> None:
        """Store one draft; what is wrong with it makes it a reject.

        Raises:
            OSError: the disk is full, not writable or failing.
        """
        try:
            line, prepared, notes = make_row(slot, draft, self.settings)
        except Reject as reject:
            self.reject(slot, reject.code, reject.message)
            return
        for image in prepared.values():
            if self.packed is not None:
                self.packed.add(image)
            elif not store_image(image, self.journal, self.scratch):
                self.collided.add(image.record.name)
        images: dict[str, ImageRecord] = {name: image.record for name, image in prepared.items()}
        self.rows.append(RowRecord(slot.number, slot.split, slot.name, line, tuple(images.values()), notes))

    def add_made(self, number: int, split: str, planned: Planned) -> None:
        """Add a row that the plan has made; nothing was read for it but what the plan reads."""
        line = f'{{"id": "{split}-{number:010d}", "source": {self.source}, {planned.made.decode()}'
        self.rows.append(RowRecord(number, split, planned.key, line))
        self.sources.append(SourceRecord(number, planned.digest))

    def reject(self, slot: Slot, reason: str, message: str) -> None:
        """Record that a planned sample cannot be made."""
        code, text = (short(hide_roots(str(words), self.settings.roots)) for words in (reason, message))
        self.rejects.append(RejectRecord(slot.number, slot.split, slot.name, code, text))

    def has_row(self, slot: Slot) -> bool:
        """Whether the draft that was just added became a row, not a reject."""
        return bool(self.rows) and self.rows[-1].number == slot.number

    def made_from(self, slot: Slot, digest: str, reads: Sequence[ReadRecord]) -> None:
        """Record what the planned sample was made from, for the run that resumes this one."""
        self.sources.append(SourceRecord(slot.number, digest, tuple(reads)))

    def finish(self) -> PartRecord:
        """Write the record of the part: from now on the part is done."""
        part_record = PartRecord(
            tuple(self.rows), tuple(self.rejects), tuple(sorted(self.collided)), tuple(self.sources), boot_id()
        )
        if self.packed is not None:
            self.packed.finish()
        self.journal.write_part(self.part, part_record, self.scratch)
        return part_record


def hide_roots(message: str, roots: Sequence[str]) -> str:
    """Remove this machine's folders and memory addresses from a message that is written to the output.

    Paths below one of `roots` become relative to it, the root itself becomes `.`; folders with similar names are kept.
    A file that was unpacked from an archive of the source becomes `ARCHIVE: MEMBER`.
    A relative root is only replaced if a path follows it, since alone it may be any word.
    """
    if roots:
        message = _unpacked_pattern(tuple(roots)).sub(_member_prefix, message)
        message = _roots_pattern(tuple(roots)).sub(lambda found: "." if found["itself"] else "", message)
    return _ADDRESS.sub("", message)


def _member_prefix(found: "re.Match[str]") -> str:
    archive = archive_name(found["work"])
    return member_name(archive, "") if archive else found[0]


@lru_cache(maxsize=8)
def _unpacked_pattern(roots: tuple[str, ...]) -> "re.Pattern[str]":
    """Matches the folder of the members of an archive, below one of `roots`."""
    every = "|".join(re.escape(root) for root in sorted(roots, key=len, reverse=True))
    return re.compile(rf"(?<![\w.~+/-])(?P<work>(?:{every})(?:/{INNER}[0-9a-f]{{16}})?)/{FOLDER}/(?=[^\s'\"])")


@lru_cache(maxsize=8)
def _roots_pattern(roots: tuple[str, ...]) -> "re.Pattern[str]":
    ordered = sorted(roots, key=len, reverse=True)
    every = "|".join(map(re.escape, ordered))
    absolute = "|".join(re.escape(root) for root in ordered if root.startswith("/")) or r"(?!)"
    end = r"(?=$|[\s'\"`:,;)\]}>]|\.(?:\s|$))"
    return re.compile(rf"(?:(?<![\w.~+/-])|(?<=://))(?:(?:{every})/(?=[^\s'\"])|(?P<itself>(?:{absolute})/?){end})")
