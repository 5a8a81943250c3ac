"""Rows of files of other tools: each with its line, offset and length, broken rows by themselves."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3v_data import jsonl
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.formats import json_array
from phi3v_data.formats.json_array import ArrayReader
from phi3v_data.formats.line_blocks import line_blocks
from phi3v_data.formats.rows import RowPlace, read_rows

BOM = b"\xef\xbb\xbf"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def row(number: int) -> dict[str, Any]:
    """A row whose texts have brackets, commas and quotes."""
    return {"id": str(number), "turns": [{"from": "human", "value": 'a {b], "c"'}, {"from": "gpt", "value": "ok"}]}


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(VALUES, max_size=6),
    indent=st.sampled_from([None, 0, 1, 3]),
    ascii_only=st.booleans(),
    crlf=st.booleans(),
    around=st.sampled_from([("", ""), ("\n ", "\n\n"), ("\t", " ")]),
    chunk=st.sampled_from([1, 2, 3, 7, 60, 1 << 20]),
)
def test_elements_of_an_array_are_those_of_json_with_their_offsets_and_lines(
    values: list[Any], indent: int | None, ascii_only: bool, crlf: bool, around: tuple[str, str], chunk: int
) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    text = around[0] + text.replace("\n", "\r\n" if crlf else "\n") + around[1]
    data = text.encode("utf-8", "surrogatepass") if ascii_only else text.encode()
    found: list[Any] = []
    for block in ArrayReader(io.BytesIO(data), chunk).blocks():
        assert block.faults == []
        for start, end, line in zip(block.starts.tolist(), block.ends.tolist(), block.lines.tolist(), strict=True):
            element = data[block.offset + start : block.offset + end]
            found.append(json.loads(element))
            assert element == element.strip()
            assert line == data[: block.offset + start].count(b"\n") + 1
    assert found == json.loads(data) == values


class Forwards(io.BytesIO):
    """A stream that cannot go back, as of a gzip file."""

    def seekable(self) -> bool:
        return False


@pytest.mark.parametrize("size", [1, 2, 3, 7, 49])
@pytest.mark.parametrize("is_seekable", [True, False])
def test_lines_are_found_at_any_size_of_blocks(size: int, is_seekable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 50)
    lines = [b'{"a": 1}', b"", b'{"b": "\xc3\xa9"}', b"x" * 90, b" \t", b"1", b"y" * 51, b"z" * 50, b'{"last": 0}']
    text = b"\n".join(lines)
    for data in (text, text + b"\n", b"\n".join(lines[:4]), b"\n" + b"\n".join(lines[:4]) + b"\n"):
        file = io.BytesIO(data) if is_seekable else Forwards(data)
        found, faults = [], []
        for block in line_blocks(file, size):
            faults += [(line, fault.code) for line, fault in block.faults]
            for start, end, line in zip(block.starts.tolist(), block.ends.tolist(), block.lines.tolist(), strict=True):
                assert data[block.offset + start : block.offset + end] == block.data[start:end]
                found.append((line, block.data[start:end]))
        numbered = list(enumerate(data.removesuffix(b"\n").split(b"\n"), 1))
        assert found == [(line, text) for line, text in numbered if text.strip() and len(text) <= 50]
        assert faults == [
            (line, "line-too-long" if text.strip() else "blank-line")
            for line, text in numbered
            if not text.strip() or len(text) > 50
        ]


BREAKS: dict[str, Callable[[str], str]] = {
    "quote not closed": lambda text: text.replace('"ok"', '"ok'),
    "quote missing": lambda text: text.replace('"human"', 'human"'),
    "quote too many": lambda text: text.replace('"ok"', '"o"k"'),
    "last brace missing": lambda text: text[:-1],
    "bracket missing": lambda text: text.replace("]}", "}"),
    "brace too many": lambda text: text + "}",
    "first brace missing": lambda text: text[1:],
    "colon missing": lambda text: text.replace(":", "", 1),
    "not a value": lambda text: text.replace('"ok"', "tru"),
    "line end in a string": lambda text: text.replace("ok", "o\0k").replace("\0", "\x01"),
    "key not quoted": lambda text: text.replace('"id"', "id"),
}


@pytest.mark.parametrize("separator", [", ", ",\n", ",\r\n  "])
@pytest.mark.parametrize("chunk", [5, 150, 1 << 20])
@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_element_is_named_at_its_line_and_the_others_are_read(name: str, chunk: int, separator: str) -> None:
    rows = [json.dumps(row(number)) for number in range(6)]
    rows[2] = BREAKS[name](rows[2])
    blocks = list(ArrayReader(io.BytesIO(f"[{separator.join(rows)}]".encode()), chunk).blocks())
    good, bad = [], []
    for block in blocks:
        bad += [line for line, _ in block.faults]
        for line, (value, faults) in zip(block.lines.tolist(), block.values(), strict=True):
            if faults:
                assert {fault.code for fault in faults} == {"json-syntax"}
                bad.append(line)
            else:
                assert value is not None
                good.append(value[0])
    assert good == [row(number) for number in range(6) if number != 2]
    assert set(bad) == {3 if "\n" in separator else 1}


def elements(text: str, chunk: int) -> list[tuple[int, Any]]:
    """Line and value of each element; `broken` for one that is not JSON."""
    found = []
    for block in ArrayReader(io.BytesIO(text.encode()), chunk).blocks():
        for line, (value, faults) in zip(block.lines.tolist(), block.values(), strict=True):
            found.append((line, "broken" if faults or value is None else value[0]))
    return found


@pytest.mark.parametrize("chunk", [1, 5, 150, 1 << 20])
@pytest.mark.parametrize("name", BREAKS)
@pytest.mark.parametrize("place", [0, 2, 4])
def test_rows_behind_a_broken_one_are_read_whatever_their_first_key(name: str, place: int, chunk: int) -> None:
    rows: list[Any] = [row(0), row(1), row(2), {"image": "x" * 300, **row(3)}, {"image": "y", **row(4)}, row(5)]
    texts = [json.dumps(value) for value in rows]
    texts[place] = BREAKS[name](texts[place])
    expected = [(line, "broken" if line == place + 2 else value) for line, value in enumerate(rows, 2)]
    assert dict(elements("[\n" + ",\n".join(texts) + "\n]\n", chunk)) == dict(expected)


@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
def test_rows_with_images_first_behind_a_row_without_its_last_brackets(chunk: int) -> None:
    rows: list[Any] = [row(0), row(1), {"image": "x", **row(2)}, {"image": "y", **row(3)}, row(4)]
    texts = [json.dumps(value) for value in rows]
    texts[1] = texts[1].removesuffix("]}")
    texts[2] = texts[2].removesuffix("]}")  # two in a row
    text = "[\n" + ",\n".join(texts) + "\n]\n"
    assert elements(text, chunk) == [(2, rows[0]), (3, "broken"), (4, "broken"), (5, rows[3]), (6, rows[4])]


@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
@pytest.mark.parametrize("broken", ['{"id": 1}}', '{"id": tru}', '{"id" 1}'])
def test_elements_without_keys_behind_a_broken_one_are_counted(broken: str, chunk: int) -> None:
    text = '[\n{"id": 0},\n' + broken + ',\nnull,\n5,\n{"id": 2}\n]\n'
    assert elements(text, chunk) == [(2, {"id": 0}), (3, "broken"), (4, None), (5, 5), (6, {"id": 2})]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('[{"id":1},\n{"id":2},\n]', [3]),
        ('[{"id":1},\n,{"id":2}]', [2]),
        ('[{"id":1}\n{"id":2}]', [2]),
        ('[{"id":1}],\n{"id":2}]', [1]),
        ('[{"id":1},{"id":2}]\nmore', [2]),
        ('[{"id":1},{"id":2}\n', [2]),
        ('[{"id":1},{"id":2},\n{"id":', [2]),
        ("[]", []),
        ("[\n{}\n]\n\n", []),
    ],
)
@pytest.mark.parametrize("chunk", [1, 4, 1 << 20])
def test_what_is_between_rows_is_named_at_its_line(text: str, lines: list[int], chunk: int) -> None:
    found = []
    for block in ArrayReader(io.BytesIO(text.encode()), chunk).blocks():
        found += [line for line, _ in block.faults]
        found += [line for line, (_, faults) in zip(block.lines.tolist(), block.values(), strict=True) if faults]
    assert found == lines


def test_a_row_over_the_limit_is_named_and_the_next_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "MAX_LINE_BYTES", 5000)
    monkeypatch.setattr(json_array, "_PROBE", 1000)
    text = json.dumps([{"id": 1, "x": "a" * 9000}, {"id": 2}], indent=1)
    blocks = list(ArrayReader(io.BytesIO(text.encode()), 100).blocks())
    assert [(line, fault.code) for block in blocks for line, fault in block.faults] == [(2, "line-too-long")]
    assert [value for block in blocks for value, _ in block.values()] == [({"id": 2},)]
    assert [block.lines.tolist() for block in blocks if len(block)] == [[6]]


def write(folder: Path, layout: str) -> Path:
    """Three rows in a layout."""
    rows = [row(number) for number in range(3)]
    lines = "".join(json.dumps(value) + "\n" for value in rows).encode()
    contents = {"rows.jsonl": lines, "rows.json": json.dumps(rows, indent=2).encode()}
    contents |= {f"{name}.gz": gzip.compress(data) for name, data in contents.items()}
    path = folder / layout
    if layout == "rows.parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    else:
        path.write_bytes(contents[layout])
    return path


@pytest.mark.parametrize("layout", ["rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.json.gz", "rows.parquet"])
def test_rows_can_be_read_again_by_their_place(layout: str, tmp_path: Path) -> None:
    found = list(read_rows(write(tmp_path, layout)))
    assert [item.value for item in found] == [row(0), row(1), row(2)]
    for item in reversed(found):
        assert item.place is not None
        again = item.place.read()
        assert (again[0] if isinstance(again, tuple) else again) == item.value
    lines = {"rows.json": [2, 15, 28], "rows.json.gz": [2, 15, 28]}.get(layout, [1, 2, 3])
    assert [item.line for item in found] == lines


def test_faults_of_the_text_of_a_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        BOM + b'{"id": 1}\n\n{"id": 2, "id": 3}\n{"x": NaN}\n{"x": "\xff"}\n{"x": \n[1]\n{"x": "\\ud83d"}\n'
    )
    found = [(item.line, [fault.code for fault in item.faults]) for item in read_rows(path)]
    assert found == [
        (2, ["blank-line"]),
        (1, ["bom"]),
        (3, ["duplicate-key"]),
        (4, ["non-finite-number"]),
        (5, ["invalid-utf8"]),
        (6, ["json-syntax"]),
        (7, []),
        (8, []),
    ]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.json", b'{\n  "a": 1\n}\n', "begins with a JSON object over several lines"),
        ("a.json", b"", "is empty"),
        ("a.jsonl", b" \n\n", "is empty"),
        ("a.csv", b"id,text\n1,a\n", "CSV"),
        ("a.json", '[{"a": 1}]'.encode("utf-16"), "UTF-16"),
        ("a.json", b"PK\x03\x04....", "zip"),
        ("a.json.gz", b"\x1f\x8b123", "gzip"),
    ],
)
def test_a_file_without_rows_is_refused_in_one_sentence(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=words):
        list(read_rows(tmp_path / name))


def test_a_first_line_that_is_not_an_object_does_not_take_the_others_along(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('"title"\n{"a": 1}\n')
    assert [(row.line, row.value) for row in read_rows(tmp_path / "a.jsonl")] == [(1, "title"), (2, {"a": 1})]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\.json"):
        read_rows(tmp_path / "none.json")


def test_a_place_tells_that_its_file_was_cut(tmp_path: Path) -> None:
    place = list(read_rows(write(tmp_path, "rows.jsonl")))[-1].place
    assert isinstance(place, RowPlace)
    (tmp_path / "rows.jsonl").write_bytes(b"{}\n")
    with pytest.raises(UserError, match="changed"):
        place.read()
