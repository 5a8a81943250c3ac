"""Which parts of an interrupted run still count.

A part counts if its receipt reads, is about the planned samples, and all its pictures lie there with the right size.
Pictures that no such receipt names are removed: they belong to parts that were cut short.
"""

import os
from array import array
from collections.abc import Sequence
from pathlib import Path

import xxhash

from phi3v_data.writing.journal import Journal, Receipt
from phi3v_data.writing.plan import Part


def finished_parts(journal: Journal, parts: Sequence[Part]) -> set[int]:
    """Numbers of the planned parts that need not be done again; the others leave no trace."""
    disputed = {name for part in parts if (receipt := journal.read_receipt(part.index)) for name in receipt.collided}
    finished: set[int] = set()
    known = array("Q")
    for part in parts:
        receipt = journal.read_receipt(part.index)
        numbers = set(range(part.first, part.first + part.count))
        if receipt and _numbers(receipt) == numbers and _has_pictures(journal, receipt, disputed):
            finished.add(part.index)
            known.extend(_hash(image.name) for row in receipt.rows for image in row.images)
        else:
            journal.receipt_path(part.index).unlink(missing_ok=True)
    _remove_unknown(journal.images, known)
    return finished


def finished_in_order(journal: Journal) -> int:
    """How many parts in a row, from the first, are done: what a run without a plan can rely on."""
    count = 0
    known = array("Q")
    while (receipt := journal.read_receipt(count)) and _has_pictures(journal, receipt, set(receipt.collided)):
        known.extend(_hash(image.name) for row in receipt.rows for image in row.images)
        count += 1
    for path in journal.parts.iterdir():
        if path.name >= f"{count:06d}":
            path.unlink()
    _remove_unknown(journal.images, known)
    return count


def _numbers(receipt: Receipt) -> set[int]:
    return {row.number for row in receipt.rows} | {reject.number for reject in receipt.rejects}


def _has_pictures(journal: Journal, receipt: Receipt, disputed: set[str]) -> bool:
    for row in receipt.rows:
        for image in row.images:
            try:
                size = os.stat(journal.images / image.name).st_size
            except (FileNotFoundError, NotADirectoryError):
                return False
            if size != image.size and image.name not in disputed:
                return False
    return True


def _hash(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode())


def _remove_unknown(root: Path, known: "array[int]") -> None:
    """Remove files whose name's hash is not known; 8 bytes of memory for each that is."""
    import numpy as np

    hashes = np.unique(np.frombuffer(known, dtype=np.uint64)) if known else np.empty(0, dtype=np.uint64)
    for folder, _, names in os.walk(root, topdown=False):
        paths = [Path(folder) / name for name in names]
        found = np.array([_hash(path.relative_to(root).as_posix()) for path in paths], dtype=np.uint64)
        for path, there in zip(paths, np.isin(found, hashes, assume_unique=False), strict=True):
            if not there:
                path.unlink()
