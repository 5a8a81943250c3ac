"""An export in a store: complete as soon as its record is there, which is written last.

    marker (names of all objects of the export)  ->  the old record is removed  ->  objects  ->  what is left of an
    earlier export is removed  ->  record  ->  the marker is removed

Readers refuse a folder with a marker and without a record. A store cannot rename, so an export that replaces another
one is not readable until it is complete. A killed upload leaves no object: a store shows one when its last byte is
there.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from phi3v_data.errors import UserError
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
from phi3v_data.remote.store import Store, open_store

AT_ONCE = 16
"""Small files that are uploaded at the same time."""


class BucketTarget:
    """The folder of an export in a store.

    Raises:
        UserError: it has something else than an export, or an export that is not to be replaced.
    """

    def __init__(self, address: Address, *, overwrite: bool) -> None:
        if address.protocol == "hf":
            raise UserError(
                f"{address}: on the Hub each file would be a commit; export to a folder, then `hf upload` it in one"
            )
        self.store: Store = open_store(address)
        self.objects: dict[str, int] = {}  # that are there, of this export
        self._planned: set[str] = set()
        self._had_record = False
        self._before = self._check_free(overwrite)

    def begin(self, names: set[str]) -> None:
        """Say which objects will be written, before the first one is."""
        if not names <= self._planned:
            self._planned |= names
            write_marker(self.store, self._planned | self._before)
        if self._had_record:
            self.store.remove([RECORD])
            self._had_record = False

    def upload(self, folder: Path) -> None:
        """Upload all files below a folder."""
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        self.begin(set(files))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for name, found in zip(files, pool.map(self.store.put, files.values(), files), strict=True):
                self.objects[name] = found.size

    def finish(self, export: Mapping[str, object]) -> None:
        """Make the export complete."""
        self.store.remove(sorted(self._before - self.objects.keys()))
        write_record(self.store, ExportRecord(dict(sorted(self.objects.items())), dict(export)))
        self.store.remove([MARKER])

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
        return known & found.keys()


@contextmanager
def staging() -> Iterator[Path]:
    """An empty folder on this machine for what is uploaded."""
    with TemporaryDirectory(prefix="phi3v-export-") as folder:
        yield Path(folder)


def upload_shard(address: Address, part: Path, name: str, stage: Path) -> int:
    """Upload the shard of a part from the folder it was written to; what is beside it moves to `stage`.

    Returns its bytes.
    """
    found = open_store(address).put(part / name, name)
    (part / name).unlink()
    for path in part.rglob("*"):
        if path.is_file():
            target = stage / path.relative_to(part)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    return found.size
