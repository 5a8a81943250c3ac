"""The five samples from each format to each other and back, from the command line: equal turns, images and systems."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from five_samples import FIVE, write_set
from in_process import Cli, make_cli

from phi3v_data.dataset import Dataset
from phi3v_data.schema import Sample, Turn

SAMPLES = Path(__file__).parents[1] / "data" / "chat_formats"
FILES = {
    "llava": ("llava/data.json", ()),
    "sharegpt": ("sharegpt", ("--data", "demo_conversations")),
    "swift": ("ms_swift/data.jsonl", ()),
    "openai": ("openai/data_url.jsonl", ()),
    "trl": ("trl/data.jsonl", ()),
}
TARGETS = ("sharegpt", "swift", "openai", "trl", "axolotl", "hub", "imagefolder", "webdataset")
FOLDED = ("llava", "qwen")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return make_cli(capsys, monkeypatch)


def good(cli: Cli, *words: object) -> str:
    code, out, err = cli(*words, "-q")
    assert code == 0, err
    return out


def bring_in(cli: Cli, name: str, source: Path, out: Path) -> Path:
    """A file of another tool as a directory."""
    good(cli, "import", name, source, "--out_dir", out, "--workers", 0)
    return out


def content(directory: Path) -> list[dict[str, Any]]:
    """The rows without what a tool may name otherwise: ids, and names of images, which are told by their bytes."""
    dataset = Dataset(directory)
    rows = []
    for sample in dataset["train"]:
        turns = [
            {
                "images": [hashlib.sha256(dataset.image_path(name).read_bytes()).hexdigest() for name in turn.images],
                "user": turn.user,
                "assistant": turn.assistant,
                "offsets": turn.image_offsets,
                "weight": turn.weight,
            }
            for turn in sample.conversations
        ]
        rows.append({"system": sample.system, "turns": turns})
    return rows


def expected() -> list[dict[str, Any]]:
    """The five samples as their own file tells them."""
    images = SAMPLES / "llava"
    rows = []
    for row in json.loads((SAMPLES / "samples.json").read_text(encoding="utf-8")):
        turns = [
            {
                "images": [hashlib.sha256((images / name).read_bytes()).hexdigest() for name in turn["images"]],
                "user": turn["user"],
                "assistant": turn["assistant"],
                "offsets": (),
                "weight": 1,
            }
            for turn in row["turns"]
        ]
        rows.append({"system": row["system"] or "", "turns": turns})
    return rows


@pytest.fixture
def five(cli: Cli, tmp_path: Path) -> Path:
    good(cli, "import", "swift", SAMPLES / "ms_swift" / "data.jsonl", "--out_dir", tmp_path / "five", "--workers", 0)
    return tmp_path / "five"


@pytest.mark.parametrize("name", TARGETS)
def test_the_five_samples_come_back_from_each_format(name: str, cli: Cli, five: Path, tmp_path: Path) -> None:
    if name == "hub":
        pytest.importorskip("pyarrow")
    assert content(five) == expected()
    said = good(cli, "export", name, five, "--out", tmp_path / "out")
    assert said.startswith(f"{tmp_path / 'out'}: 5 rows (train 5)")
    assert content(bring_in(cli, name, tmp_path / "out", tmp_path / "back")) == expected()


def test_a_merge_of_shards_makes_a_directory_of_them_too(cli: Cli, five: Path, tmp_path: Path) -> None:
    good(cli, "export", "webdataset", five, "--out", tmp_path / "out")
    good(cli, "merge", tmp_path / "out", tmp_path / "back")
    assert content(tmp_path / "back") == expected()


@pytest.mark.parametrize("name", FOLDED)
def test_formats_without_system_messages_have_them_in_the_first_text(
    name: str, cli: Cli, five: Path, tmp_path: Path
) -> None:
    code, out, _ = cli("export", name, five, "--out", tmp_path / "out", "-q")
    assert code == 1
    assert "system-message: 1 row" in out
    good(cli, "export", name, five, "--out", tmp_path / "out", "--lossy")
    rows = content(bring_in(cli, name, tmp_path / "out", tmp_path / "back"))
    assert rows == folded(expected())


def folded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the system message, which the fifth has, in its first text."""
    turn = rows[4]["turns"][0]
    turn["user"] = f"{rows[4]['system']}\n\n{turn['user']}"
    rows[4]["system"] = ""
    return rows


@pytest.mark.parametrize("name", ["swift", "openai", "hub", "imagefolder", "webdataset"])
def test_weights_places_and_white_space_come_back_too(name: str, cli: Cli, tmp_path: Path) -> None:
    if name == "hub":
        pytest.importorskip("pyarrow")
    turns = (
        Turn(images=("cat.jpg",), user="See this: what?", assistant="A cat.", image_offsets=(10,), weight=0),
        Turn(images=("cup.jpg", "cat.jpg"), user="\n first, then\n", assistant=" é\n", image_offsets=(0, 7)),
        Turn(images=("cat.jpg",), user="", assistant="漢"),
    )
    rows = [Sample(id="a", source="s", system="Be brief.\n", conversations=turns), FIVE[0]]
    source = write_set(tmp_path / "set", rows)
    good(cli, "export", name, source, "--out", tmp_path / "out")
    assert content(bring_in(cli, name, tmp_path / "out", tmp_path / "back")) == content(source)


@pytest.mark.slow
@pytest.mark.parametrize("first", FILES)
@pytest.mark.parametrize("second", TARGETS)
def test_each_file_of_a_tool_goes_to_each_format_and_back(first: str, second: str, cli: Cli, tmp_path: Path) -> None:
    file, more = FILES[first]
    good(cli, "import", first, SAMPLES / file, *more, "--out_dir", tmp_path / "a", "--workers", 0)
    before = content(tmp_path / "a")
    good(cli, "export", second, tmp_path / "a", "--out", tmp_path / "b")
    bring_in(cli, second, tmp_path / "b", tmp_path / "c")
    assert content(tmp_path / "c") == before
    lossy = ("--lossy",) if first == "llava" else ()
    good(cli, "export", first, tmp_path / "c", "--out", tmp_path / "d", *lossy)
    after = content(bring_in(cli, first, tmp_path / "d", tmp_path / "e"))
    assert after == (folded(before) if first == "llava" else before)
