"""Lines in, lines out: any bytes, right numbers and offsets, bounded memory."""

import json
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3v_data.jsonl import MAX_LINE_BYTES, block_lines, cut_file, encode_line, read_blocks, read_line_at, read_lines


def expected_lines(data: bytes) -> list[bytes]:
    """Lines by a plain split."""
    lines = data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines]


@given(st.binary(max_size=400) | st.text("a\r\n\0é", max_size=200).map(str.encode), st.integers(1, 50))
@settings(max_examples=300, deadline=None)
def test_any_bytes_come_back_in_lines(tmp_path_factory: pytest.TempPathFactory, data: bytes, block: int) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(data)
    found = [line for block_ in read_blocks(path, block_bytes=block) for line in block_lines(block_)]
    assert [line.data for line in found] == expected_lines(data)
    assert [line.number for line in found] == list(range(1, len(found) + 1))
    with path.open("rb") as file:
        for line in found:
            assert read_line_at(file.fileno(), line.offset) == line.data


@given(
    st.lists(st.integers(0, 60), max_size=12),
    st.integers(1, 30),
    st.integers(1, 40),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_a_line_over_the_limit_is_one_line_and_hides_nothing(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], block: int, limit: int, last_end: bool
) -> None:
    path = tmp_path_factory.mktemp("long") / "a.jsonl"
    lines = [bytes([97 + index % 26]) * length for index, length in enumerate(lengths)]
    data = b"\n".join(lines) + (b"\n" if last_end and lines else b"")
    path.write_bytes(data)
    expected = expected_lines(data)
    found = [
        line for block_ in read_blocks(path, block_bytes=block, max_line_bytes=limit) for line in block_lines(block_)
    ]
    assert [line.number for line in found] == list(range(1, len(expected) + 1))
    offset = 0
    for line, content in zip(found, expected, strict=True):
        assert line.offset == offset
        assert line.too_long == (len(content) > limit)
        assert content.startswith(line.data) if line.too_long else line.data == content
        offset += len(content) + 1


def test_numbers_are_right_after_a_line_of_64_mb(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b"{}\n" * 3)
        for _ in range(65):
            file.write(b"x" * (1 << 20))
        file.write(b"\nlast\r\n")
    tracemalloc.start()
    found = list(read_lines(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(line.number, line.too_long) for line in found[3:]] == [(4, True), (5, False)]
    assert found[4].data == b"last"
    assert found[4].offset == path.stat().st_size - 6
    assert peak < MAX_LINE_BYTES * 2.2


def test_a_line_of_just_64_mb_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * MAX_LINE_BYTES + b"\n" + b"y" * (MAX_LINE_BYTES + 1) + b"\nz")
    found = [(line.number, line.too_long, line.data[:1]) for line in read_lines(path)]
    assert found == [(1, False, b"x"), (2, True, b"y"), (3, False, b"z")]


@pytest.mark.slow
def test_numbers_and_offsets_are_right_in_a_file_of_5_gb(tmp_path: Path) -> None:
    """Sparse: one long hole of NUL bytes between lines is one line over the limit."""
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b"first\n")
        file.seek(5 << 30)
        file.write(b"\nsecond\nthird")
    found = [(line.number, line.too_long, line.data[:6]) for line in read_lines(path)]
    assert found == [(1, False, b"first"), (2, True, b"\0" * 6), (3, False, b"second"), (4, False, b"third")]
    offsets = [line.offset for line in read_lines(path)]
    assert offsets[2] == (5 << 30) + 1
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert read_line_at(descriptor, offsets[2]) == b"second"
    finally:
        os.close(descriptor)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
rows = st.dictionaries(st.text(), scalars | st.lists(scalars) | st.dictionaries(st.text(), scalars))


@given(st.lists(rows, max_size=5))
@settings(max_examples=100, deadline=None)
def test_write_read_write_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory, values: list[dict[str, object]]
) -> None:
    path = tmp_path_factory.mktemp("identity") / "a.jsonl"
    path.write_bytes(b"".join(map(encode_line, values)))
    again = [json.loads(line.data) for line in read_lines(path)]
    assert again == values
    assert b"".join(map(encode_line, again)) == path.read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"JSON|surrogates"):
        encode_line({"a": value})


def test_a_missing_file_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        list(read_lines(tmp_path / "none.jsonl"))


@given(st.text("a\nb", max_size=80).map(str.encode), st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_parts_of_a_file_are_the_file(tmp_path_factory: pytest.TempPathFactory, data: bytes, size: int) -> None:
    path = tmp_path_factory.mktemp("parts") / "a.jsonl"
    path.write_bytes(data)
    whole = [(line.data, line.offset) for line in read_lines(path)]
    parts = cut_file(path, size)
    assert parts[0][0] == 0
    assert parts[-1][1] == len(data)
    pieces = [
        (line.data, line.offset)
        for start, end in parts
        for block in read_blocks(path, start=start, end=end)
        for line in block_lines(block)
    ]
    assert pieces == whole


@pytest.mark.parametrize(
    ("lengths", "part_bytes", "expected"),
    [
        ([10] * 3, 9, [(0, 10), (10, 20), (20, 30)]),  # the first part ends with the byte from which it is looked for
        ([10] * 3, 10, [(0, 20), (20, 30)]),
        ([10] * 3, 31, [(0, 30)]),
        ([10, 10, 10, 100, 10, 10, 10], 10, [(0, 20), (20, 130), (130, 150), (150, 160)]),
        ([10, 3_000_000, 10], 10, [(0, 3_000_010), (3_000_010, 3_000_020)]),
    ],
)
def test_a_file_is_cut_at_lines(
    tmp_path: Path, lengths: list[int], part_bytes: int, expected: list[tuple[int, int]]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(b"a" * (length - 1) + b"\n" for length in lengths))
    assert cut_file(path, part_bytes) == expected
