"""Images of a run with `--store shards`: first a file per part, then the shards of the set.

    packed/000012     the images of one part as members of a tar file, each once, in the order of the rows

A part's file is renamed into place before its record is written. The shards are made of these files when all parts are
done: each image that a row uses once, from the first part whose row has it, in the order of the rows. So their bytes do
not depend on the parts, and neither on workers nor kills.
"""

import hashlib
import os
from array import array
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from phi3v_data.errors import UserError
from phi3v_data.files import name_hash
from phi3v_data.media.tar_member import header_bytes, padded, tar_member
from phi3v_data.writing.images import PreparedImage
from phi3v_data.writing.journal import Journal
from phi3v_data.writing.records import ImageRecord, PartRecord, RowRecord

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(slots=True)
class PartImages:
    """The images of one part while it is converted; `scratch` is a file name of this process alone."""

    journal: Journal
    part: int
    scratch: Path
    _file: IO[bytes] | None = None
    _known: set[ImageRecord] = field(default_factory=set)

    def add(self, image: PreparedImage) -> None:
        """Store an image, unless the part has it. Raises OSError."""
        if image.record in self._known:
            return
        self._known.add(image.record)
        if self._file is None:
            self._file = open(self.scratch, "wb")  # noqa: SIM115 - closed by `finish`, or with the process
        self._file.write(tar_member(image.record.name, image.data))

    def finish(self) -> None:
        """Give the finished file its name. Raises OSError."""
        if self._file is None:
            return
        self._file.close()
        target = self.journal.packed_path(self.part)
        target.parent.mkdir(exist_ok=True)
        os.replace(self.scratch, target)


def members(record: PartRecord) -> Iterator[tuple[ImageRecord, int]]:
    """Yield each image of a part and the offset of its bytes in the part's file."""
    known: set[ImageRecord] = set()
    at = 0
    for row in record.rows:
        for image in row.images:
            if image not in known:
                known.add(image)
                at += header_bytes(image.name, image.size)
                yield image, at
                at += padded(image.size)


def has_images(journal: Journal, part: int, record: PartRecord, *, since: int, verify: bool) -> bool:
    """Whether the file of a part is complete.

    With `verify`, or if the file changed after the time `since` (ns), whether all images have their digests.
    """
    end = 0
    places = []
    for image, offset in members(record):
        places.append((image, offset))
        end = offset + padded(image.size)
    if not places:
        return True
    try:
        with open(journal.packed_path(part), "rb", buffering=0) as file:
            found = os.fstat(file.fileno())
            return found.st_size == end and not (
                (verify or found.st_ctime_ns > since)
                and any(
                    hashlib.sha256(os.pread(file.fileno(), image.size, offset)).hexdigest() != image.digest
                    for image, offset in places
                )
            )
    except FileNotFoundError:
        return False


def remove_unknown(journal: Journal, finished: Collection[int]) -> None:
    """Remove the files of parts that are not finished."""
    known = {journal.packed_path(part).name for part in finished}
    if journal.packed.exists():
        for path in journal.packed.iterdir():
            if path.name not in known:
                path.unlink()


class Assembly:
    """Makes the shards in the stage, image by image, from the rows in their order."""

    def __init__(self, journal: Journal, num_parts: int) -> None:
        import numpy as np

        from phi3v_data.media.store_writer import StoreWriter

        self.journal = journal
        self.disputed: set[str] = set()
        """Names with two contents, of which the first row's counts."""
        self._writer = StoreWriter(journal.stage)
        self._names, disputed = _survey(journal, num_parts)
        self._is_stored = np.zeros(len(self._names), np.bool_)
        self._stored: set[str] = set()  # of the disputed ones
        if len(disputed):
            hashes = set(disputed.tolist())
            for images in map(journal.read_images, range(num_parts)):
                self.disputed.update(image.name for image in images if name_hash(image.name) in hashes)
        self._offsets: dict[ImageRecord, int] = {}
        self._path = journal.packed
        self._file: IO[bytes] | None = None

    def begin(self, part: int, record: PartRecord) -> None:
        """The rows that follow are of this part.

        Raises:
            UserError: its file is gone.
        """
        self._offsets = dict(members(record))
        if self._file is not None:
            self._file.close()
        self._path = self.journal.packed_path(part)
        try:
            self._file = open(self._path, "rb", buffering=0) if self._offsets else None  # noqa: SIM115
        except FileNotFoundError:
            raise _damaged(self._path) from None

    def take(self, row: RowRecord) -> None:
        """Store the images of a row that no row before it has.

        Raises:
            UserError: the file of the part was damaged; it was removed, so that the next run makes it again.
            OSError: it cannot be read, or a shard not be written.
        """
        for image in row.images:
            if not self._is_new(image.name):
                continue
            assert self._file is not None
            data = os.pread(self._file.fileno(), image.size, self._offsets[image])
            if hashlib.sha256(data).hexdigest() != image.digest:
                self._path.unlink(missing_ok=True)  # the part counts as lost
                raise _damaged(self._path)
            self._writer.add(image.name, data)

    def finish(self) -> bool:
        """Write the index; False if the set has no images."""
        self._writer.finish()
        return len(self._writer) > 0

    def close(self) -> None:
        """Close what is open."""
        self._writer.close()
        if self._file is not None:
            self._file.close()

    def _is_new(self, name: str) -> bool:
        if name in self.disputed:
            if name in self._stored:
                return False
            self._stored.add(name)
            return True
        place = self._names.searchsorted(self._names.dtype.type(name_hash(name)))
        if self._is_stored[place]:
            return False
        self._is_stored[place] = True
        return True


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{path} was lost or damaged after its images had been converted; run the same command again (all slices, if "
        "there are some), which converts them once more"
    )


def _survey(journal: Journal, num_parts: int) -> "tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]":
    """The sorted hashes of all names of images, and those that belong to several contents; 16 bytes for each use."""
    import numpy as np

    names, digests = array("Q"), array("Q")
    for images in map(journal.read_images, range(num_parts)):
        for image in images:
            names.append(name_hash(image.name))
            digests.append(int(image.digest[:16], 16))
    hashes, contents = np.frombuffer(names, np.uint64), np.frombuffer(digests, np.uint64)
    order = np.argsort(hashes, kind="stable")
    hashes, contents = hashes[order], contents[order]
    differ = (hashes[1:] == hashes[:-1]) & (contents[1:] != contents[:-1])
    return np.unique(hashes), np.unique(hashes[1:][differ])
