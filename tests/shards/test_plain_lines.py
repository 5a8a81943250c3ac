"""Rows that shards are made a view of without an object per message: what comes out is what the careful way gives."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from colour_sets import colour_directory

from phi3v_data.dataset import Dataset
from phi3v_data.exporting.run import export_set
from phi3v_data.media.export_pack import PackedImage
from phi3v_data.shards import view
from phi3v_data.shards.plain import plain_line
from phi3v_data.shards.rows import BadRowError, ShardRow, line_of

ROWS = 4000
KNOWN = {name: PackedImage(f"train/{name}", 0, at, 9) for at, name in enumerate(("0.png", "1.jpg", 'a"b.png', "é.gif"))}
KNOWN["again.png"] = KNOWN["0.png"]
"""Images of a row; two names of one."""


def careful_line(row: ShardRow) -> tuple[bytes, list[PackedImage], int] | str:
    """The line of a row and its images, or what is wrong with it."""
    try:
        return line_of(row, "set", "train-0000000007")
    except BadRowError as error:
        return str(error)


def assert_same(value: dict[str, Any]) -> bool:
    """Compare both ways; whether the short one took the row."""
    row = ShardRow("train.tar: 7", value, KNOWN)
    found = plain_line(row, "set", "train-0000000007")
    if found is not None:
        assert found == careful_line(row)
    return found is not None


def text_block(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **more}


def one_turn(*blocks: Any, answer: Any = None, **more: Any) -> dict[str, Any]:
    """A row of one question of these blocks; in `more`, other columns, or other keys of the answer."""
    answered = [text_block("Yes.")] if answer is None else answer
    images = more.pop("images", [])
    weight = {"weight": more.pop("weight")} if "weight" in more else {}
    messages = [{"role": "user", "content": list(blocks)}, {"role": "assistant", "content": answered, **weight}]
    return {"images": images, "messages": messages, **more}


IMAGE = {"type": "image"}

TAKEN = {
    "a question": one_turn(text_block("What?")),
    "JSON in the column": one_turn('{"type": "text", "text": "What?"}', answer=['{"type": "text", "text": "It."}']),
    "one of each": one_turn('{"type": "text", "text": "What"}', text_block("?")),
    "no text": one_turn(IMAGE, images=["0.png"]),
    "neither text nor image": one_turn(),
    "an image in the text": one_turn(text_block("Is "), IMAGE, text_block(" it?"), images=["1.jpg"]),
    "after escapes": one_turn('{"type": "text", "text": "\\"A\\"\\n"}', '{"type": "image"}', images=["1.jpg"]),
    "all fields of all blocks": one_turn({"type": "image", "text": None}, text_block("é"), images=["é.gif"]),
    "an image twice": one_turn(IMAGE, IMAGE, IMAGE, images=["0.png", "1.jpg", "again.png"]),
    "a name with a quote": one_turn(IMAGE, images=['a"b.png']),
    "texts with escapes": one_turn('{"type": "text", "text": "a\\n\\"b\\"\\\\"}', text_block('\n"\\\t\0\x7f\u2028')),
    "an answer that begins with a space": one_turn(answer=['{"type": "text", "text": "\\n\\u00a0x"}', text_block("x")])
    | {"messages": [{"role": "user", "content": []}, {"role": "assistant", "content": [text_block("\n x")]}]},
    "a weight": one_turn(text_block("a"), weight=0),
    "no weight": one_turn(text_block("a"), weight=None),
    "all columns": one_turn(text_block("a"), id="7", group="g", answers=["é", '"'], meta='{"a": 1.5, "b": null}'),
    "an object": one_turn(text_block("a"), meta={"a": "\n", "b": True, "c": 10**30}),
    "empty columns": one_turn(text_block("a"), id="", group=None, answers=[], meta=""),
    "nested values, left out": one_turn(text_block("a"), meta='{"a": {"b": 1}}'),
    "JSON that is none": one_turn(text_block("a"), meta="{"),
    "a system message": {
        "images": [],
        "messages": [{"role": "system", "content": [text_block(" ")]}, *one_turn(text_block("a"))["messages"]],
    },
    "two turns": {"images": [], "messages": one_turn(text_block("a"))["messages"] * 2},
}
"""Rows that are made without a closer look."""

LEFT = {
    "half a character": one_turn(text_block("\ud800")),
    "half a character as JSON": one_turn('{"type": "text", "text": "\\ud800"}'),
    "half a character in meta": one_turn(text_block("a"), meta='{"a": "\\ud800"}'),
    "an escape that is not needed": one_turn('{"type": "text", "text": "\\u00e9"}'),
    "an escape of a slash": one_turn('{"type": "text", "text": "\\/"}'),
    "a raw control character": one_turn('{"type": "text", "text": "a\nb"}'),
    "a quote that ends the text": one_turn('{"type": "text", "text": "a", "text": "b"}'),
    "spelled otherwise": one_turn('{"type":"text","text":"a"}'),
    "an image with a reference": one_turn({"type": "image", "image": "1.jpg"}, images=["0.png"]),
    "a reference of its own": one_turn({"type": "image", "image": "1.jpg"}),
    "too many images": one_turn(IMAGE, images=["0.png", "1.jpg"]),
    "too few images": one_turn(IMAGE, IMAGE, images=["0.png"]),
    "an image elsewhere": one_turn(IMAGE, images=["https://example.org/a.png"]),
    "an image in the answer": one_turn(answer=[IMAGE, text_block("a")], images=["0.png"]),
    "an empty answer": one_turn(text_block("a"), answer=[text_block("")]),
    "a blank answer": one_turn(text_block("a"), answer=['{"type": "text", "text": "\\n "}']),
    "a blank answer of another kind": one_turn(text_block("a"), answer=[text_block(" \u00a0\u2028")]),
    "no answer": {"images": [], "messages": [{"role": "user", "content": [text_block("a")]}]},
    "no messages": {"images": [], "messages": []},
    "two questions": {"images": [], "messages": [one_turn(text_block("a"))["messages"][at] for at in (0, 0, 1)]},
    "two answers": {"images": [], "messages": [one_turn(text_block("a"))["messages"][at] for at in (0, 1, 1)]},
    "the answer first": {"images": [], "messages": one_turn(text_block("a"))["messages"][::-1]},
    "a late system message": {
        "images": [],
        "messages": [*one_turn(text_block("a"))["messages"], {"role": "system", "content": [text_block("b")]}],
    },
    "a text for blocks": one_turn(answer="Yes."),
    "another weight": one_turn(text_block("a"), weight=2),
    "a weight that is a fraction": one_turn(text_block("a"), weight=1.0),
    "a weight that is a truth": one_turn(text_block("a"), weight=False),
    "another column": one_turn(text_block("a"), prompt="b", completion="c"),
    "calls": {
        "images": [],
        "messages": [{**message, "tool_calls": []} for message in one_turn(text_block("a"))["messages"]],
    },
    "an id that is a number": one_turn(text_block("a"), id=0),
    "an id that is a truth": one_turn(text_block("a"), id=False),
    "a group that is a number": one_turn(text_block("a"), group=7),
    "answers of numbers": one_turn(text_block("a"), answers=[7]),
    "an answer alone": one_turn(text_block("a"), answers="seven"),
    "images that are a text": one_turn(IMAGE, images="0.png"),
    "no images": {"messages": one_turn(text_block("a"))["messages"]},
    "messages as JSON": {"images": "[]", "messages": json.dumps(one_turn(text_block("a"))["messages"])},
}
"""Rows that are left to the careful way, which takes some of them."""


@pytest.mark.parametrize("name", TAKEN)
def test_plain_rows_are_taken_and_give_the_same_line(name: str) -> None:
    assert assert_same(TAKEN[name])


@pytest.mark.parametrize("name", LEFT)
def test_other_rows_are_left(name: str) -> None:
    assert not assert_same(LEFT[name])


CHARACTERS = [*'ab "\\/\n\t\b\x7f<é\u00a0\u2028😀', "\\u00e9", '"}', "<image>"]
ODD = [
    *(None, 0, 1, True, 0.5, float("nan"), "", "x", [], ["x"], [1], {}, {"a": 1}, {"a": [1]}, '{"a": "\\ud800"}', b"x"),
    *({"type": "image"}, '{"type": "image"}', '{"type": "text"}', "{", "[]", 10**30, {"role": "user", "content": []}),
]
REFERENCES = [*KNOWN, "", "gone.png", None]
BLOCK_KEYS = ["type", "image", "url", "path", "base64", "text", "source"]
MESSAGE_KEYS = ["role", "content", "from", "value", "tool_calls", "tool_call_id", "name", "weight"]
ROW_KEYS = ["images", "messages", "prompt", "completion", "chosen", "rejected", "tools", "image", "conversations"]


class Rows:
    """Makes rows of a shard, most of them usual or with one thing that is not."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.pick = self.random.choice

    def seldom(self) -> bool:
        return self.random.random() < 0.02

    def text(self) -> str:
        rare = ["\ud83d", "\0", "\x1f"] if self.seldom() else []
        return "".join(self.random.choices(CHARACTERS + rare, k=self.pick((0, 1, 1, 2, 5))))

    def block(self, *, image: bool) -> Any:
        if self.seldom():
            return self.pick(ODD)
        block: Any = {"type": "image"} if image else text_block(self.text())
        if self.seldom():
            block[self.pick(BLOCK_KEYS)] = self.pick([*ODD, *REFERENCES])
        if self.pick((True, False, False)):
            return block
        separators = (",", ":") if self.seldom() else None
        text = json.dumps(block, ensure_ascii=self.seldom(), separators=separators, default=str)
        return text.replace("/", "\\/") if self.seldom() else text

    def message(self, role: str) -> Any:
        images = self.pick((0, 0, 0, 1, 2)) if role == "user" or self.seldom() else 0
        kinds = [True] * images + [False] * self.pick((1, 1, 1, 2))
        self.random.shuffle(kinds)
        message: Any = {"role": role, "content": [self.block(image=image) for image in kinds]}
        if self.random.random() < 0.2:
            message["weight"] = self.pick((0, 1, 1, None, self.pick(ODD)))
        if self.seldom():
            message[self.pick(MESSAGE_KEYS)] = self.pick(ODD)
        return self.pick(ODD) if self.seldom() else message

    def row(self) -> dict[str, Any]:
        order = [*self.pick((["system"], [], [])), *["user", "assistant"] * self.pick((1, 1, 2))]
        if self.seldom():
            order = self.random.choices(["system", "user", "assistant", "tool", "human"], k=4)
        messages = [self.message(role) for role in order]
        contents = [message.get("content") for message in messages if isinstance(message, dict)]
        blocks = [block for content in contents if isinstance(content, list) for block in content]
        count = sum('"type": "image"' in json.dumps(block, default=str).replace("\\", "") for block in blocks)
        row: dict[str, Any] = {"images": self.random.choices([*KNOWN], k=count + self.seldom()), "messages": messages}
        if self.seldom():
            row["images"] = self.random.choices(REFERENCES, k=count)
        values = [self.text(), 7, -0.5, 1e300, float("inf"), None, True]
        for key, usual in (
            ("id", self.text()),
            ("group", self.text()),
            ("answers", [self.text() for _ in range(self.pick((0, 1, 2)))]),
            ("meta", {self.text(): self.pick(values) for _ in range(self.pick((0, 1, 2)))}),
        ):
            if self.random.random() < 0.4:
                row[key] = self.pick(ODD) if self.seldom() else usual
        if isinstance(row.get("meta"), dict) and self.pick((True, False)):
            row["meta"] = json.dumps(row["meta"], ensure_ascii=self.pick((True, False)), default=str)
        if self.seldom():
            row[self.pick(ROW_KEYS)] = self.pick(ODD)
        return row


def test_any_row_that_is_taken_gives_the_line_of_the_careful_way() -> None:
    rows = Rows(7)
    taken = sum(assert_same(rows.row()) for _ in range(ROWS))
    assert ROWS // 5 < taken < ROWS * 4 // 5


@pytest.mark.parametrize(("kind", "needs"), [("hub", "pyarrow"), ("webdataset", "")])
def test_rows_of_our_own_exports_need_no_closer_look(
    kind: str, needs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So their views cost what they should; no row has an object per message made."""
    if needs:
        pytest.importorskip(needs)
    directory = colour_directory(tmp_path / "colours")
    export_set(kind, directory, tmp_path / kind)

    def refuse(*args: object) -> None:
        raise AssertionError("a closer look")

    monkeypatch.setattr(view, "line_of", refuse)
    made = Dataset(view.data_directory(tmp_path / kind))
    source = Dataset(directory)
    for split in source:
        ours, theirs = ([sample.to_row() for sample in data[split]] for data in (made, source))
        for row in (*ours, *theirs):
            for turn in row["conversations"]:
                turn["images"] = len(turn["images"])
            row["source"] = ""
        assert ours == theirs
