"""What every engine runs: one part, by one function, wherever it may be.

An engine gets a `Job` and parts, and calls `run_part` for each on some process. A part leaves its pictures and its
receipt in the directory; only counts travel back.
"""

import errno
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from phi3v_data.draft import Converter, Item, Options
from phi3v_data.errors import Reject, UserError
from phi3v_data.registry import ConverterRef, source_file
from phi3v_data.sources.fingerprint import item_fingerprint
from phi3v_data.sources.reads import Roots, noting
from phi3v_data.user_code import describe_error
from phi3v_data.writing.journal import Journal
from phi3v_data.writing.plan import Part, read_items
from phi3v_data.writing.writer import PartWriter, RowSettings, Slot

FATAL = (MemoryError, ImportError, NameError, SyntaxError)
"""Errors of the program or the machine: every sample would fail, so they end the run instead of rejecting samples."""

DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EFBIG}
)

Tick = Callable[[int], None]
"""Called with the place of an item in its part before the item is converted."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs besides the part; picklable."""

    out_dir: Path
    plan_folder: Path
    converter: ConverterRef | None
    options: bytes  # pickled; its class can be imported once the converter is loaded
    settings: RowSettings
    roots: Roots


@dataclass(frozen=True, slots=True)
class PartCounts:
    """What one part came to."""

    part: int
    rows: int
    rejects: int


class Engine(Protocol):
    """Runs parts; `report` is called now and then with the number of items done so far."""

    def run(self, job: Job, parts: Sequence[Part], report: Callable[[int], None]) -> None:
        """Run all parts; returns when each has its receipt.

        Raises:
            UserError: a worker died, a fatal error in the converter.
            OSError: the disk is full, not writable or failing.
        """


def load_converter(job: Job) -> tuple[Converter[Any], Options]:
    """Make the converter and its options again in a worker."""
    assert job.converter is not None
    cls = job.converter.load()
    return cls(), pickle.loads(job.options)


def run_part(job: Job, converter: Converter[Any], options: Options, part: Part, tick: Tick) -> PartCounts:
    """Convert the items of one part and write its receipt."""
    journal = Journal(job.out_dir)
    writer = PartWriter(journal, part.index, job.settings, journal.run / f"scratch-{os.getpid()}-{part.index}")
    for index, item in enumerate(read_items(job.plan_folder, part)):
        tick(index)
        slot = Slot(part.first + index, part.split, item.key, item.group)
        with noting(item_roots(job.roots, item)) as reads:
            if item.path:
                reads.file(os.path.abspath(item.path))
            convert_item(writer, slot, converter, options, item)
        writer.made_from(slot, item_fingerprint(item, job.roots), reads.records())
    receipt = writer.finish()
    return PartCounts(part.index, len(receipt.rows), len(receipt.rejects))


def item_roots(roots: Roots, item: Item) -> Roots:
    """The roots for one item: its path may be a folder, below which more is read."""
    return roots.plus("item", item.path) if item.path and os.path.isdir(item.path) else roots


def convert_item(writer: PartWriter, slot: Slot, converter: Converter[Any], options: Options, item: Item) -> None:
    """Convert one item; what goes wrong in the converter is recorded as a reject, or ends the run if it must."""
    if item.reject:
        writer.reject(slot, item.reject, item.message)
        return
    try:
        draft = converter.convert(item, options)
    except Reject as reject:
        writer.reject(slot, reject.code, reject.message)
    except UserError:
        raise
    except FATAL as error:
        raise UserError(
            f"item {item.key}: {describe_error(error, source_file(type(converter)))}; "
            "this would hit every sample, so the run ends here: mend it and run the same command again"
        ) from error
    except Exception as error:  # whatever a user's code raises is told in the rejects, with file and line
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        writer.reject(slot, "converter-error", describe_error(error, source_file(type(converter))))
    else:
        writer.add(slot, draft)
