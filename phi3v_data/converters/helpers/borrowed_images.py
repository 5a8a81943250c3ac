"""Rows whose image cell is the `index` of another row: VLMEvalKit's tables store an image of many questions once."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from phi3v_data.converters.helpers.cell_images import is_inline
from phi3v_data.converters.helpers.table_rows import TableRow
from phi3v_data.converters.helpers.values import text_of

INDEX = "index"
MAX_REFERENCE = 64
"""Longest cell that VLMEvalKit treats as an index, in characters."""


@dataclass
class BorrowedImages:
    """The base64 images that other rows refer to, by index; empty for all other tables."""

    columns: Sequence[str]
    _images: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, columns: Sequence[str], images: Sequence[str], rows: Callable[[], Iterable[TableRow]]
    ) -> "BorrowedImages":
        """Read the table for references, and, if there are any, once more for the images that they refer to.

        Args:
            columns: all columns of the table.
            images: those with images.
            rows: opens the table.
        """
        found = cls(images)
        if INDEX not in columns:
            return found
        wanted = {(name, cell) for row in rows() for name, cell in found._references(row.cells)}
        for row in rows() if wanted else ():
            index = text_of(row.cells.get(INDEX)).strip()
            for name in images:
                cell = row.cells.get(name)
                if (name, index) in wanted and isinstance(cell, str) and is_inline(cell):
                    found._images[name, index] = cell
        return found

    def put_in(self, row: TableRow) -> TableRow:
        """The row with the images that it refers to."""
        images = {
            name: self._images[name, cell] for name, cell in self._references(row.cells) if (name, cell) in self._images
        }
        return replace(row, cells={**row.cells, **images}) if images else row

    def _references(self, cells: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        for name in self.columns:
            cell = cells.get(name)
            if isinstance(cell, str) and len(cell) <= MAX_REFERENCE and cell.strip().isdigit():
                yield name, cell.strip()
