"""Parts as tasks of an engine: the items of a part are converted on some process, wherever it may be.

A part leaves its images and its record in the directory; only counts travel back.
"""

import errno
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from phi3v_data.draft import Converter, Item, Options
from phi3v_data.engine.base import Tick, WorkerDiedError
from phi3v_data.errors import Reject, UserError
from phi3v_data.files import process_name
from phi3v_data.lock import shared_lock
from phi3v_data.messages import counted
from phi3v_data.registry import ConverterRef, source_file
from phi3v_data.sources.archive import as_member
from phi3v_data.sources.reads import Roots, noting
from phi3v_data.user_code import describe_error
from phi3v_data.writing.journal import Journal
from phi3v_data.writing.plan import Part, read_items, read_planned
from phi3v_data.writing.rows import RowSettings, Slot
from phi3v_data.writing.writer import PartWriter

FATAL = (MemoryError, ImportError, NameError, SyntaxError)
"""Errors of the program or the machine: every sample would fail, so they end the run instead of rejecting samples."""

DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EFBIG}
)


@dataclass(frozen=True, slots=True)
class Job:
    """Shared data of all parts of a conversion; picklable."""

    journal: Journal
    plan_folder: Path
    converter: ConverterRef | None
    options: bytes  # pickled; its class can be imported once the converter is loaded
    settings: RowSettings
    roots: Roots


@dataclass(frozen=True, slots=True)
class PartCounts:
    """Rows and rejects of one part."""

    rows: int
    rejects: int


@dataclass(frozen=True, slots=True)
class ConvertWork:
    """Work of an engine whose tasks are parts.

    `loaded`: the converter and its options, for an engine that stays in this process; else each worker loads them, and
    is counted as a worker of the directory until it ends.
    """

    job: Job
    loaded: tuple[Converter[Any], Options] | None = None

    @contextmanager
    def open(self) -> Iterator[Callable[[Part, Tick], PartCounts]]:
        """Load the converter."""
        if self.loaded is not None:
            yield partial(run_part, self.job, *self.loaded)
            return
        assert self.job.converter is not None
        journal = self.job.journal
        with shared_lock(journal.workers_lock, required=journal.own is None):
            cls = self.job.converter.load()
            yield partial(run_part, self.job, cls(), pickle.loads(self.job.options))


def describe_death(death: WorkerDiedError, plan_folder: Path) -> UserError:
    """The sentence about a worker that died, with the item that it converted."""
    if death.index is None:
        first = item_name(next(read_items(plan_folder, death.task)))
        where = f"on a part of {counted(death.task.count, 'item')} that begins with {first}"
    else:
        where = f"while it converted {item_name(next(islice(read_items(plan_folder, death.task), death.index, None)))}"
    return UserError(
        f"a worker {death.how} {where}; what was finished is kept: run the same command to resume, "
        "with fewer --workers if memory ran out"
    )


def run_part(job: Job, converter: Converter[Any], options: Options, part: Part, tick: Tick) -> PartCounts:
    """Convert the items of one part and write its record."""
    scratch = job.journal.run / f"scratch-{process_name()}-{part.index}"
    writer = PartWriter(job.journal, part.index, job.settings, scratch)
    takes_made = not job.settings.plain and not job.settings.is_unlabelled(part.split)
    for index, planned in enumerate(chain.from_iterable(read_planned(job.plan_folder, part))):
        if planned.made and takes_made:
            writer.add_made(part.first + index, part.split, planned)
            continue
        tick(index)
        item = planned.item()
        slot = Slot(part.first + index, part.split, item_name(item), item.group)
        with noting(item_roots(job.roots, item)) as reads:
            if item.path:
                reads.file(os.path.abspath(item.path))
            convert_item(writer, slot, converter, options, item)
        writer.made_from(slot, planned.digest, reads.records())
    record = writer.finish()
    return PartCounts(len(record.rows), len(record.rejects))


def item_name(item: Item) -> str:
    """The item as messages and rejects name it: its key, or `ARCHIVE: MEMBER` if the item is a file in an archive."""
    if not item.reject and item.path.endswith(f"/{item.key}"):
        return as_member(item.path) or item.key
    return item.key


def item_roots(roots: Roots, item: Item) -> Roots:
    """The roots for one item: its path may be a folder, below which more is read."""
    return _with_folder(roots, item.path) if item.path and os.path.isdir(item.path) else roots


@lru_cache(maxsize=16)
def _with_folder(roots: Roots, folder: str) -> Roots:
    """The roots with the folder of an item; many items may have the same."""
    return roots.plus("item", folder)


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
            f"item {item_name(item)}: {describe_error(error, source_file(type(converter)))}; "
            "this would hit every sample, so the run ends here: fix it and run the same command again"
        ) from error
    except (Exception, SystemExit) as error:  # whatever a user's code raises is in the rejects, with file and line
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        writer.reject(slot, "converter-error", describe_error(error, source_file(type(converter))))
    else:
        writer.add(slot, draft)
