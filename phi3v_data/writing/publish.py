"""Publishes finished parts: merges them, resolves collisions, moves files into place, and writes `dataset.json` last.

Each step can be interrupted and repeated. While files are moved, `publishing.json` exists, and `dataset.json` is a
marker that every reader refuses, so that a mixture is never read, even from a copy without `.phi3v/`.
"""

import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import IO, Any, Literal

import msgspec

from phi3v_data.draft import DatasetInfo
from phi3v_data.errors import UserError
from phi3v_data.files import SHARDS, inside, name_hash, read_json, sync_disk, sync_folder, write_json, write_text
from phi3v_data.messages import counted, shown
from phi3v_data.mounts import is_case_blind
from phi3v_data.schema import ConverterInfo, Manifest, SplitInfo, lines_format
from phi3v_data.sources.reads import by_file
from phi3v_data.splits import file_name, is_data_file, is_plain_name, split_sort_key
from phi3v_data.unfinished import MANIFEST, MARKER, Publication, is_marker, read_publishing
from phi3v_data.writing.claims import remove_claims
from phi3v_data.writing.journal import Journal, remove_tree
from phi3v_data.writing.packing import Assembly
from phi3v_data.writing.records import ImageRecord, RejectRecord, RowRecord
from phi3v_data.writing.rows import WEIGHTS_DROPPED

REJECTS, REMOVED, IMAGES = "rejects.jsonl", "removed.jsonl", "images"


class NothingMadeError(UserError):
    """All planned samples were rejected."""


@dataclass(slots=True)
class SplitFile:
    """Writes the JSONL file of one split."""

    name: str
    file: IO[bytes]
    digest: Any = field(default_factory=hashlib.sha256)
    rows: int = 0
    format: Literal[1, 2] = 1
    images: "array[int]" = field(default_factory=lambda: array("Q"))

    def write(self, lines: bytes, images: Iterable[str], count: int = 1) -> None:
        """Add rows: their lines, each with the line end, the names of their images, and how many rows these are."""
        self.file.write(lines)
        self.digest.update(lines)
        self.rows += count
        if self.format == 1:
            self.format = lines_format(lines)
        for image in images:
            self.images.append(name_hash(image))

    def num_images(self) -> int:
        """Number of distinct images, with 8 bytes of memory each."""
        import numpy as np

        return len(np.unique(np.frombuffer(self.images, dtype=np.uint64))) if self.images else 0

    def info(self, *, labelled: bool) -> SplitInfo:
        """The record of the split for `dataset.json`, once all rows are written."""
        digest = f"sha256:{self.digest.hexdigest()}"
        return SplitInfo(rows=self.rows, images=self.num_images(), files={self.name: digest}, labelled=labelled)


def merge(
    journal: Journal, num_parts: int, info: DatasetInfo, converter: ConverterInfo, unlabelled: frozenset[str] | None
) -> Manifest:
    """Write the files of the splits, the rejects and `dataset.json` into the stage; return the manifest.

    `unlabelled` lists splits without answers; None: all of them.

    Raises:
        NothingMadeError: no sample was converted.
    """
    splits: dict[str, SplitFile] = {}
    reasons: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    first_reject: RejectRecord | None = None
    assembly = Assembly(journal, num_parts) if journal.in_shards() else None
    for path in journal.stage.iterdir():
        if assembly is not None and path.is_dir():
            remove_tree(path)
        elif assembly is not None or path.name != IMAGES:
            path.unlink()
    has_shards = False
    rejects = (journal.stage / REJECTS).open("wb")
    try:
        for rows, rejected in _settle(journal, num_parts, assembly):
            for reject in rejected:
                rejects.write(_reject_line(reject))
                reasons[reject.reason] += 1
                first_reject = first_reject or reject
            for split, group in groupby(rows, _split_of):
                if split not in splits:
                    name = file_name(info.name, split)
                    splits[split] = SplitFile(name, inside(journal.stage, name).open("wb"))
                records = tuple(group)
                lines = "".join([f"{row.row}\n" for row in records]).encode()
                splits[split].write(lines, [image.name for row in records for image in row.images], len(records))
            for row in rows:
                if row.notes:
                    notes.update(row.notes)
                if assembly is not None:
                    assembly.take(row)
        has_shards = assembly is not None and assembly.finish()
    finally:
        rejects.close()
        if assembly is not None:
            assembly.close()
        for split in splits.values():
            split.file.close()
    if not splits:
        assert first_reject is not None
        item = first_reject.item
        where = "" if first_reject.message.lstrip("'").startswith(item) else f"{item}: "
        error = NothingMadeError(
            f"none of {counted(sum(reasons.values()), 'planned sample')} could be converted "
            f"({', '.join(f'{count} {reason}' for reason, count in sorted(reasons.items()))}); "
            f"the first, {where}{first_reject.message}"
        )
        for note in info.notes:
            error.add_note(note)
        raise error
    if not reasons:
        (journal.stage / REJECTS).unlink()
    manifest = Manifest(
        format=2 if has_shards else max((split.format for split in splits.values()), default=1),
        name=info.name,
        task=info.task,
        metrics=tuple(info.metrics),
        splits={
            name: splits[name].info(labelled=unlabelled is not None and name not in unlabelled)
            for name in sorted(splits, key=split_sort_key)
        },
        converter=converter,
        classes=tuple(info.classes),
        num_crops=info.num_crops,
        source=info.source,
        license=info.license,
        rejects=dict(sorted(reasons.items())),
        notes=dict(sorted(notes.items())),
    )
    write_text(journal.stage / MANIFEST, manifest.to_json())
    return manifest


