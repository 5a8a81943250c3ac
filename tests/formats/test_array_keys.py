"""Elements of an array that are found by their first key are those that a scan of the text finds."""

import io
import json
import random
from typing import Any

import pytest

from phi3v_data.formats import json_array
from phi3v_data.formats.array_keys import spans_at_keys
from phi3v_data.formats.json_array import ArrayReader

MUTATIONS = ('"', "{", "}", "[", "]", ",", "\\", " ", "\n", '{"id":1},', ',{"id": ', "é")


def spans(text: str) -> tuple[list[int], list[int], int] | None:
    found = spans_at_keys(text.encode(), b'"id"')
    return None if found is None else (found[0].tolist(), found[1].tolist(), found[2])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"id":1},{"id":2},{"id"', ([0, 9], [8, 17], 18)),
        ('\n{"id":1} ,\n {"id":2},\r\n{ "id":3', ([1, 13], [9, 21], 22)),
        ('{"id":"},{\\"id\\""},{"id":2}', ([0], [18], 19)),  # a key in a text
        ('{"id":1,"t":[{"id":2}]},{"id":3}', None),  # a key of an inner object
        ('{"id":1,"t":[{"a":0},{"id":2}]},{"id":3}', None),
        ('{"no":1},{"t":[{"a":0},{"id":2}]},{"id":3}', None),
        ('{"id":1}{"id":2},{"id":3}', None),  # no comma
        ('{"id":1},{"id":2,{"id":3},{"id":4}', None),  # a brace too few
        ('{"id":1},{"id":2}},{"id":3}', None),
        ('{"id":1},{"id":02},{"id":3}', None),
        ('1,{"id":1},{"id":2}', None),
        ('{"id":1},2,{"id":2}', None),
        ('{"id":1}', None),
        ("", None),
    ],
)
def test_spans_of_the_elements_before_the_last(text: str, expected: tuple[list[int], list[int], int] | None) -> None:
    assert spans(text) == expected


def read(data: bytes, chunk: int) -> tuple[list[tuple[bytes, int, int]], list[tuple[int, str]]]:
    """Text, offset and line of each element, and what is between them."""
    rows, faults = [], []
    for block in ArrayReader(io.BytesIO(data), chunk).blocks():
        faults += [(line, fault.message) for line, fault in block.faults]
        for number, (start, line) in enumerate(zip(block.starts.tolist(), block.lines.tolist(), strict=True)):
            rows.append((block.text(number), block.offset + start, line))
    return rows, sorted(faults)


def array_text(rng: random.Random, count: int) -> str:
    """An array of rows, a few of which have inner keys, other keys, or a character too many or too few."""
    rows = []
    for number in range(count):
        value: dict[str, Any] = {"id": number, "turns": [{"from": "human", "value": 'a {b], "c" \\'}]}
        if rng.random() < 0.02:
            value = (
                {"id": number, "tools": [{"name": "a"}, {"id": 3}]} if rng.random() < 0.5 else {"turns": [], "id": 1}
            )
        text = json.dumps(value, indent=rng.choice([None, None, 1]))
        if rng.random() < 0.02:
            place = rng.randrange(len(text))
            text = text[:place] + rng.choice(MUTATIONS) * rng.randrange(2) + text[place + rng.randrange(2) :]
        rows.append(text)
    return "[" + rng.choice([",", ",\n", " ,\n "]).join(rows) + "]\n"


def test_a_damaged_array_is_read_as_by_a_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    texts = [array_text(rng, 120).encode() for _ in range(40)]
    cut = [(text, rng.choice([200, 700, 3000])) for text in texts]
    by_keys = [read(text, chunk) for text, chunk in cut]
    monkeypatch.setattr(json_array, "_MAX_MISSES", 0)
    assert [read(text, chunk) for text, chunk in cut] == by_keys
    assert any(faults for _, faults in by_keys)


def test_rows_with_the_same_first_key_are_not_scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    scanned = 0
    scan = ArrayReader._scan

    def counted(self: ArrayReader, chunk: bytes) -> Any:
        nonlocal scanned
        scanned += len(chunk)
        return scan(self, chunk)

    monkeypatch.setattr(ArrayReader, "_scan", counted)
    data = json.dumps(
        [{"id": number, "turns": [{"from": "human"}, {"from": "gpt"}]} for number in range(1000)]
    ).encode()
    rows, faults = read(data, 2000)
    assert [json.loads(text)["id"] for text, _, _ in rows] == list(range(1000))
    assert faults == []
    assert scanned < 4500  # the first chunk and the last row
