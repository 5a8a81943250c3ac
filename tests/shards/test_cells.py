"""Images in the cells of a parquet column, whatever its types are."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from phi3v_data.media.cells import CellReader, Cells

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def struct(data: Any, **more: Any) -> Any:
    return pa.struct([("bytes", data), *more.items()])


IMAGE = {"bytes": b"one", "path": "a.png"}
ROWS = [[IMAGE], [], [{"bytes": b"two", "path": None}, {"bytes": b"", "path": "b"}, {"bytes": b"three", "path": "c"}]]
CASES = {
    "lists": pa.array(ROWS, pa.list_(struct(pa.binary(), path=pa.string()))),
    "a part of them": pa.array([[IMAGE], *ROWS, [IMAGE]], pa.list_(struct(pa.binary(), path=pa.string())))[1:-1],
    "a part of the images": pa.ListArray.from_arrays(
        pa.array([0, 1, 1, 3], pa.int32()), pa.array([{"bytes": b"zero"}, *ROWS[0], *ROWS[2]], struct(pa.binary()))[1:]
    ),
    "the path first": pa.array(ROWS, pa.list_(pa.struct([("path", pa.string()), ("bytes", pa.binary())]))),
    "null cells": pa.array([None, *ROWS, None], pa.list_(struct(pa.binary(), path=pa.string()))),
    "null images": pa.array([[None, IMAGE], *ROWS], pa.list_(struct(pa.binary(), path=pa.string()))),
    "null bytes": pa.array([[{"bytes": None}, IMAGE], *ROWS], pa.list_(struct(pa.binary(), path=pa.string()))),
    "large lists": pa.array(ROWS, pa.large_list(struct(pa.large_binary()))),
    "large bytes": pa.array(ROWS, pa.list_(struct(pa.large_binary()))),
    "one image per cell": pa.array([IMAGE, {"bytes": b"two"}], struct(pa.binary(), path=pa.string())),
    "chunks": pa.chunked_array([[IMAGE], [IMAGE, None]], struct(pa.binary(), path=pa.string())),
    "no rows": pa.array([], pa.list_(struct(pa.binary()))),
    "no images": pa.array([[], []], pa.list_(struct(pa.binary()))),
}


@pytest.mark.parametrize("name", CASES)
def test_images_are_those_of_the_values(name: str) -> None:
    values = CASES[name].to_pylist()
    cells = Cells(CASES[name])
    places = [(row, at) for row, value in enumerate(values) for at in range(len(value or ()))]
    if not pa.types.is_nested(CASES[name].type) or pa.types.is_struct(CASES[name].type):
        places = [(row, 0) for row, value in enumerate(values) if value]
    found = [values[row][at] if isinstance(values[row], list) else values[row] for row, at in places]
    images = [(place, image["bytes"]) for place, image in zip(places, found, strict=True) if image]
    assert [cells.image(*place) for place, _ in images] == [data for _, data in images]


@pytest.mark.parametrize("name", ["lists", "null cells", "large lists"])
def test_all_images_have_their_rows_and_numbers(name: str) -> None:
    first = 1 if name == "null cells" else 0
    assert list(Cells(CASES[name]).images()) == [
        (first, 0, b"one"), (first + 2, 0, b"two"), (first + 2, 1, b""), (first + 2, 2, b"three")
    ]  # fmt: skip
    assert list(Cells(CASES["one image per cell"]).images()) == [(0, 0, b"one"), (1, 0, b"two")]


@pytest.mark.parametrize("name", ["lists", "large lists"])
def test_an_image_that_is_not_there_is_not_that_of_the_next_cell(name: str) -> None:
    cells = Cells(CASES[name])
    for place in ((0, 1), (1, 0), (2, 3), (3, 0)):
        with pytest.raises(IndexError):
            cells.image(*place)


class Counting(io.BytesIO):
    """A file that counts the bytes that are read of it."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


def test_the_description_of_all_row_groups_is_read_once() -> None:
    """It is longer than a row group, and as long as all of them together are many."""
    out = io.BytesIO()
    pq.write_table(pa.table({"images": pa.concat_arrays([CASES["lists"]] * 100)}), out, row_group_size=3)
    file, reader = Counting(out.getvalue()), CellReader("images")
    assert [reader.read(file, 0).image(0, 0), file.count > 20_000] == [b"one", True]
    file.count = 0
    assert [reader.read(file, 99).image(2, 2), file.count < 1_000] == [b"three", True]


def test_images_are_read_without_what_else_pyarrow_may_import(tmp_path: Path) -> None:
    """Each worker would spend the time of some thousand images on it."""
    pq.write_table(pa.table({"images": CASES["lists"]}), tmp_path / "file")
    code = """
import sys
from phi3v_data.media.cells import CellReader
assert CellReader("images").read(open(sys.argv[1], "rb"), 0).image(0, 0) == b"one"
print({"pandas", "pyarrow.compute"} & set(sys.modules))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "set()\n"
