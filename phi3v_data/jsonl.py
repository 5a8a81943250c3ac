"""Reads and writes JSONL files of any size in bounded memory, with correct line numbers.

Lines end in LF; CRLF and a missing last line end are accepted. Files are cut into blocks of whole lines, so that bulk
readers can pass a block to a parser written in C. A line over 64 MB is skipped without being read into memory, and
counted like any other.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from phi3v_data.files import open_regular

MAX_LINE_BYTES = 64 << 20
"""Longest line that is read, in bytes without its line end."""

BLOCK_BYTES = 1 << 18
"""Bytes read at a time: a block and the rows parsed from it fit into the cache of a core."""

BOM = b"\xef\xbb\xbf"
_HEAD_BYTES = 256


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines of a file; `data` ends in LF even if the file does not.

    With `too_long`, the block is one line over the limit: `data` contains only its first bytes and `length` is its
    size in bytes without the line end.
    """

    data: bytes
    first_line: int  # 1-based
    offset: int  # of the first byte in the file
    length: int
    num_lines: int = 1
    too_long: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its line end; with `too_long`, only its first bytes."""

    data: bytes
    number: int  # 1-based
    offset: int
    too_long: bool = False


def _count_lines(data: bytes) -> int:
    return data.count(b"\n")


def read_blocks(
    path: str | Path,
    *,
    block_bytes: int = BLOCK_BYTES,
    max_line_bytes: int = MAX_LINE_BYTES,
    count_lines: Callable[[bytes], int] = _count_lines,
    start: int = 0,
    end: int | None = None,
) -> Iterator[Block]:
    """Yield a file as blocks of whole lines, about `block_bytes` each.

    Memory is bounded by the longest line and the block, whichever is larger. `count_lines` counts the LF of a block;
    bulk readers pass a faster one. `start` and `end` are byte offsets at which lines begin; line numbers count from
    `start`. Raises OSError.
    """
    with open_regular(path, buffering=0) as file:
        file.seek(start)
        chunks = _chunks(file, min(block_bytes, max_line_bytes), None if end is None else end - start)
        yield from _blocks(chunks, max_line_bytes, count_lines, start)


def stream_blocks(
    file: BinaryIO,
    *,
    block_bytes: int = BLOCK_BYTES,
    count_lines: Callable[[bytes], int] = _count_lines,
    offset: int = 0,
) -> Iterator[Block]:
    """Yield the rest of an open file as `read_blocks` does; `offset` is its position."""
    yield from _blocks(_chunks(file, block_bytes, None), MAX_LINE_BYTES, count_lines, offset)


def cut_file(path: str | Path, part_bytes: int) -> list[tuple[int, int]]:
    """The ranges (start, end) of a file, about `part_bytes` each, that begin and end at lines. Raises OSError."""
    size = os.stat(path).st_size
    starts = [0]
    with open_regular(path, buffering=0) as file:
        for target in range(part_bytes, size, part_bytes):
            if target <= starts[-1]:
                continue
            position = file.seek(target)
            while chunk := file.read(BLOCK_BYTES):
                found = chunk.find(b"\n")
                if found >= 0:
                    break
                position += len(chunk)
            else:
                break
            if position + found + 1 < size:
                starts.append(position + found + 1)
    return list(zip(starts, [*starts[1:], size], strict=True))


def _chunks(file: BinaryIO, block_bytes: int, length: int | None) -> Iterator[bytes]:
    while chunk := file.read(block_bytes if length is None else min(block_bytes, length)):
        if length is not None:
            length -= len(chunk)
        yield chunk


def _blocks(
    chunks: Iterator[bytes], max_line_bytes: int, count_lines: Callable[[bytes], int], offset: int
) -> Iterator[Block]:
    parts: list[bytes] = []  # the start of a line whose end has not been read
    held = 0  # bytes in `parts`, or skipped over
    skipping = False
    line = 1
    for chunk in chunks:
        start = 0
        first_end = chunk.find(b"\n")
        if held + (first_end if first_end >= 0 else len(chunk)) > max_line_bytes:
            if not skipping:
                parts = [b"".join(parts)[:_HEAD_BYTES]] if parts else [chunk[:_HEAD_BYTES]]
                skipping = True
            if first_end < 0:
                held += len(chunk)
                continue
            length = held + first_end
            yield Block(parts[0] + b"\n", line, offset, length, too_long=True)
            parts, held, skipping = [], 0, False
            line += 1
            offset += length + 1
            start = first_end + 1
        end = chunk.rfind(b"\n", start) + 1
        if end <= start:
            if start < len(chunk):
                parts.append(chunk[start:])
                held += len(chunk) - start
            continue
        data = b"".join((*parts, memoryview(chunk)[start:end])) if parts else chunk[start:end]
        num_lines = count_lines(data)
        yield Block(data, line, offset, len(data), num_lines)
        line += num_lines
        offset += len(data)
        parts = [chunk[end:]] if end < len(chunk) else []
        held = len(chunk) - end
    if skipping:
        yield Block(parts[0] + b"\n", line, offset, held, too_long=True)
    elif held:
        data = b"".join(parts)
        yield Block(data + b"\n", line, offset, len(data))


def block_lines(block: Block) -> Iterator[Line]:
    """Yield the lines of a block, without their line ends."""
    if block.too_long:
        yield Line(block.data[:-1], block.first_line, block.offset, too_long=True)
        return
    offset = block.offset
    for number, line in enumerate(block.data[:-1].split(b"\n"), block.first_line):
        yield Line(line[:-1] if line.endswith(b"\r") else line, number, offset)
        offset += len(line) + 1


def read_lines(path: str | Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """Yield the lines of a file with number and byte offset. Raises OSError."""
    for block in read_blocks(path, max_line_bytes=max_line_bytes):
        yield from block_lines(block)


def read_line_at(descriptor: int, offset: int, *, max_line_bytes: int = MAX_LINE_BYTES) -> bytes:
    """The line that starts at byte `offset` of an open file, without its line end."""
    size = 4096
    data = b""
    while True:
        piece = os.pread(descriptor, size, offset + len(data))
        end = piece.find(b"\n")
        data += piece[:end] if end >= 0 else piece
        if end >= 0 or not piece or len(data) > max_line_bytes:
            return data[:-1] if data.endswith(b"\r") else data
        size = min(size * 4, BLOCK_BYTES)


def encode_line(row: Mapping[str, Any]) -> bytes:
    """One line of a JSONL file, with its line end, formatted as all rows of the format are.

    Raises ValueError for values that JSON or UTF-8 cannot represent: NaN, infinity, lone surrogates.
    """
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
