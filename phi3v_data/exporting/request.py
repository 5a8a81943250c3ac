"""The settings of an export, and its result."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from phi3v_data.choices import ImageMode, ImageRefs

SHARD_BYTES = 450_000_000
"""Largest size of the rows and images of a shard, in bytes; the Hub asks for files of less than 500 MB."""


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """Settings of an export.

    Attributes:
        image_refs: how rows refer to images; None: the format's usual way.
        url_prefix: what is put before the path of each image with `ImageRefs.url`.
        lossy: write rows without what the format cannot carry.
        target: a service whose limits are checked, such as `azure`.
        layout: arrangement of a format that has several.
        shard_bytes: largest size of a shard, in bytes; None: the format's usual one.
    """

    image_refs: ImageRefs | None = None
    url_prefix: str = ""
    images: ImageMode = ImageMode.link
    lossy: bool = False
    target: str = ""
    layout: str = ""
    shard_bytes: int | None = None


@dataclass(slots=True)
class Loss:
    """Rows that a reason applies to.

    Attributes:
        rows: number of rows.
        split: split of the first such row.
        id: id of the first such row.
        why: about the first such row, if a check of the tool found it.
    """

    rows: int
    split: str
    id: str
    why: str = ""


@dataclass(slots=True)
class Tally:
    """Counts over rows, by code, in the order of the first row of each."""

    rows: int = 0
    with_images: int = 0  # rows that are written and have images
    lost: dict[str, Loss] = field(default_factory=dict)
    warnings: dict[str, Loss] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)  # optional fields that a row has

    def add(self, other: "Tally") -> None:
        """Add the counts of later rows."""
        self.rows += other.rows
        self.with_images += other.with_images
        for mine, theirs in ((self.lost, other.lost), (self.warnings, other.warnings)):
            for code, loss in theirs.items():
                if code in mine:
                    mine[code].rows += loss.rows
                else:
                    mine[code] = replace(loss)
        for name, count in other.left_out.items():
            self.left_out[name] = self.left_out.get(name, 0) + count
        self.present |= other.present


@dataclass(frozen=True, slots=True)
class ExportResult:
    """Result of an export.

    Attributes:
        rows: rows written, by split.
        images: image files that were linked or copied, or images inside the files.
        lost: what rows lost, by code; empty without `lossy`.
        warnings: what the format's readers change or train wrongly, by code.
        left_out: number of rows whose field was left out, by field.
        notes: sentences for the user.
        already_complete: the same export was there, and nothing was written; `lost` then has only numbers of rows, and
            `warnings` and `notes` are empty.
    """

    path: Path
    rows: Mapping[str, int]
    images: int
    lost: Mapping[str, Loss] = field(default_factory=dict)
    warnings: Mapping[str, Loss] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    already_complete: bool = False
