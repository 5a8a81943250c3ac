"""Images in the cells of a parquet column: one `{bytes, path}` per cell, or a list of them."""

from collections.abc import Iterator
from typing import IO, Any

import numpy as np


class CellReader:
    """Reads a column of one parquet file, row group by row group.

    The description of all row groups, in which each takes as long to read as some images, is read only once.
    """

    def __init__(self, column: str) -> None:
        self._column = column
        self._metadata: Any = None

    def read(self, file: IO[bytes], group: int) -> "Cells":
        """The cells of a row group. Raises pyarrow's errors."""
        import pyarrow.parquet

        opened = pyarrow.parquet.ParquetFile(file, metadata=self._metadata)
        self._metadata = opened.metadata
        found = opened.read_row_group(group, columns=[self._column], use_threads=False)
        return Cells(found.column(0).combine_chunks())


class Cells:
    """The cells of one row group."""

    def __init__(self, cells: Any) -> None:
        self._cells = cells
        self._flat = _flat(cells)

    def image(self, row: int, number: int) -> bytes:
        """The bytes of an image of a cell. Raises IndexError if there is none."""
        if self._flat is None:
            return _image(self._cells[row].as_py(), number)
        rows, ends, data = self._flat
        place = int(rows[row]) + number
        if place >= rows[row + 1]:
            raise IndexError(number)
        return bytes(data[ends[place] : ends[place + 1]])

    def images(self) -> Iterator[tuple[int, int, bytes]]:
        """Each image with the number of its row and its own number in the cell."""
        for row, cell in enumerate(self._cells):
            value = cell.as_py()
            for number in range(len(value) if isinstance(value, list) else value is not None):
                yield row, number, _image(value, number)


def _image(value: Any, number: int) -> bytes:
    image = value[number] if isinstance(value, list) else value
    data: bytes = image["bytes"]
    return data


def _flat(cells: Any) -> tuple[Any, Any, memoryview] | None:
    """Number of the first image of each row, start of each image in the bytes of all, and these bytes.

    None if the cells are of another type than exports write, or some are null.
    """
    import pyarrow as pa

    if not isinstance(cells, pa.ListArray) or cells.null_count:
        return None
    images = cells.values
    at = images.type.get_field_index("bytes") if isinstance(images, pa.StructArray) else -1
    if at < 0 or images.null_count:
        return None
    data = images.field(at)
    if not isinstance(data, pa.BinaryArray) or data.null_count or data.buffers()[2] is None:
        return None
    _, starts, content = data.buffers()  # pyarrow's own arrays of numbers would import pandas
    return (
        np.frombuffer(cells.buffers()[1], np.int32, len(cells) + 1, 4 * cells.offset),
        np.frombuffer(starts, np.int32, len(data) + 1, 4 * data.offset),
        memoryview(content),
    )
