"""Text from data as messages show it, and encodings of text files that are not UTF-8."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from in_process import make_cli

from phi3v_data import convert
from phi3v_data.draft import Converter, Draft, Item, Options
from phi3v_data.encodings import encoding_of, open_utf8
from phi3v_data.errors import Reject, UserError
from phi3v_data.messages import counted, escaped, join_words, short, shown, shown_path
from phi3v_data.sources.source import Source


def test_a_long_message_keeps_its_start_and_its_end() -> None:
    message = "rows.csv:7: " + "x" * 5000 + " save it as UTF-8"
    cut = short(message)
    assert len(cut) == 300
    assert cut.startswith("rows.csv:7: xxx")
    assert cut.endswith("xxx save it as UTF-8")
    assert " … " in cut
    assert short("fine: it fits") == "fine: it fits"


def test_a_command_of_an_error_is_whole_however_long_its_paths_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("deep" * 20) / ("er" * 60)
    folder.mkdir(parents=True)
    (folder / "train.json").write_text("[]")
    code, _, error = make_cli(capsys, monkeypatch)("stats", folder / "train.json")
    assert code == 2
    assert f"`phi3v-data import auto {folder}/train.json --out_dir DIR`" in error
    assert shown_path(folder / "a\nb") == f"'{folder}/a\\nb'"


def test_no_escape_code_gets_through() -> None:
    assert short("\x1b[31mred\x07") == "\\x1b[31mred\\x07"
    assert escaped("caf\udce9\x85") == "caf\\udce9\\x85"
    assert shown("a\nb" * 100, 5) == "'a\\nba…'"


@pytest.mark.parametrize(
    ("words", "options", "expected"),
    [
        ([], {}, ""),
        (["a", "b"], {"limit": 2}, "a, b"),
        (["a", "b", "c"], {"limit": 2}, "a, b and 1 more"),
        (["a", "b", "c"], {"limit": 2, "noun": "size"}, "a, b and 1 more size"),
        (range(2007), {"limit": 3, "noun": "size"}, "0, 1, 2 and 2,004 more sizes"),
        (list("abcdefgh"), {"each": shown}, "'a', 'b', 'c', 'd', 'e', 'f' and 2 more"),
    ],
)
def test_words_up_to_a_limit_and_the_number_of_the_others(words, options, expected) -> None:
    assert join_words(words, **options) == expected


def test_a_reject_does_not_repeat_a_cell(tmp_path: Path) -> None:
    cell = "\x1b]0;title\x07" + "A" * 3000
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"image": cell, "q": "Why?", "a": "So."}) + "\n" + json.dumps({"image": "", "q": "Who?", "a": "I."})
    )
    mapping = {"images": "image", "user": "{q}", "assistant": "{a}"}
    convert("table", tmp_path / "rows.jsonl", tmp_path / "out", options={"map": mapping}, workers=0)
    [reject] = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert len(reject["message"]) <= 300
    assert reject["message"].isprintable()
    assert "A" * 100 not in reject["message"]


class Talkative(Converter[Options]):
    """Rejects every other sample, at length and in colour."""

    name = "talkative"

    def plan(self, source: Source, options: Options) -> Iterable[Item]:
        yield Item("train", "a", reject="too-long", message="\x1b[31m" + "x" * 5000 + " the end")
        yield from (Item("train", key) for key in "bc")

    def convert(self, item: Item, options: Options) -> Draft:
        if item.key == "b":
            raise Reject("too-long", "y" * 5000 + "\x07 the end")
        return Draft("Why?", "So.")


def test_a_converters_own_message_is_cut_and_escaped(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    result = convert(Talkative, tmp_path / "s", tmp_path / "out", workers=0)
    assert (result.samples, result.rejects) == (1, 2)
    lines = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    first, second = (json.loads(line)["message"] for line in lines)
    assert first.startswith("\\x1b[31mxxx")
    assert second.endswith("yyy\\x07 the end")
    assert (len(first), len(second)) == (300, 300)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b'{"id": "a"}\n', ""),
        ("\ufeff{}".encode("utf-8"), ""),
        (b"", ""),
        ("{}".encode("utf-16"), "UTF-16"),
        ("{}".encode("utf-32"), "UTF-32"),
        ('{"id": 1}'.encode("utf-16-be"), "UTF-16 without a byte order mark"),
        (gzip.compress(b"{}", mtime=0), "gzip"),
        (b"PK\x03\x04rest", "zip"),
    ],
)
def test_what_a_file_is_instead_of_text(data: bytes, kind: str) -> None:
    assert encoding_of(data) == kind


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_source_text_is_read_in_what_spreadsheets_write(tmp_path: Path, encoding: str, packed: bool) -> None:
    text = "a;é\r\n" + "x" * 70000 + ";\U0001f600\n"
    data = ("\ufeff" if encoding == "utf-16-le" else "").encode(encoding) + text.encode(encoding)
    (tmp_path / "t").write_bytes(gzip.compress(data) if packed else data)
    with open_utf8(tmp_path / "t") as stream:
        assert stream.read().decode("utf-8-sig") == text


def test_damaged_texts_are_one_sentence(tmp_path: Path) -> None:
    for data, words in (
        (gzip.compress(b"hello" * 100)[:-4], "damaged or cut gzip"),
        ("ab".encode("utf-16") + b"\x00", "not valid UTF-16"),
        (b"PK\x03\x04", "is zip, not text"),
        (gzip.compress(bytes(80 << 20), 9), "more than 200 times its size"),
    ):
        (tmp_path / "t").write_bytes(data)
        with pytest.raises(UserError, match=words):
            _read_all(tmp_path / "t")


def _read_all(path: Path) -> None:
    with open_utf8(path) as stream:
        while stream.read(1 << 20):
            pass


def test_a_count_agrees_with_its_noun() -> None:
    assert [counted(n, "image") for n in (0, 1, 2, 12345)] == ["0 images", "1 image", "2 images", "12,345 images"]
    assert [counted(n, "entry", "entries") for n in (1, 2)] == ["1 entry", "2 entries"]