_number_of, _split_of = attrgetter("number"), attrgetter("split")


def _reject_line(record: RejectRecord) -> bytes:
    value = {
        "id": f"{record.split}-{record.number:010d}",
        "item": record.item,
        "reason": record.reason,
        "message": record.message,
    }
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _settle(
    journal: Journal, num_parts: int, assembly: Assembly | None
) -> Iterator[tuple[Sequence[RowRecord], Sequence[RejectRecord]]]:
    """Yield rows and rejects of each part in the order of numbering.

    A name with two contents belongs to the first row that uses it.
    """
    fold: Callable[[str], str] = str
    if assembly is not None:
        disputed = assembly.disputed
    elif not journal.images.exists():
        disputed = set()  # without an image; the records need not be read twice
    else:
        disputed = {name for part in range(num_parts) for name in journal.read_collided(part)}
        fold = str.lower if disputed and is_case_blind(journal.run) else str  # two spellings may be one file
        disputed = set(map(fold, disputed))
    owners: dict[str, ImageRecord] = {}
    orphans: set[str] = set()
    for part, part_record in enumerate(journal.part_records(num_parts)):
        if assembly is not None:
            assembly.begin(part, part_record)
        rows, rejects = sorted(part_record.rows, key=_number_of), sorted(part_record.rejects, key=_number_of)
        if not disputed:
            yield rows, rejects
            continue
        kept = []
        for record in rows:
            wanted = [image for image in record.images if fold(image.name) in disputed]
            lost = next((image for image in wanted if owners.get(fold(image.name), image) != image), None)
            if lost is None:
                owners.update({fold(image.name): image for image in wanted})
                kept.append(record)
                continue
            orphans.update(fold(image.name) for image in record.images)
            message = f"the image name {lost.name!r} is used by an earlier sample, with other content"
            rejects.append(RejectRecord(record.number, record.split, record.item, "image-name-collision", message))
        yield kept, sorted(rejects, key=_number_of)
    if disputed and assembly is None:
        _install_owners(journal, owners)
        _remove_orphans(journal, num_parts, owners, orphans, fold)


def _install_owners(journal: Journal, owners: dict[str, ImageRecord]) -> None:
    """Replace the content of a name by that of its owner, if another row's was written first."""
    for image in owners.values():
        target = inside(journal.images, image.name)
        if not target.exists() or hashlib.sha256(target.read_bytes()).hexdigest() != image.digest:
            aside = journal.collisions / image.digest
            scratch = journal.run / "owner"
            scratch.write_bytes(aside.read_bytes())
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # it may have another letter case
            os.replace(scratch, target)


def _remove_orphans(
    journal: Journal, num_parts: int, owners: dict[str, ImageRecord], orphans: set[str], fold: Callable[[str], str]
) -> None:
    """Remove images that only rejected rows used."""
    left = orphans - owners.keys()
    for part_record in journal.part_records(num_parts):
        for record in part_record.rows:
            if not any(owners.get(fold(image.name), image) != image for image in record.images):
                left.difference_update(fold(image.name) for image in record.images)
    for name in left:
        path = inside(journal.images, name)
        path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder == journal.images or any(folder.iterdir()):
                break
            folder.rmdir()


