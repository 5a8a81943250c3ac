"""The rows of a JSON Lines file as bytes, a block of whole lines at a time."""

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from phi3v_data.formats.row_block import RowBlock, odd_positions
from phi3v_data.json_text import BLANK, JsonFault
from phi3v_data.jsonl import MAX_LINE_BYTES, Block, stream_blocks


def line_blocks(file: BinaryIO, size: int) -> Iterator[RowBlock]:
    """Yield the rows of a file, about `size` bytes at a time. Raises OSError."""
    line = 1
    for data, used, offset, length in _read(file, size) if file.seekable() else _streamed(file, size, 0):
        if length:
            yield _long_line(data, offset, line)
            line += 1
        else:
            rows, num_lines = _rows_of(data, used, offset, line)
            yield rows
            line += num_lines


def _read(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int, int]]:
    """As `_streamed`, with no byte copied: the start of a line that is cut off is read again with the next block."""
    offset = 0
    while data := file.read(size):
        used = data.rfind(b"\n") + 1
        if used:
            yield data, used, offset, 0
            offset += used
        else:  # a long line, or the last one, without a line end
            file.seek(offset)
            block = next(_streamed(file, size, offset))
            yield block
            offset += block[3] + 1 if block[3] else block[1]
        file.seek(offset)


def _streamed(file: BinaryIO, size: int, offset: int) -> Iterator[tuple[bytes, int, int, int]]:
    """Yield (data, bytes of it that are whole lines, offset, 0); or the start of a line over the limit and its length.

    `offset` is the file's position.
    """
    for block in stream_blocks(file, block_bytes=size, count_lines=_uncounted, offset=offset):
        yield block.data, len(block.data), block.offset, _length_of(block)


def _uncounted(data: bytes) -> int:
    return 0


def _length_of(block: Block) -> int:
    return block.length if block.too_long else 0


def _long_line(data: bytes, offset: int, line: int) -> RowBlock:
    """No rows, and the fault of a line over the limit."""
    empty = np.zeros(0, np.int64)
    fault = JsonFault(
        "line-too-long",
        f"the line is over {MAX_LINE_BYTES >> 20} MB and was not read",
        "is an image embedded as text? store it as a file and refer to it by path",
    )
    return RowBlock(data, len(data), offset, empty, empty, empty, [(line, fault)], True, False, empty, empty)


def _rows_of(data: bytes, size: int, offset: int, first_line: int) -> tuple[RowBlock, int]:
    """The rows of the lines in the first `size` bytes, and how many lines these are; blank lines are faults."""
    array = np.frombuffer(data, np.uint8, size)
    controls, beyond = odd_positions(array)
    is_end = array[controls] == 10
    ends = controls if is_end.all() else controls[is_end]
    num_lines = len(ends)
    starts = np.empty_like(ends)
    starts[0] = 0
    np.add(ends[:-1], 1, out=starts[1:])
    lines = np.arange(first_line, first_line + num_lines)
    faults: list[tuple[int, JsonFault]] = []
    suspects = np.flatnonzero(array[starts] <= 32)  # white space and what is not JSON
    blank = [at for at in suspects.tolist() if not data[starts[at] : ends[at]].strip(BLANK.encode())]
    if blank:
        faults = [(int(lines[at]), JsonFault("blank-line", "the line is blank")) for at in blank]
        kept = np.ones(len(starts), np.bool_)
        kept[blank] = False
        starts, ends, lines = starts[kept], ends[kept], lines[kept]
    return RowBlock(data, size, offset, starts, ends, lines, faults, True, not blank, controls, beyond), num_lines
