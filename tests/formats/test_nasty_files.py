"""Files that are broken in the middle, mixed, or of other types: what is wrong is named, by `validate` and imports."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from in_process import Cli, make_cli

from phi3v_data.lint import lint_file

Row = dict[str, Any]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return make_cli(capsys, monkeypatch)


def row(number: int = 0, **more: Any) -> Row:
    messages = [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": "A number."}]
    return {"messages": messages, **more}


def write(path: Path, *rows: Row) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def found_in(path: Path, **options: Any) -> list[tuple[str, int | None, str | None]]:
    return [(item.code, item.line, item.field) for item in lint_file(path, **options).problems]


def rejects_in(folder: Path) -> list[tuple[str, str]]:
    lines = (folder / "rejects.jsonl").read_text().splitlines()
    return [(each["reason"], each["message"].partition(": ")[0]) for each in map(json.loads, lines)]


def test_several_faults_between_the_rows_of_one_line(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    first, second, third, last = (json.dumps(row(number)) for number in range(4))
    path.write_text(f"[{first},,{second} {third}, nope,\n{last}]]")
    expected = [("json-syntax", 1, None)] * 2 + [("json-syntax", 1, "[3]"), ("json-syntax", 2, None)]
    assert sorted(found_in(path, format="swift"), key=str) == sorted(expected, key=str)
    code, said, _ = cli("import", "swift", path, "--out_dir", tmp_path / "out", "--workers", 0)
    assert (code, "4 samples (train 4), 0 images, 4 rejected (4 json-syntax" in said) == (1, True)
    places = ["rows.json, line 1", "rows.json, line 1", "rows.json, line 2", "rows.json[3], line 1"]
    assert sorted(rejects_in(tmp_path / "out")) == [("json-syntax", place) for place in places]


def test_rows_of_several_forms_in_a_file_of_ms_swift(tmp_path: Path) -> None:
    """As ms-swift 4.6.0 read such files: the rows without the first of these columns were not there."""
    talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    other, question = {"conversations": talk}, {"query": "Hi you", "response": "Ho"}
    path = write(tmp_path / "rows.jsonl", row(0), other, row(1), question, {"query": "Hi", "response": "Ho"})
    report = lint_file(path, format="swift")
    assert [(item.code, item.line, item.message) for item in report.problems] == [
        ("missing-field", 2, "ms-swift reads 'messages' of the whole file, and drops 1 row without it"),
        ("missing-field", 4, "ms-swift reads 'messages' of the whole file, and drops 2 rows without it"),
    ]
    assert found_in(write(path, question, other), format="swift") == [("missing-field", 1, None)]
    assert found_in(write(path, question, {**question, "query": "You?"}), format="swift") == []
    mistaken = {"query": "Hi", "solution": "Ho"}
    assert found_in(write(path, question, mistaken), format="swift") == [("column-mistaken", 2, "solution")]


def test_messages_as_a_json_text(cli: Cli, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", row(0), {**row(1), "messages": json.dumps(row(1)["messages"]), "images": "a"})
    [found] = lint_file(path, format="swift").problems
    assert (found.code, found.line, found.field) == ("wrong-type", 2, "messages")
    assert "ms-swift" not in found.message  # it parses such a text
    assert found.hint == "write the array itself, not its JSON text"
    code, _, error = cli("import", "swift", path, "--out_dir", tmp_path / "out", "--workers", 0)
    assert (code, "not imported" in error) == (1, False)  # of a row that was not read, no column was


@pytest.mark.parametrize("number", ["1e999", "9" * 5000, "-1e400"])
def test_a_number_that_is_too_large(number: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(f'[{json.dumps(row())[:-1]}, "score": {number}}}]')
    [found] = lint_file(path, format="swift").problems
    assert (found.code, found.field) == ("non-finite-number", "score")
    assert found.message == "a number is infinite, or too large"


@pytest.mark.parametrize("calls", ["x", {"id": "a"}, 5])
def test_calls_of_tools_that_are_not_an_array(calls: Any, cli: Cli, tmp_path: Path) -> None:
    bad = row(1)
    bad["messages"][1]["tool_calls"] = calls
    path = write(tmp_path / "rows.jsonl", row(0), bad)
    assert found_in(path, format="openai") == [("wrong-type", 2, "messages[1].tool_calls")]
    cli("import", "openai", path, "--out_dir", tmp_path / "out", "--workers", 0)
    assert rejects_in(tmp_path / "out") == [("wrong-type", "rows.jsonl, line 2, messages[1].tool_calls")]


def test_a_pair_of_equal_answers_that_ms_swift_deletes(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", row(0, rejected_response="A number."), row(1, rejected_response="A letter."))
    assert found_in(path, format="swift") == [("nothing-trained", 1, "rejected_response")]


def test_gzip_that_was_cut_is_not_read_in_part(cli: Cli, tmp_path: Path) -> None:
    data = gzip.compress("".join(json.dumps(row(number)) + "\n" for number in range(3000)).encode())
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(data[: len(data) // 2])
    for words in (("validate", path), ("import", "swift", path, "--out_dir", tmp_path / "out", "--workers", 0)):
        code, _, error = cli(*words)
        assert (code, "'rows.jsonl.gz' is a damaged or cut gzip file; download it again" in error) == (2, True), error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([b"junk"], [("image-unreadable", 1, "images[0]")]),
        (2.5, [("wrong-type", 1, "images")]),
        ([{"bytes": None, "path": None}], [("wrong-type", 1, "images[0]")]),
        ([{"bytes": b"junk", "path": "a.png"}], [("image-unreadable", 1, "images[0]")]),
    ],
)
def test_columns_of_other_types_in_parquet(column: Any, expected: list[tuple[str, int, str]], tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    bad = row(0, images=column)
    bad["messages"][0]["content"] = "<image>What?"
    pq.write_table(pa.Table.from_pylist([bad]), tmp_path / "rows.parquet")
    assert found_in(tmp_path / "rows.parquet", format="swift") == expected
