"""The table of docs/formats.md that says what each tool does to a bad row: `validate` says so of such a row."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from phi3v_data.formats.consumers.registry import get_consumer
from phi3v_data.lint import lint_file

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
TOOLS = {
    "llava": "llava",
    "qwen": "qwen",
    "llama-factory": "sharegpt",
    "ms-swift": "swift",
    "trl": "trl",
    "axolotl": "axolotl",
}
"""Each tool, and the format in which its rows are written here."""

Row = dict[str, Any]
Talk = list[tuple[str, Any]]

ASK, SAY = ("user", "What is it?"), ("assistant", "A cat.")
FROM = {"user": "human", "assistant": "gpt"}


def row_of(tool: str, talk: Talk, *images: Any, **more: Any) -> Row:
    """A row as a tool reads it: texts with tags, or blocks; images in a column, or in their blocks."""
    column: Row = {} if tool in ("llava", "qwen") and not images else {"images": list(images)}
    if tool in ("llava", "qwen"):
        turns = [{"from": FROM.get(role, role), "value": content} for role, content in talk]
        if images:
            column = {"image": images[0] if len(images) == 1 else list(images)}
        return {"conversations": turns, **column, **more}
    if tool in ("trl", "axolotl"):
        left = list(images) if tool == "axolotl" else []
        talk = [(role, blocks(content, left) if isinstance(content, str) else content) for role, content in talk]
        column = {} if tool == "axolotl" else column
    return {"messages": [{"role": role, "content": content} for role, content in talk], **column, **more}


def blocks(text: str, paths: list[Any]) -> list[Row]:
    found: list[Row] = []
    for piece in re.split("(<image>)", text):
        if piece == "<image>":
            found.append({"type": "image", **({"path": paths.pop(0)} if paths else {})})
        elif piece:
            found.append({"type": "text", "text": piece})
    return found


def rows_of(label: str, tool: str) -> list[list[Row]]:
    """Files with the bad row of a line of the table; several if it has several."""
    image: Talk = [("user", "<image>\nWhat is it?"), SAY]
    talks: dict[str, list[Talk]] = {
        "two messages of one role in a row": [[ASK, ASK, SAY], [ASK, SAY, SAY]],
        "an answer first": [[SAY, ASK, SAY]],
        "last message is the user's": [[ASK, SAY, ASK]],
        "system message first": [[("system", "Be terse."), ASK, SAY]],
        "system message in the middle": [[ASK, SAY, ("system", "Be terse."), ASK, SAY]],
        "unknown role": [[("narrator", "What is it?"), SAY]],
        "content that is a number": [[("user", 5), SAY]],
        "content that is `null`": [[("user", None), SAY]],
        "`<video>` in the text of a row without videos": [[("user", "What does <video> mean?"), SAY]],
    }
    if label in talks:
        return [[row_of(tool, talk)] for talk in talks[label]]
    good = row_of(tool, image, "a.png")
    if label == "more images than tags":
        if tool == "axolotl":  # a column beside blocks with paths
            return [[{**good, "images": ["b.png"]}]]
        return [[row_of(tool, image, "a.png", "b.png")]]
    if label == "fewer images than tags":
        return [[row_of(tool, [("user", "<image><image>\nWhat is it?"), SAY], "a.png")]]
    if label == "image in the middle of a text":
        return [[row_of(tool, [("user", "Is <image> red?"), SAY], "a.png")]]
    if label == "tags in texts, images in a column":
        many: Talk = [ASK, SAY, ("user", "<image>\nAnd this?"), SAY]
        if tool in ("trl", "axolotl"):
            return [[row_of("ms-swift", many, "a.png")]]
        return [[row_of(tool, many, "a.png")]]
    if label == "several images in a column":
        two: Talk = [("user", "<image>\n<image>\nWhat is it?" if tool == "llava" else "<image><image>Hi"), SAY]
        if tool == "axolotl":
            return [[{**row_of(tool, two), "images": ["a.png", "b.png"]}]]
        return [[row_of(tool, two, "a.png", "b.png")]]
    if label == "image file missing":
        return [[row_of(tool, image, "none.png")]]
    if label == "URL, data URL or base64 for a file":
        return [[row_of(tool, image, ref)] for ref in ("https://example.org/a.png", DATA_URL, DATA_URL[22:])]
    if label == "`images` instead of `image`":
        return [[{**row_of(tool, image), "images": ["a.png"]}]]
    name = "image" if tool in ("llava", "qwen") else "images"
    text: Talk = [ASK, SAY]
    if label == "`null` for no image":
        return [[{**row_of(tool, text), name: None}]]
    if label == "an empty text for no image":
        return [[{**row_of(tool, text), name: ""}]]
    if label == "image block with a key `image`":
        block = {"type": "image", "image": None if tool == "trl" else "a.png"}
        talk: Talk = [("user", [block, {"type": "text", "text": "What?"}]), SAY]
        if tool == "trl":
            return [[row_of(tool, talk, "a.png")]]
        return [[row_of(tool, talk)]]
    if label == "weight 0 of an answer":
        row = row_of(tool, [ASK, SAY, ASK, SAY])
        row[next(key for key in ("messages", "conversations") if key in row)][1]["weight"] = 0
        return [[row]]
    if label == "a column with a text here and an array there":
        return [[good, good, {**good, name: "a.png" if name == "images" else ["a.png"]}]]
    assert label == "first row without a column `images`"
    bare = row_of(tool, text)
    bare.pop("images", None)
    return [[bare, good]]


DATA_URL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR4nGPk5ORkYGBgYm"
    "BgYGBgAAABbgAfXn6dLgAAAABJRU5ErkJggg=="
)

SAID = {
    ("llava", "stops"): "stops",
    ("qwen", "trains it as an answer"): "for an answer, and trains it",
    ("llama-factory", "drops the row"): "makes the row empty with a warning, and skips it",
    ("llava", "drops the answer"): "drops a first message that is not the user's without a word",
    ("*", "stops, names no row"): "stops, and names",
    ("*", "trains the next row instead"): "and trains the next row instead",
    ("*", "trains a random row instead"): "trains another, chosen at random, in its place",
    ("*", "leaves it to the template"): "leaves it to the chat template",
    ("ms-swift", "puts an empty user message before it"): "puts an empty user message before an answer",
    ("ms-swift", "joins them"): "joins messages of one role",
    ("ms-swift", "puts the missing tags first"): "puts the missing tags before the first message",
    ("ms-swift", "keeps the last tags as text"): "keeps the surplus tags as text",
    ("ms-swift", "reads it as text"): "or keeps it if there is none",
    ("ms-swift", "drops `weight`, reads `loss`"): "drops the key 'weight' of a message",
    ("llava", "moves a single one to the start"): "moves the image to the start",
    ("qwen", "strips white space beside it"): "removes white space beside an image",
    ("trl", "does not count it"): "does not take a block with a key 'image' for the place",
    ("trl", "ignores all images"): "reads the whole set without images",
    ("trl", "moves all before the first user message that is a text"): "puts all images before the first user message",
    ("trl", "stops, if the row has images"): "stops, if the row has images",
    ("axolotl", "puts the first behind the first user text"): "puts the image of the column after the first user text",
    ("axolotl", "uses the first"): "uses the first of the 2 images",
    ("*", "does not see them"): "does not see these images",
    ("llama-factory", "does not load"): "loads the file with a version of datasets that stops at it",
}
"""Words of a message for those of a cell; other cells have the words of their messages."""

CLEAN = re.compile("reads .*|-")
"""Cells of what a tool does right, or of what nothing is known."""


def table() -> dict[tuple[str, str], str]:
    """The cells by row and tool."""
    section = PAGE.partition("**Which tool does what to a bad row**")[2]
    lines = section.partition("\n\n")[2].partition("\n\n")[0].splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in lines)
    tools = [name.strip("`") for name in head[1:]]
    assert tools == list(TOOLS)
    assert len(rows) == 23
    return {(row[0], tool): cell for row in rows for tool, cell in zip(tools, row[1:], strict=True)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    Image.new("RGB", (8, 6), "red").save(folder / "a.png")
    Image.new("RGB", (8, 6), "blue").save(folder / "b.png")
    return folder


def messages_of(rows: list[Row], tool: str, folder: Path) -> tuple[list[str], list[str]]:
    """Messages of the linter, all of them and those that are not notes."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = TOOLS[tool]
    if tool == "ms-swift" and any(isinstance(each["content"], list) for each in rows[0]["messages"]):
        name = "axolotl"  # as one that has blocks
    report = lint_file(path, format=name, consumer=tool)
    found = [item for item in report.problems if item.code != "duplicate-sample"]
    return [item.message for item in found], [item.message for item in found if item.severity != "info"]


@pytest.mark.parametrize(("label", "tool"), table())
def test_validate_says_what_the_table_says(label: str, tool: str, folder: Path) -> None:
    cell, title = table()[label, tool], get_consumer(tool).title
    for rows in rows_of(label, tool):
        said, faults = messages_of(rows, tool, folder)
        words = SAID.get((tool, cell)) or SAID.get(("*", cell)) or cell
        if cell == "-":
            assert [each for each in said if title in each] == []
        elif words == cell and CLEAN.fullmatch(cell):
            assert [each for each in faults if "marker of some model" not in each] == []
        else:
            assert any(title in each and words in each for each in said), said
