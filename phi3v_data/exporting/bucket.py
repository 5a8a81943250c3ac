"""An export in a store: complete as soon as its record is there, which is written last.

    marker (names of all objects of the export)  ->  the old record is removed  ->  objects  ->  what is left of an
    earlier export is removed  ->  record  ->  the marker is removed

Readers refuse a folder with a marker and without a record. A store cannot rename, so an export that replaces another
one is not readable until it is complete. A killed upload leaves no object: a store shows one when its last byte is
there.
"""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from phi3v_data.errors import UserError
from phi3v_data.exporting.folder import SHARDS
from phi3v_data.messages import counted, shown
from phi3v_data.remote.address import Address
from phi3v_data.remote.export_record import (
    MARKER,
    RECORD,
    ExportRecord,
    read_marker,
    read_record,
    write_marker,
    write_record,
)
from phi3v_data.remote.store import Store, StoredObject, open_store

COMPLETE = "complete"
"""The `output` of a record in a store, whose etags tell whether objects have changed."""

AT_ONCE = 16
"""Small files that are uploaded at the same time."""


def check_store(address: Address) -> None:
    """Refuse a store to which nothing can be exported.

    Raises:
        UserError: the Hub.
    """
    if address.protocol == "hf":
        raise UserError(
            f"{address}: on the Hub each file would be a commit; export to a folder, then `hf upload` it in one"
        )


class BucketTarget:
    """The folder of an export in a store, for one that replaces what is there.

    Raises:
        UserError: it has something else than an export, or an export that is not to be replaced.
    """

    def __init__(self, address: Address, *, overwrite: bool) -> None:
        self.store: Store = open_store(address)
        self.uploaded: dict[str, StoredObject] = {}
        self._run = os.urandom(8).hex()
        self._planned: set[str] = set()
        self._had_record = False
        self._before = self._check_free(overwrite)

    def begin(self, names: set[str]) -> None:
        """Say which objects will be written, before the first one is."""
        if not names <= self._planned:
            self._planned |= names
            write_marker(self.store, self._planned | self._before, self._run)
        if self._had_record:
            self.store.remove([RECORD])
            self._had_record = False

    def upload(self, folder: Path) -> None:
        """Upload all files below a folder."""
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        self.begin(set(files))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for name, found in zip(files, pool.map(self.store.put, files.values(), files), strict=True):
                self.uploaded[name] = found

    def finish(self, export: Mapping[str, object]) -> None:
        """Make the export complete.

        Raises:
            UserError: another process has exported to the same folder meanwhile; it is left incomplete.
        """
        self.store.remove(sorted(self._before - self.uploaded.keys()))
        self._check_alone()
        sizes = {name: found.size for name, found in sorted(self.uploaded.items())}
        etags = {name: found.etag for name, found in sorted(self.uploaded.items())}
        write_record(self.store, ExportRecord(sizes, {**export, "output": COMPLETE}, etags))
        self.store.remove([MARKER])

    def _check_alone(self) -> None:
        there = {each.name: each for each in self.store.objects()}
        marker = read_marker(self.store, there[MARKER]) if MARKER in there else None
        if marker and marker.run == self._run and all(there.get(name) == each for name, each in self.uploaded.items()):
            return
        write_marker(self.store, self._planned | self._before, self._run)
        self.store.remove([RECORD])  # of the other one, some objects of which may be ours now
        raise UserError(f"{self.store}: another export wrote to it at the same time; run one of them again")

    def _check_free(self, overwrite: bool) -> set[str]:
        """The objects of an earlier export, which may be replaced. Raises UserError."""
        found = {each.name: each for each in self.store.objects()}
        if not found:
            return set()
        known: set[str] = set()
        for name, read in ((RECORD, read_record), (MARKER, read_marker)):
            if name in found:
                if (noted := read(self.store, found[name])) is None:
                    raise UserError(f"{self.store}: {name} is damaged; choose another --out, or an empty folder")
                known |= set(noted.objects)
        if RECORD in found and not overwrite:
            raise UserError(f"{self.store}: has an export already; --overwrite replaces it, or choose another --out")
        if others := sorted(found.keys() - known - {RECORD, MARKER}):
            many = f"{counted(len(others), 'object')} that no export wrote, such as {shown(others[0])}"
            raise UserError(f"{self.store}: has {many}; choose another --out, or an empty folder")
        self._had_record = RECORD in found
        if MARKER in found:
            self.store.drop_unfinished(known)
        return known & found.keys()


def find_earlier(address: Address) -> tuple[dict[str, Any], str] | None:
    """The record of an export in a folder of a store, and `COMPLETE` if its objects are unchanged; None without one."""
    store = open_store(address)
    found = {each.name: each for each in store.objects()}
    if RECORD not in found or (record := read_record(store, found[RECORD])) is None:
        return None
    there = {name: each.etag for name, each in found.items() if name in record.objects or name.endswith(SHARDS)}
    return record.export, COMPLETE if there == record.etags else ""


@contextmanager
def staging() -> Iterator[Path]:
    """An empty folder on this machine for what is uploaded."""
    with TemporaryDirectory(prefix="phi3v-export-") as folder:
        yield Path(folder)


def upload_shard(address: Address, part: Path, name: str, stage: Path) -> StoredObject:
    """Upload the shard of a part from the folder it was written to; what is beside it moves to `stage`."""
    found = open_store(address).put(part / name, name)
    (part / name).unlink()
    for path in part.rglob("*"):
        if path.is_file():
            target = stage / path.relative_to(part)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    return found
