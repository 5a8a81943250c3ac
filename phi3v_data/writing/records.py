"""The records in the files of a journal: the identity of a set, and the rows, images and rejects of a part.

Whatever is decoded may come from an untrusted directory, so names and paths are checked.
"""

from typing import Annotated, Any, TypeAlias

import msgspec

from phi3v_data.sources.reads import ReadRecord

FORMAT = 2
"""Format of the journal: 2 since it records the files that were read; parts of older ones are not kept."""

SafePath: TypeAlias = Annotated[
    str, msgspec.Meta(pattern=r"\A(?![A-Za-z]:)(?!.*(?:^|/)\.{0,2}(?:/|$))[^\\\x00-\x1f\x7f]+\Z")
]
Digest: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
SplitName: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z")]


class ImageRecord(msgspec.Struct, frozen=True, array_like=True):
    """One image of a row: POSIX path under `images/`, size in bytes, sha256."""

    name: SafePath
    size: int
    digest: Digest


class RowRecord(msgspec.Struct, frozen=True):
    """One converted sample; `row` is its line without the line end."""

    number: int
    split: SplitName
    item: str
    row: str
    images: tuple[ImageRecord, ...] = ()
    notes: tuple[str, ...] = ()


class RejectRecord(msgspec.Struct, frozen=True):
    """One planned sample that could not be converted."""

    number: int
    split: str
    item: str
    reason: str
    message: str


class SourceRecord(msgspec.Struct, frozen=True, array_like=True):
    """Origin of one sample: a digest of its item or draft, and the files that were read to convert it."""

    number: int
    digest: str
    reads: tuple[ReadRecord, ...] = ()


class PartRecord(msgspec.Struct, frozen=True):
    """Record of one finished part.

    `collided` lists images stored under `collisions/` because their name was in use; `sources` is in the order of
    numbers; `boot` identifies the boot of the machine that wrote the part.
    """

    rows: tuple[RowRecord, ...] = ()
    rejects: tuple[RejectRecord, ...] = ()
    collided: tuple[SafePath, ...] = ()
    sources: tuple[SourceRecord, ...] = ()
    boot: str = ""

    @property
    def num_items(self) -> int:
        """Planned samples of the part."""
        return len(self.rows) + len(self.rejects)


class _Collided(msgspec.Struct, frozen=True):
    """The only field of a `PartRecord` that is asked for before all records are read in order."""

    collided: tuple[SafePath, ...] = ()


class _RowImages(msgspec.Struct, frozen=True):
    images: tuple[ImageRecord, ...] = ()


class _Images(msgspec.Struct, frozen=True):
    """The images of a `PartRecord`, without its texts."""

    rows: tuple[_RowImages, ...] = ()


class Begun(msgspec.Struct, frozen=True):
    """Identity of a set: `identity.json` while it is being written, then `complete.json`.

    `planned`: the files from which the plan was made, in `complete.json` one record per file; `format` is 1 if the
    journal does not contain it.
    """

    identity: dict[str, Any]
    overwrite: bool = False
    format: int = 1
    planned: tuple[ReadRecord, ...] = ()


decode_begun = msgspec.json.Decoder(Begun).decode
decode_part = msgspec.json.Decoder(PartRecord).decode
decode_images = msgspec.json.Decoder(_Images).decode
decode_collided = msgspec.json.Decoder(_Collided).decode