def refuse_dropped_weights(manifest: Manifest, lossy: bool) -> None:
    """Refuse to publish rows whose weights were dropped, unless that was asked for.

    Raises:
        UserError: there are such rows.
    """
    if (num_weighted := manifest.notes.get(WEIGHTS_DROPPED, 0)) and not lossy:
        raise UserError(
            f"{counted(num_weighted, 'row')} with turns of weight 0, which --plain cannot write: run the same command "
            "with --lossy to drop the weights, so that all answers are trained, or without --plain and with --overwrite"
        )


def publish(journal: Journal, replaced: Iterable[str]) -> None:
    """Move the stage into DIR; `replaced` are top-level files of the finished set that is being overwritten."""
    sync_disk(journal.stage)
    names = sorted(path.name for path in journal.stage.iterdir() if path.name != MANIFEST)
    write_json(journal.publishing, {"install": names, "remove": sorted(set(replaced) - set(names))})
    finish_publishing(journal)


def finish_publishing(journal: Journal) -> None:
    """Carry out or complete the moves of `publishing.json`; do nothing if it is absent.

    Raises:
        UserError: phi3v cannot have written an entry, or a file in it is missing; nothing was moved.
    """
    todo = read_publication(journal)
    if todo is None:
        return
    out_dir = journal.out_dir
    if (journal.stage / MANIFEST).exists():
        write_json(journal.marker, MARKER)  # not next to the files, where a kill would leave it behind
        os.replace(journal.marker, out_dir / MANIFEST)
        sync_folder(out_dir)
        journal.complete.unlink(missing_ok=True)
        for name in todo.remove:
            _move_away(inside(out_dir, name, link_ok=True), journal)
        for name in todo.install:
            if (staged := inside(journal.stage, name)).exists():
                target = inside(out_dir, name, link_ok=True)
                _move_away(target, journal)
                os.rename(staged, target)
        sync_folder(out_dir)
        os.replace(journal.stage / MANIFEST, out_dir / MANIFEST)
        sync_folder(out_dir)
    begun = journal.begun(journal.identity)
    if begun is not None:
        planned = msgspec.to_builtins(by_file(begun.planned))
        write_json(journal.complete, {"identity": begun.identity} | ({"planned": planned} if planned else {}))
    journal.discard()
    for folder in (journal.old, journal.source, journal.run, journal.root / "run"):  # the last of a run without slices
        remove_tree(folder)
    remove_claims(journal)
    journal.publishing.unlink(missing_ok=True)


def read_publication(journal: Journal) -> Publication | None:
    """Read and check `publishing.json`; None if absent.

    Raises:
        UserError: phi3v cannot have written an entry, or a file in it is missing.
    """
    path = journal.publishing
    todo = read_publishing(path)
    if todo is None:
        return None
    for name in (*todo.install, *todo.remove):
        if name not in (IMAGES, SHARDS, REJECTS, REMOVED) and not (is_plain_name(name) and is_data_file(name)):
            raise UserError(
                f"{path}: {shown(name)} is not the name of a file of a set; nothing was moved or removed: remove "
                f"{journal.hidden} if it came with the directory from elsewhere"
            )
    staged = (journal.stage / MANIFEST).exists()
    there = {path.name for folder in (journal.stage, journal.out_dir) if folder.exists() for path in folder.iterdir()}
    if staged and (lost := [name for name in todo.install if name not in there]):
        raise UserError(
            f"{journal.out_dir}: cannot be completed, {lost[0]} is missing from it; convert again to a new folder"
        )
    if not staged and _is_marked(journal.out_dir):
        raise UserError(
            f"{journal.out_dir}: cannot be completed, {journal.stage / MANIFEST} is gone; convert again to a new folder"
        )
    return todo


def _is_marked(out_dir: Path) -> bool:
    manifest = read_json(out_dir / MANIFEST)
    return manifest is None or is_marker(manifest)


def _move_away(path: Path, journal: Journal) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_tree(journal.old)
        os.rename(path, journal.old)
        remove_tree(journal.old)
    else:
        path.unlink(missing_ok=True)
