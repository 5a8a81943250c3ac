"""Base class of the kinds of export: how rows become the files of another tool."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from phi3v_data.choices import ImageRefs
from phi3v_data.dataset import Dataset
from phi3v_data.errors import UserError
from phi3v_data.exporting.images import Images
from phi3v_data.exporting.request import SHARD_BYTES, ExportRequest
from phi3v_data.files import write_text
from phi3v_data.formats.base import RowFormat
from phi3v_data.json_text import spelled
from phi3v_data.schema import Sample
from phi3v_data.shards.view import MANIFEST_OF_EXPORT

to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
"""JSON text of a value; `json.dumps` makes an encoder for each."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows `start` to `stop` of a split, written by one process to one file."""

    split: str
    number: int
    num_parts: int  # of the split
    start: int
    stop: int
    left_out: tuple[int, ...] = ()  # rows among these that are not written


@dataclass(frozen=True)
class Exporter:
    """A kind of export; pickled to the processes that write its parts."""

    refs: ClassVar[tuple[ImageRefs, ...]] = ()  # ways to refer to images, the usual one first; none: they are inside
    layouts: ClassVar[tuple[str, ...]] = ()  # arrangements of the files, the usual one first
    asks_reader: ClassVar[bool] = False  # rows are checked by the rules of the tool that reads the format
    sharded: ClassVar[bool] = False  # parts are cut by the size of rows and images, and each is a file of its own
    usual_shard_bytes: ClassVar[int] = SHARD_BYTES  # largest size of a shard, if the request names none

    request: ExportRequest
    row_format: RowFormat

    def __post_init__(self) -> None:
        refs, layout = self.request.image_refs, self.request.layout
        if refs is not None and refs not in self.refs:
            ways = f"it can be {' or '.join(self.refs)}" if self.refs else "its images are inside its files"
            raise UserError(f"--image_refs {refs.value} is not possible with {self.name}; {ways}")
        if layout and layout not in self.layouts:
            ways = f"it can be {' or '.join(self.layouts)}" if self.layouts else f"{self.name} has only one"
            raise UserError(f"--layout {layout} is not possible with {self.name}; {ways}")
        if (self.image_refs == ImageRefs.url) != bool(self.request.url_prefix):
            missing = "needs --url_prefix" if self.image_refs == ImageRefs.url else "is needed for --url_prefix"
            raise UserError(f"--image_refs url {missing}, such as --url_prefix https://example.com/images/")

    @property
    def name(self) -> str:
        """Name of the format."""
        return self.row_format.name

    @property
    def readers(self) -> str:
        """The tools that read it, for people."""
        return self.row_format.title

    @property
    def image_refs(self) -> ImageRefs | None:
        """How rows refer to images; None if the images are inside the files."""
        return self.request.image_refs or (self.refs[0] if self.refs else None)

    @property
    def layout(self) -> str:
        """Arrangement of the files."""
        return self.request.layout or (self.layouts[0] if self.layouts else "")

    @property
    def shard_bytes(self) -> int:
        """Largest size of a shard, in bytes."""
        return self.request.shard_bytes or self.usual_shard_bytes

    @property
    def cut_bytes(self) -> int:
        """Most bytes of the rows of a shard, as `cut_size` counts them, and their images."""
        return self.shard_bytes

    def cut_size(self, row_bytes: int, sample: Sample) -> int:
        """Bytes that a row takes in a shard without its images; `row_bytes`: those of its line."""
        return row_bytes

    def marks(self, sample: Sample, images: Images) -> Iterable[str]:
        """Facts of a row that all rows must be known for before the first is written; `with_fields` gets the union."""
        return ()

    @cached_property
    def _has_no_fractions(self) -> bool:
        """Whether the format writes no numbers with a fraction itself; one of a user's own may."""
        return type(self.row_format).__module__.startswith("phi3v_data.formats.")

    def row_json(self, sample: Sample, value: Any) -> bytes:
        """JSON text of the row of a sample, or of a part of it, as `to_json` gives it.

        Tools and their calls, which are JSON of any origin, may have numbers with a fraction, too.
        """
        if self._has_no_fractions and sample.format == 1 and (text := spelled(value)):
            return text
        return to_json(value).encode()

    def with_fields(self, present: frozenset[str]) -> "Exporter":
        """The exporter for rows of which some have these optional fields or marks; all of them get the columns."""
        return replace(self, row_format=replace(self.row_format, always=tuple(sorted(present))))

    def check_set(self, dataset: Dataset) -> None:
        """Refuse a set that cannot be written as a whole.

        Raises:
            UserError: saying why.
        """

    def refer(self, name: str, images: Images, stage: Path) -> str:
        """The reference of an image in a row."""
        return name

    def write_part(self, part: Part, rows: Iterator[tuple[Sample, dict[str, Any]]], images: Images, stage: Path) -> int:
        """Write the rows of a part; the number of images that were added to the export."""
        raise NotImplementedError

    def shard_of(self, part: Part) -> str:
        """Name of the shard of a part, of a kind that is sharded."""
        raise NotImplementedError

    def count_images(self, stage: Path, rows: dict[str, int], added: int) -> int:
        """The number of images in the export, whose parts are all there; `added`: the sum of what `write_part` gave."""
        return added

    def write_manifest(self, stage: Path, dataset: Dataset) -> None:
        """Write what `dataset.json` says of the set, for exports that phi3v reads as a directory."""
        if dataset.manifest is not None:
            write_text(stage / MANIFEST_OF_EXPORT, dataset.manifest.to_json())

    def finish(self, stage: Path, dataset: Dataset, parts: Sequence[Part], rows: dict[str, int]) -> tuple[str, ...]:
        """Write what belongs beside the parts, which are all there; returns notes for the user."""
        return ()
