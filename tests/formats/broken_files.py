"""Files of other tools with one broken row each, and where the fault is: file, rule broken, code, field."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

Row = dict[str, Any]

BAD = 2
"""Index of the broken row; good rows are before and behind it."""


def user(text: Any, **more: Any) -> Row:
    return {"role": "user", "content": text, **more}


def answer(text: Any = "A shape.", **more: Any) -> Row:
    return {"role": "assistant", "content": text, **more}


def human(text: str) -> Row:
    return {"from": "human", "value": text}


def gpt(text: str = "A shape.") -> Row:
    return {"from": "gpt", "value": text}


def text(words: str) -> Row:
    return {"type": "text", "text": words}


def url(value: str) -> Row:
    return {"type": "image_url", "image_url": {"url": value}}


PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR4nGPk5ORkYGBgYm"
    "BgYGBgAAABbgAfXn6dLgAAAABJRU5ErkJggg=="
)

GIF = "data:image/gif;base64,R0lGODdhAQABAIAAAAAAAAAAACwAAAAAAQABAAACAkQBADs="

GOOD: Mapping[str, Callable[[int], Row]] = {
    "llava": lambda n: {"id": f"g{n}", "image": "a.png", "conversations": [human(f"<image>\nWhat is {n}?"), gpt()]},
    "qwen": lambda n: {"id": f"g{n}", "image": "a.png", "conversations": [human(f"<image>\nWhat is {n}?"), gpt()]},
    "sharegpt": lambda n: {"id": f"g{n}", "images": ["a.png"], "conversations": [human(f"<image>What is {n}?"), gpt()]},
    "swift": lambda n: {"images": ["a.png"], "messages": [user(f"<image>What is {n}?"), answer()]},
    "trl": lambda n: {
        "images": ["a.png"],
        "messages": [user([{"type": "image"}, text(f"What is {n}?")]), answer([text("A shape.")])],
    },
    "axolotl": lambda n: {
        "messages": [user([{"type": "image", "path": "a.png"}, text(f"What is {n}?")]), answer([text("It.")])]
    },
    "openai": lambda n: {"messages": [user([text(f"What is {n}?"), url(PNG)]), answer()]},
}


@dataclass(frozen=True)
class Broken:
    """A file whose row `BAD` breaks one rule; `row` is text if it is not JSON."""

    name: str
    format: str
    row: Row | str
    code: str
    field: str | None
    consumer: str | None = None
    first: Row | None = None  # in place of the first good row

    def write(self, folder: Path, layout: str) -> tuple[Path, int]:
        """Write the file as `lines`, `array` or `minified`; its path, and the line of the broken row."""
        rows: list[Row | str] = [GOOD[self.format](n) for n in range(5)]
        rows[BAD] = self.row
        if self.first is not None:
            rows[0] = self.first
        indent = 1 if layout == "array" else None
        texts = [row if isinstance(row, str) else json.dumps(row, indent=indent) for row in rows]
        before = ("[\n" if layout == "array" else "") + "".join(f"{each}\n" for each in texts[:BAD])
        path = folder / ("rows.jsonl" if layout == "lines" else "rows.json")
        if layout == "lines":
            path.write_text("".join(f"{each}\n" for each in texts))
        elif layout == "array":
            path.write_text("[\n" + ",\n".join(texts) + "\n]\n")
        else:
            path.write_text("[" + ",".join(texts) + "]")
        return path, 1 if layout == "minified" else before.count("\n") + 1


def write_images(folder: Path) -> None:
    """The images that the rows use."""
    for name, size in (("a.png", (8, 6)), ("b.png", (6, 8)), ("Photo.PNG", (4, 4))):
        Image.new("RGB", size, (200, 30, 30)).save(folder / name)
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:40])
    Image.new("RGB", (9, 9)).save(folder / "gif.gif")


CASES = [
    # text of the row
    Broken("quote not closed", "llava", '{"id": "b", "image": "a.png", "conversations": [{"from": "human',
           "json-syntax", None),
    Broken("nan", "sharegpt",
           '{"id": "b", "score": NaN, "images": [], "conversations": [{"from": "human", "value": "Hi"}, '
           '{"from": "gpt", "value": "Hello"}]}', "non-finite-number", "score"),
    Broken("key twice", "swift",
           '{"images": [], "images": ["a.png"], "messages": [{"role": "user", "content": "<image>Hi"}, '
           '{"role": "assistant", "content": "Hello"}]}', "duplicate-key", "images"),
    Broken("key twice in a message", "trl", '{"images": [], "messages": [{"role": "user", "role": "user", "content": '
           '[{"type": "text", "text": "Hi"}]}, {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]}]}',
           "duplicate-key", "messages[0].role"),
    Broken("not an object", "openai", '"row"', "json-not-object", None),
    Broken("half a character", "llava", '{"id": "b", "conversations": [{"from": "human", "value": "Hi \\ud83d"}, '
           '{"from": "gpt", "value": "Hello"}]}', "invalid-text", "conversations[0].value"),
    # LLaVA
    Broken("no messages", "llava", {"id": "b", "image": "a.png"}, "missing-field", "conversations"),
    Broken("system message", "llava", {"id": "b", "conversations": [{"from": "system", "value": "Be terse."},
           human("Hi"), gpt()]}, "system-message", "conversations[0].from"),
    Broken("answer first", "llava", {"id": "b", "conversations": [gpt("Hello."), human("Hi"), gpt()]}, "turn-order",
           "conversations[0].value"),
    Broken("two users", "llava", {"id": "b", "conversations": [human("Hi"), human("You?"), gpt()]}, "turn-order",
           "conversations[1].value"),
    Broken("image null", "llava", {"id": "b", "image": None, "conversations": [human("Hi"), gpt()]}, "wrong-type",
           "image"),
    Broken("plural column", "llava", {"id": "b", "images": ["b.png"], "conversations": [human("<image>\nHi"), gpt()]},
           "image-ignored", "images"),
    Broken("image in the middle", "llava", {"id": "b", "image": "b.png", "conversations": [human("Is <image> red?"),
           gpt()]},
           "image-moved", "conversations[0].value"),
    Broken("tag without image", "llava", {"id": "b", "conversations": [human("<image>\nHi"), gpt()]}, "image-count",
           "image"),
    Broken("surplus tag in the answer", "llava", {"id": "b", "image": "a.png", "conversations": [human("<image>\nHi"),
           gpt("See <image>")]}, "image-count", "image"),
    Broken("image in the answer", "llava", {"id": "b", "image": "a.png", "conversations": [human("Hi"),
           gpt("See <image>")]}, "image-in-answer", "conversations[1].value"),
    Broken("system in the middle", "llava", {"id": "b", "conversations": [human("Hi"), gpt(),
           {"from": "system", "value": "Be terse."}, human("Hi"), gpt()]}, "system-message", "conversations[2].from"),
    Broken("data URL", "llava", {"id": "b", "image": PNG, "conversations": [human("<image>\nHi"), gpt()]},
           "image-source", "image"),
    Broken("base64", "qwen", {"image": PNG.partition(",")[2], "conversations": [human("<image>\nHi"), gpt()]},
           "image-source", "image"),
    Broken("URL", "sharegpt", {"images": ["https://example.org/a.png"], "conversations": [human("<image>Hi"), gpt()]},
           "image-source", "images[0]"),
    Broken("file missing", "llava", {"id": "b", "image": "none.png", "conversations": [human("<image>\nHi"), gpt()]},
           "image-missing", "image"),
    Broken("letter case", "llava", {"id": "b", "image": "photo.png", "conversations": [human("<image>\nHi"), gpt()]},
           "image-name-mismatch", "image"),
    Broken("file cut", "llava", {"id": "b", "image": ["a.png", "cut.png"],
           "conversations": [human("<image><image>\nHi"),
           gpt()]}, "image-unreadable", "image[1]"),
    Broken("message not an object", "llava", {"id": "b", "conversations": ["Hi", gpt()]}, "wrong-type",
           "conversations[0]"),
    Broken("value missing", "llava", {"id": "b", "conversations": [{"from": "human"}, gpt()]}, "missing-field",
           "conversations[0].value"),
    # Qwen
    Broken("system trained", "qwen", {"conversations": [{"from": "system", "value": "Be terse."}, human("Hi"), gpt()]},
           "system-message", "conversations[0].from"),
    Broken("user trained", "qwen", {"conversations": [{"from": "user", "value": "Hi"}, gpt()]}, "trained-as-answer",
           "conversations[0].from"),
    Broken("the word assistant", "qwen", {"conversations": [human("(assistant) Hi"), gpt()]}, "assistant-word",
           "conversations[0].value"),
    Broken("white space", "qwen", {"image": "b.png", "conversations": [human("Look:\n\n<image>\nHi"), gpt()]},
           "text-stripped", "conversations[0].value"),
    Broken("one image too many", "qwen", {"image": ["a.png", "b.png"], "conversations": [human("<image>\nHi"), gpt()]},
           "image-count", "image"),
    Broken("packed row", "qwen",
           '[{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ok"}]}, '
           '{"conversations": [{"from": "human", "value": "<image>Hi"}, {"from": "gpt", "value": "Ok"}]}]',
           "image-count",
           "[1].image"),
    # LLaMA-Factory
    Broken("unknown role", "sharegpt", {"images": [], "conversations": [{"from": "customer", "value": "Hi"}, gpt()]},
           "role-unknown", "conversations[0].from"),
    Broken("no answer", "sharegpt", {"images": [], "conversations": [human("Hi"), gpt(), human("And?")]},
           "last-turn-open",
           "conversations[2].value"),
    Broken("system in the middle", "sharegpt", {"images": [], "conversations": [human("Hi"), gpt(),
           {"from": "system", "value": "Be terse."}, human("Hi"), gpt()]}, "system-message-place",
           "conversations[2].value"),
    Broken("image missing", "sharegpt", {"images": ["a.png"], "conversations": [human("<image><image>Hi"), gpt()]},
           "image-count", "images"),
    Broken("placeholder", "sharegpt", {"images": [], "conversations": [human("What is <audio>?"), gpt()]},
           "placeholder-in-text", "conversations[0].value"),
    Broken("content of blocks", "sharegpt", {"images": [], "messages": [user([text("Hi")]), answer()]}, "wrong-type",
           "messages[0].content"),
    Broken("mixed column", "sharegpt", {"images": "a.png", "conversations": [human("<image>Hi"), gpt()]}, "mixed-types",
           "images"),
    Broken("tool out of turn", "sharegpt", {"images": [], "conversations": [human("Hi"),
           {"from": "observation", "value": "{}"}, gpt()]}, "turn-order", "conversations[1].value"),
    Broken("empty answer", "sharegpt", {"images": [], "conversations": [human("Hi"), gpt(" ")]}, "empty-text",
           "conversations[1].value"),
    Broken("image in the answer", "sharegpt", {"images": ["a.png"], "conversations": [human("Hi"), gpt("See <image>")]},
           "image-in-answer", "conversations[1].value"),
    # ms-swift
    Broken("too few tags", "swift", {"images": ["a.png", "b.png"], "messages": [user("<image>Hi"), answer()]},
           "image-count",
           "images"),
    Broken("too many tags", "swift", {"images": ["a.png"], "messages": [user("<image><image>Hi"), answer()]},
           "image-count",
           "images"),
    Broken("special string", "swift", {"images": [], "messages": [user("Where is <bbox>?"), answer()]},
           "placeholder-in-text", "messages[0].content"),
    Broken("weight", "swift", {"images": [], "messages": [user("Hi"), answer(weight=0)]}, "key-ignored",
           "messages[1].weight"),
    Broken("two answers", "swift", {"images": [], "messages": [user("Hi"), answer(), answer("Two.")]}, "turn-order",
           "messages[2].content"),
    Broken("content null", "swift", {"images": [], "messages": [user("Hi"), {"role": "assistant", "content": None}]},
           "wrong-type", "messages[1].content"),
    Broken("loss of 0 everywhere", "swift", {"images": [], "messages": [user("Hi"), answer(loss=False)]},
           "nothing-trained",
           "messages"),
    Broken("another form", "swift", {"query": "Hi", "solution": "Hello"}, "missing-field", None),
    # TRL
    Broken("nothing trained", "trl", {"images": [], "messages": [user([text("Hi")]), answer([text("Ho")]),
           user([text("And?")])]}, "last-turn-open", "messages[2].content"),
    Broken("contents as texts", "trl", {"images": ["a.png"], "messages": [user("Hi"), answer(), user("<image>And?"),
           answer()]}, "image-moved", "messages[0].content"),
    Broken("no block beside blocks", "trl", {"images": ["a.png"], "messages": [user([text("Hi")]),
           answer([text("Ho")])]}, "image-count", "images"),
    Broken("blocks first", "trl", {"images": ["a.png"], "messages": [user([text("Hi")]), answer(), user("And?"),
           answer()]}, "image-moved", "messages[2].content"),
    Broken("blocks beside a text", "trl", {"images": ["a.png", "b.png"], "messages": [user("Hi"), answer(),
           user([{"type": "image"}, text("And?")]), answer()]}, "image-count", "images"),
    Broken("key image", "trl", {"images": ["a.png"], "messages": [user([{"type": "image", "image": None}, text("Hi")]),
           answer([text("Ho")])]}, "image-ignored", "messages[0].content[0].image"),
    Broken("one block too many", "trl", {"images": ["a.png"], "messages": [user([{"type": "image"}, {"type": "image"},
           text("Hi")]), answer([text("Ho")])]}, "image-count", "images"),
    Broken("unknown role", "trl", {"images": [], "messages": [user([text("Hi")]), {"role": "model",
           "content": [text("Ho")]}]}, "role-unknown", "messages[1].role"),
    Broken("tools beside images", "trl", {"images": ["a.png"], "tools": "[{}]", "messages": [
           user([{"type": "image"}, text("Hi")]), answer([text("Ho")])]}, "key-ignored", "tools"),
    # axolotl
    Broken("second image", "axolotl", {"images": ["a.png", "b.png"], "messages": [user([{"type": "image"},
           {"type": "image"}, text("Hi")]), answer([text("Ho")])]}, "image-ignored", "images[1]"),
    Broken("column beside texts", "axolotl", {"images": ["a.png"], "messages": [user("Hi"), answer(), user("And?"),
           answer()]}, "image-moved", "images"),
    Broken("tag in a text", "axolotl", {"messages": [user("<image>Hi"), answer()]}, "image-ignored",
           "messages[0].content"),
    Broken("block without image", "axolotl", {"messages": [user([{"type": "image"}, text("Hi")]),
           answer([text("Ho")])]},
           "image-count", "messages[0].content[0]"),
    # OpenAI and those who copied it
    Broken("unknown key", "openai", {"id": "b", "messages": [user("Hi"), answer()]}, "unknown-field", "id"),
    Broken("weight of a user", "openai", {"messages": [user("Hi", weight=1), answer()]}, "unknown-field",
           "messages[0].weight"),
    Broken("image in the answer", "openai", {"messages": [user("Hi"), answer([text("See"), url(PNG)])]},
           "image-in-answer", "messages[1].content"),
    Broken("eleven images", "openai", {"messages": [user([*[url(PNG)] * 11, text("Hi")]), answer()]}, "over-limit",
           "messages"),
    Broken("a path", "openai", {"messages": [user([url("a.png"), text("Hi")]), answer()]}, "image-source",
           "messages[0].content[0].image_url.url", consumer="together"),
    Broken("an address", "openai", {"messages": [user([url("https://example.org/a.png"), text("Hi")]), answer()]},
           "image-source", "messages[0].content[0].image_url.url", consumer="fireworks"),
    Broken("base64 cut", "openai", {"messages": [user([url(PNG[:-7] + "#"), text("Hi")]), answer()]},
           "image-unreadable",
           "messages[0].content[0].image_url.url"),
    Broken("type of the data URL", "openai", {"messages": [user([url(PNG.replace("png", "jpeg")), text("Hi")]),
           answer()]},
           "image-format-mismatch", "messages[0].content[0].image_url.url"),
    Broken("wrong weight", "openai", {"messages": [user("Hi"), answer(weight=0.5)]}, "wrong-type",
           "messages[1].weight"),
    Broken("unknown block", "openai", {"messages": [user([{"type": "picture"}, text("Hi")]), answer()]}, "wrong-type",
           "messages[0].content[0].type"),
    Broken("gif", "openai", {"messages": [user([url(GIF),
           text("Hi")]), answer()]}, "over-limit", "messages[0].content[0].image_url.url", consumer="together"),
]  # fmt: skip
