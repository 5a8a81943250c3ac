"""The journal of a directory that is being written, under `DIR/.phi3v/convert/`.

    identity.json     what is being written; another identity is refused
    parts/000012.json record of one finished part: its rows, images and rejects (`records.py`)
    stage/            finished files; nothing of an unfinished run is visible in DIR
    collisions/       images whose name is used by another row with different content
    packed/000012     with `--store shards`, the images of one part: see `packing.py`
    publishing.json   all parts are done, the files are being moved into DIR
    marker.json       content of DIR/dataset.json until all files are moved
    complete.json     identity of the set in DIR, and digests of the files it was planned from
    source/           unpacked archives of the source        run/  temporary files of the running process
    slices/           of processes that share the parts: see `claims.py` and `sliced.py`

All files are written atomically, so an existing file is complete. Damage by a power failure is detected on resume: a
record is only used if it can be read and its images have the recorded sizes.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from phi3v_data.errors import UserError
from phi3v_data.files import HIDDEN, MAX_JSON, hidden_path, read_regular, write_json
from phi3v_data.sources.reads import ReadRecord
from phi3v_data.unfinished import MANIFEST
from phi3v_data.writing.journal_entries import ENTRIES, check_entries, not_ours
from phi3v_data.writing.records import (
    FORMAT,
    Begun,
    ImageRecord,
    PartRecord,
    decode_begun,
    decode_collided,
    decode_images,
    decode_part,
)

T = TypeVar("T")

MAX_RECORD = 1 << 31
"""Bytes of the record of one part, which has all its rows."""


@dataclass(frozen=True, slots=True)
class Journal:
    """Paths and files of one directory's journal, without state in memory.

    `scratch` is the folder for temporary files of a run that must not change the directory itself; `own` is that of one
    of several processes that share the parts.
    """

    out_dir: Path
    scratch: Path | None = None
    own: Path | None = None

    @property
    def hidden(self) -> Path:
        return self.out_dir / HIDDEN

    @property
    def root(self) -> Path:
        return self.hidden / "convert"

    @property
    def parts(self) -> Path:
        return self.root / "parts"

    @property
    def stage(self) -> Path:
        return self.root / "stage"

    @property
    def images(self) -> Path:
        return self.stage / "images"

    @property
    def collisions(self) -> Path:
        return self.root / "collisions"

    @property
    def packed(self) -> Path:
        return self.root / "packed"

    @property
    def run(self) -> Path:
        return (self.scratch or self.own or self.root) / "run"

    @property
    def claims(self) -> Path:
        return self.slices / "images" if self.own else self.run / "claims"

    @property
    def slices(self) -> Path:
        return self.root / "slices"

    @property
    def owners(self) -> Path:
        return self.slices / "owners"

    @property
    def sliced(self) -> Path:
        return self.slices / "plan.json"

    @property
    def source(self) -> Path:
        return (self.scratch or self.root) / "source"

    @property
    def old(self) -> Path:
        return self.root / "old"

    @property
    def lock(self) -> Path:
        return self.hidden / "convert.lock"

    @property
    def workers_lock(self) -> Path:
        return self.hidden / "workers.lock"

    @property
    def identity(self) -> Path:
        return self.root / "identity.json"

    @property
    def complete(self) -> Path:
        return self.root / "complete.json"

    @property
    def publishing(self) -> Path:
        return self.root / "publishing.json"

    @property
    def marker(self) -> Path:
        return self.root / "marker.json"

    def is_finished(self) -> bool:
        """Whether the directory contains a complete set, and nothing has to be moved."""
        return self.complete.exists() and (self.out_dir / MANIFEST).exists() and not self.publishing.exists()

    def start(self, identity: Mapping[str, Any], *, overwrite: bool, planned: Sequence[ReadRecord] = ()) -> None:
        """Start a new journal, after removing that of an earlier run.

        `planned`: the files from which the plan was made.
        """
        self.discard()
        for folder in (self.parts, self.stage, self.collisions):
            folder.mkdir(parents=True, exist_ok=True)
        self.write_identity(identity, overwrite=overwrite, planned=planned)

    def write_identity(self, identity: Mapping[str, Any], *, overwrite: bool, planned: Sequence[ReadRecord]) -> None:
        """Write the identity of the set, and the files from which it was planned."""
        begun = Begun(dict(identity), overwrite, FORMAT, tuple(planned))
        write_json(self.identity, msgspec.to_builtins(begun))

    def begun(self, path: Path) -> Begun | None:
        """Read `self.identity` or `self.complete`; None if absent or incomplete.

        Raises:
            UserError: phi3v cannot have written it, or a newer version has.
        """
        try:
            begun = decode_begun(self._read(path, MAX_JSON))
            if begun.format <= FORMAT:
                msgspec.convert(begun.identity.get("items", {}), dict[str, int])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (msgspec.ValidationError, RecursionError) as error:
            raise self.foreign(path, error) from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        if begun.format > FORMAT:
            raise UserError(
                f"{path}: was written by a newer version of phi3v (format {begun.format}; this one reads up to "
                f"{FORMAT}); nothing was changed: upgrade phi3v, or choose another --out_dir"
            )
        return begun

    def _read(self, path: Path, limit: int) -> bytes:
        try:
            return read_regular(path, limit)
        except OSError as error:
            if error.errno == errno.EFBIG:
                raise self.foreign(path, error.strerror) from None
            raise

    def foreign(self, path: Path, error: object) -> UserError:
        """The error for a file that phi3v cannot have written."""
        return UserError(
            f"{path}: was not written by phi3v ({error}); nothing was changed: remove {self.root} if it came with the "
            "directory from elsewhere"
        )

    def discard(self) -> None:
        """Remove the journal of an unfinished run: its identity first, so that an incomplete one is never resumed."""
        self.identity.unlink(missing_ok=True)
        for folder in (self.parts, self.stage, self.collisions, self.packed):
            remove_tree(folder)

    def part_path(self, part: int) -> Path:
        return self.parts / f"{part:06d}.json"

    def packed_path(self, part: int) -> Path:
        return self.packed / f"{part:06d}"

    def in_shards(self) -> bool:
        """Whether the set that is being written has its images in shards."""
        begun = self.begun(self.identity)
        return begun is not None and begun.identity.get("store") == "shards"

    def write_part(self, part: int, part_record: PartRecord, scratch: Path) -> None:
        """Mark a part as done."""
        scratch.write_bytes(msgspec.json.encode(part_record))
        os.replace(scratch, self.part_path(part))

    def check(self) -> None:
        """Reject a journal that contains links, or that phi3v cannot have written; nothing is changed.

        Raises:
            UserError: naming the problem and the file.
        """
        for name in ("run", "source", "old"):
            self._refuse_link("convert", name)
        for path in (self.identity, self.complete, self.publishing, self.marker):
            self._refuse_link("convert", path.name)
            if path.exists() and not path.is_file():
                raise not_ours(path, "file")
        for path in (self.lock, self.workers_lock):
            self._refuse_link(path.name)
            if path.is_dir():
                raise not_ours(path, "file")
        for name in ENTRIES:
            check_entries(self._refuse_link("convert", name), name)
        for path in (self.identity, self.complete):
            self.begun(path)

    def _refuse_link(self, *names: str) -> Path:
        path = hidden_path(self.out_dir, *names)
        if path is None:
            where = "/".join((HIDDEN, *names))
            raise UserError(
                f"{self.out_dir}: {where} is a link or behind one, and links are not followed there; remove it"
            )
        return path

    def read_part(self, part: int) -> PartRecord | None:
        """The record of a finished part; None if the part is not done.

        Raises:
            UserError: phi3v cannot have written it, such as a name that leads out of `images/`.
        """
        return self._decoded(self.part_path(part), decode_part)

    def read_collided(self, part: int) -> tuple[str, ...]:
        """`collided` of the record of a part, in a fraction of the time of `read_part`; empty if it is not done.

        Raises:
            UserError: as `read_part`.
        """
        found = self._decoded(self.part_path(part), decode_collided)
        return found.collided if found is not None else ()

    def read_images(self, part: int) -> Iterator[ImageRecord]:
        """Yield the images of the rows of a part, in order, also repeatedly.

        Raises:
            UserError: as `read_part`, or the part is not done.
        """
        found = self._decoded(self.part_path(part), decode_images)
        if found is None:
            raise self._lost(part)
        for row in found.rows:
            yield from row.images

    def _decoded(self, path: Path, decode: Callable[[bytes], T]) -> T | None:
        try:
            return decode(self._read(path, MAX_RECORD))
        except FileNotFoundError:
            return None
        except (msgspec.ValidationError, RecursionError) as error:
            raise self.foreign(path, error) from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    def part_records(self, num_parts: int) -> Iterator[PartRecord]:
        """Yield all records in the order of numbering."""
        for part in range(num_parts):
            part_record = self.read_part(part)
            if part_record is None:
                raise self._lost(part)
            yield part_record

    def _lost(self, part: int) -> UserError:
        return UserError(f"{self.part_path(part)} vanished or was damaged during the run; run the same command again")

    def finished_parts(self) -> Iterator[PartRecord]:
        """Yield the records of the finished parts, in order."""
        for path in sorted(self.parts.glob("*.json")):
            part_record = self.read_part(int(path.stem)) if path.stem.isdecimal() else None
            if part_record is not None:
                yield part_record

    def has_parts(self) -> bool:
        """Whether at least one part is done."""
        try:
            with os.scandir(self.parts) as entries:
                return any(entry.name.endswith(".json") for entry in entries)
        except FileNotFoundError:
            return False


def remove_tree(path: Path) -> None:
    """Remove a folder of the journal, if it exists."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
