"""Finds the parts of an interrupted run that can be kept.

A part is kept if its record can be read, matches the planned samples, and all its images exist with the correct size.
Files written before the machine was restarted may contain zeros after a power failure, so their digests must match,
too, as must those of files that changed after the record was written. Images that are in no such record are removed:
they belong to interrupted parts.
"""

import hashlib
import os
from array import array
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from phi3v_data.files import name_hash
from phi3v_data.writing.boot import boot_id
from phi3v_data.writing.journal import Journal
from phi3v_data.writing.packing import has_images as has_part_images
from phi3v_data.writing.packing import remove_unknown as remove_unknown_parts
from phi3v_data.writing.plan import Part
from phi3v_data.writing.records import ImageRecord, PartRecord


def finished_parts(journal: Journal, parts: Sequence[Part], verified: Set[int] = frozenset()) -> set[int]:
    """Numbers of the planned parts that can be kept; all traces of the others are removed.

    `parts` are all parts of the plan. Of parts in `verified` no image file is looked at, only the one file of a part in
    shards.
    """
    known = array("Q")
    finished: set[int] = set()
    for part, kept in kept_parts(journal, parts, verified):
        finished.add(part.index)
        known.extend(name_hash(image.name) for row in kept.rows for image in row.images)
    for part in parts:
        if part.index not in finished:
            journal.part_path(part.index).unlink(missing_ok=True)
    _remove_unknown(journal.images, known)
    remove_unknown_parts(journal, finished)
    return finished


def kept_parts(
    journal: Journal, parts: Sequence[Part], verified: Set[int] = frozenset()
) -> Iterator[tuple[Part, PartRecord]]:
    """The parts that can be kept, with their records; nothing is removed."""
    disputed = {name for part in parts if (kept := journal.read_part(part.index)) for name in kept.collided}
    in_shards = journal.in_shards()
    for part in parts:
        kept = journal.read_part(part.index)
        numbers = set(range(part.first, part.first + part.count))
        if not kept or _numbers(kept) != numbers:
            continue
        is_verified = part.index in verified
        if (is_verified and not in_shards) or _is_whole(journal, part.index, kept, disputed, in_shards, is_verified):
            yield part, kept


def finished_in_order(journal: Journal) -> tuple[int, int]:
    """Number of consecutive finished parts from the first, and the number of samples in their records.

    A run without a plan continues from there; the parts may have been written with another size.
    """
    parts = samples = 0
    known = array("Q")
    in_shards = journal.in_shards()
    while kept := journal.read_part(parts):
        numbers = set(range(samples, samples + kept.num_items))
        if not numbers or _numbers(kept) != numbers:
            break
        if not _is_whole(journal, parts, kept, set(kept.collided), in_shards):
            break
        known.extend(name_hash(image.name) for row in kept.rows for image in row.images)
        parts += 1
        samples += kept.num_items
    for path in journal.parts.iterdir():
        if path.name >= f"{parts:06d}":
            path.unlink()
    _remove_unknown(journal.images, known)
    remove_unknown_parts(journal, range(parts))
    return parts, samples


def _numbers(kept: PartRecord) -> set[int]:
    """Numbers of the samples that a part converted or rejected; empty if their sources are not recorded."""
    numbers = {row.number for row in kept.rows} | {reject.number for reject in kept.rejects}
    return numbers if [source.number for source in kept.sources] == sorted(numbers) else set()


def _is_whole(
    journal: Journal, part: int, kept: PartRecord, disputed: set[str], in_shards: bool, is_verified: bool = False
) -> bool:
    """Whether the images of a part are there; `is_verified` if it is known that they reached the disk."""
    verify = not is_verified and (not kept.boot or kept.boot != boot_id())
    try:
        since = os.stat(journal.part_path(part)).st_ctime_ns
    except FileNotFoundError:  # removed meanwhile by another process
        return False
    if in_shards:
        return has_part_images(journal, part, kept, since=since, verify=verify)
    return _has_images(journal, kept, disputed, since, verify)


def _has_images(journal: Journal, kept: PartRecord, disputed: set[str], since: int, verify: bool) -> bool:
    verified: set[ImageRecord] = set()
    for row in kept.rows:
        for image in row.images:
            path = journal.images / image.name
            aside = [journal.collisions / image.digest] if image.name in disputed else []
            try:
                found = os.stat(path)
                size, changed = found.st_size, found.st_ctime_ns > since
            except (FileNotFoundError, NotADirectoryError):
                if not any(place.is_file() for place in aside):  # a worker that died had claimed the name
                    return False
                size, changed = image.size, False
            if size != image.size and not aside:
                return False
            if (verify or changed) and image not in verified:
                if not any(_digest(place) == image.digest for place in (path, *aside)):
                    return False
                verified.add(image)
    return True


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def _remove_unknown(root: Path, known: "array[int]") -> None:
    """Remove files with an unknown name; known names take 8 bytes of memory each, as hashes."""
    import numpy as np

    hashes = np.unique(np.frombuffer(known, dtype=np.uint64)) if known else np.empty(0, dtype=np.uint64)
    for folder, _, names in os.walk(root, topdown=False):
        paths = [Path(folder) / name for name in names]
        found = np.array([name_hash(path.relative_to(root).as_posix()) for path in paths], dtype=np.uint64)
        for path, there in zip(paths, np.isin(found, hashes, assume_unique=False), strict=True):
            if not there:
                path.unlink()
