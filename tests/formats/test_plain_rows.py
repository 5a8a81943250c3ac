"""The quick way through plain rows, and drafts of the usual types, gives what the thorough way gives."""

import shutil
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3v_data.draft import DraftImage, DraftTurn
from phi3v_data.errors import Reject
from phi3v_data.formats.axolotl import Axolotl
from phi3v_data.formats.base import RowFormat
from phi3v_data.formats.chat import Fault, ImageRef
from phi3v_data.formats.dataset_info import DEFAULT_COLUMNS, DEFAULT_TAGS, Entry
from phi3v_data.formats.drafts import make_draft
from phi3v_data.formats.hub import Hub
from phi3v_data.formats.images import ImagePlaces
from phi3v_data.formats.llava import LLaVA
from phi3v_data.formats.openai import OpenAI
from phi3v_data.formats.plain import make_plain_rows
from phi3v_data.formats.plain_fields import PlainReader
from phi3v_data.formats.qwen import Qwen
from phi3v_data.formats.sharegpt import ShareGPT
from phi3v_data.formats.swift import Swift
from phi3v_data.formats.trl import TRL
from phi3v_data.formats.webdataset import WebDataset

IMAGES = Path(__file__).parents[1] / "data" / "chat_formats" / "llava" / "images"
ENTRY = Entry(
    formatting="sharegpt",
    columns=DEFAULT_COLUMNS.model_copy(update={"messages": "messages", "videos": "clips"}),
    tags=DEFAULT_TAGS.model_copy(update={"role_tag": "role", "content_tag": "content"}),
)
TAGGED: dict[str, RowFormat] = {
    "llava": LLaVA(),
    "qwen": Qwen(),
    "swift": Swift(),
    "sharegpt": ShareGPT(),
    "sharegpt with an entry": ShareGPT(entry=ENTRY),
}
BLOCKS: dict[str, RowFormat] = {"openai": OpenAI(), "trl": TRL(), "hub": Hub(), "axolotl": Axolotl()}
FORMATS = TAGGED | BLOCKS
MEDIA = {"swift": ("video", "videos", "audio", "audios", "objects"), "sharegpt with an entry": ("clips",)}
PLAIN: dict[str, PlainReader | None] = {
    name: make_plain_rows(row_format, MEDIA.get(name, ("video", "videos", "audio", "audios")))
    for name, row_format in FORMATS.items()
}

TEXTS = st.lists(
    st.sampled_from(
        ["", " ", "\n", "What?", "A cat.", "a < b", "<image>", "<image>\n", "<Image>", "<|user|>", "<|us", "er|>", "é",
         "\ud800", "<image_1>", "<img>cat.jpg</img>", "<video>"]
    ),
    max_size=4,
).map("".join)  # fmt: skip
USUAL = st.sampled_from(["What?", "A cat.", "<image>What?", "What <image> is it?", "<image>\n<image>\nWhich?"])
ODD = st.sampled_from([None, "", [], {}, 0, 1, True, False, 0.5, "x", ["cat.jpg"], {"a": 1}]).map(deepcopy)
ROLES = st.sampled_from(["human", "gpt", "user", "assistant", "system", "observation", "function_call", "nobody"])
IMAGE_LISTS = st.one_of(
    st.lists(st.sampled_from(["cat.jpg", "./cup.jpg", "gone.jpg", ""]), max_size=3),
    st.sampled_from(["cat.jpg", "", None, [None], {"path": "cat.jpg"}, 3]),
)


@st.composite
def usual_rows(draw: st.DrawFn) -> dict[str, Any]:
    """A row that a sample can hold, or nearly."""
    role, content = draw(st.sampled_from([("role", "content"), ("from", "value")]))
    names = draw(st.sampled_from([("human", "gpt"), ("user", "assistant")]))
    messages = []
    if draw(st.booleans()):
        messages.append({role: "system", content: draw(st.sampled_from(["Be brief.", ""]))})
    for _ in range(draw(st.integers(1, 3))):
        messages.append({role: names[0], content: draw(USUAL)})
        messages.append({role: names[1], content: draw(st.sampled_from(["A cat.", "a < b", "Yes.\n"]))})
    num_tags = sum(message[content].count("<image>") for message in messages)
    row: dict[str, Any] = {draw(st.sampled_from(["messages", "conversations"])): messages}
    if num_tags or draw(st.booleans()):
        row[draw(st.sampled_from(["images", "image"]))] = ["cat.jpg", "cup.jpg", "cat.jpg"][:num_tags]
    if draw(st.booleans()):
        row["id"] = draw(st.sampled_from(["r", 7, 1.5, True]))
    return row


@st.composite
def odd_rows(draw: st.DrawFn) -> Any:
    """A row with up to three things that are not usual."""
    row: Any = draw(usual_rows())
    messages = row.get("messages") or row["conversations"]
    for _ in range(draw(st.integers(1, 3))):
        where = draw(st.sampled_from(["row", "message", "text", "role", "order", "images", "instead"]))
        message = messages[draw(st.integers(0, len(messages) - 1))] if messages else {}
        is_object = isinstance(message, dict)
        if where == "row":
            names = ["system", "tools", "kto_tag", "chosen", "rejected", "label", "rejected_response", "video", "clips",
                     "objects", "id", "meta", "answers", "group", "messages", "conversations", "query", ""]  # fmt: skip
            value = draw(st.one_of(ODD, TEXTS, st.builds(dict, role=st.just("assistant"), content=TEXTS)))
            row[draw(st.sampled_from(names))] = value
        elif where == "message" and is_object:
            message[draw(st.sampled_from(["role", "from", "content", "value", "loss", "loss_scale", "more"]))] = draw(
                ODD
            )
        elif where == "text" and is_object:
            message["content" if "content" in message else "value"] = draw(TEXTS)
        elif where == "role" and is_object:
            message["role" if "role" in message else "from"] = draw(ROLES)
        elif where == "order" and messages:
            messages.insert(draw(st.integers(0, len(messages))), messages.pop(draw(st.integers(0, len(messages) - 1))))
        elif where == "images":
            row[draw(st.sampled_from(["images", "image"]))] = draw(IMAGE_LISTS)
        elif where == "instead" and messages:
            messages[draw(st.integers(0, len(messages) - 1))] = draw(ODD)
    return row


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> ImagePlaces:
    folder = tmp_path_factory.mktemp("images")
    for name in ("cat.jpg", "cup.jpg"):
        shutil.copy(IMAGES / name, folder)
    return ImagePlaces(str(folder))


def made(name: str, row: Any, places: ImagePlaces, plain: PlainReader | None) -> Any:
    """The draft of a row, its images by what they are read from, or code and message of its reject."""
    try:
        draft = make_draft(row, FORMATS[name], "rows.json, line 1", places, key="rows.json[0]", plain=plain)
    except Reject as reject:
        return reject.code, reject.message
    turns = [replace(turn, images=list(map(image_of, turn.images)), steps=tuple(turn.steps)) for turn in draft.turns]
    return replace(draft, turns=turns)


def image_of(image: Any) -> tuple[Any, ...]:
    assert isinstance(image, DraftImage)
    return image.content, image.name, image.format, image.quality


@pytest.mark.parametrize("name", TAGGED)
@settings(max_examples=200)
@given(row=st.one_of(usual_rows(), odd_rows()))
def test_a_row_becomes_the_same_sample_or_reject_in_both_ways(name: str, places: ImagePlaces, row: Any) -> None:
    plain = PLAIN[name]
    assert plain is not None
    assert made(name, row, places, plain) == made(name, row, places, None)


BLOCK = st.one_of(
    st.builds(dict, type=st.just("text"), text=st.one_of(TEXTS, ODD)),
    st.sampled_from(
        [
            {"type": "image"},
            {"type": "image", "path": "cat.jpg"},
            {"type": "image", "image": ""},
            {"type": "image_url", "image_url": "cup.jpg"},
            {"type": "image_url", "image_url": {"url": "gone.jpg"}},
            {"type": "image_url", "image_url": {"url": "cat.jpg", "detail": "low"}},
            {"type": "image_url", "image_url": {"url": ""}},
            {"type": "text"},
            {"type": []},
            '{"type": "text", "text": "What?"}',
            "text",
            None,
        ]
    ).map(deepcopy),
)
EXTRA = {"tool_calls": [{"id": "a"}], "weight": 0.5, "from": "human", "value": "x", "name": "x", "tool_call_id": "a"}


@st.composite
def block_rows(draw: st.DrawFn, image: dict[str, Any]) -> dict[str, Any]:
    """A row whose messages are texts or blocks, with some that are not usual; `image`: a usual block of an image."""
    messages: list[Any] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(st.sampled_from(["Be brief.", "", []]))})
    num_images = 0
    for _ in range(draw(st.integers(1, 3))):
        images = draw(st.integers(0, 2))
        num_images += images
        blocks: list[Any] = [*[deepcopy(image) for _ in range(images)], {"type": "text", "text": "What?"}]
        user: Any = draw(st.permutations(blocks)) if images or draw(st.booleans()) else draw(USUAL)
        answer: Any = draw(st.sampled_from(["A cat.", [{"type": "text", "text": "A "}, {"type": "text", "text": "b"}]]))
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": deepcopy(answer)}]
        if draw(st.booleans()):
            messages[-1]["weight"] = draw(st.sampled_from([0, 1, 1.0, True, None]))
    row: dict[str, Any] = {"messages": messages}
    if draw(st.booleans()):
        row["images"] = ["cat.jpg", "cup.jpg", "cat.jpg", "cup.jpg", "cat.jpg", "cup.jpg"][:num_images]
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        where = draw(st.sampled_from(["row", "message", "block", "role", "order", "images", "instead"]))
        message = messages[draw(st.integers(0, len(messages) - 1))]
        if where == "row":
            names = ["system", "tools", "prompt", "chosen", "rejected", "completion", "video", "id", "meta", "answers",
                     "conversations", "image", ""]  # fmt: skip
            row[draw(st.sampled_from(names))] = draw(ODD)
        elif where == "message" and isinstance(message, dict):
            key = draw(st.sampled_from(sorted(EXTRA)))
            message[key] = deepcopy(EXTRA[key])
        elif where == "block" and isinstance(message, dict):
            message["content"] = draw(st.one_of(ODD, TEXTS, st.lists(BLOCK, max_size=3)))
        elif where == "role" and isinstance(message, dict):
            message["role"] = draw(st.one_of(ROLES, st.sampled_from(["developer", "tool", None])))
        elif where == "order":
            messages.insert(draw(st.integers(0, len(messages))), messages.pop(draw(st.integers(0, len(messages) - 1))))
        elif where == "images":
            row[draw(st.sampled_from(["images", "image"]))] = draw(IMAGE_LISTS)
        elif where == "instead":
            messages[draw(st.integers(0, len(messages) - 1))] = draw(ODD)
    return row


IMAGE_BLOCKS: dict[str, list[dict[str, Any]]] = {
    "openai": [
        {"type": "image_url", "image_url": {"url": "cat.jpg"}},
        {"type": "image_url", "image_url": {"url": "cat.jpg", "detail": "low"}},
        {"type": "image_url", "image_url": "cup.jpg"},
    ],
    "trl": [{"type": "image"}, {"type": "image", "image": "cat.jpg"}],
    "hub": [{"type": "image"}, {"type": "image", "url": "cat.jpg", "path": "cup.jpg"}],
    "axolotl": [{"type": "image", "path": "cat.jpg"}, {"type": "image"}],
}


@pytest.mark.parametrize("name", BLOCKS)
@settings(max_examples=150)
@given(data=st.data())
def test_a_row_of_blocks_becomes_the_same_sample_or_reject_in_both_ways(
    name: str, places: ImagePlaces, data: st.DataObject
) -> None:
    row = data.draw(block_rows(data.draw(st.sampled_from(IMAGE_BLOCKS[name]))))
    plain = PLAIN[name]
    assert plain is not None
    assert made(name, row, places, plain) == made(name, row, places, None)


@pytest.mark.parametrize("name", BLOCKS)
def test_usual_rows_of_blocks_take_the_quick_way(name: str) -> None:
    image = IMAGE_BLOCKS[name][0]
    user = [{"type": "text", "text": "What "}, image, {"type": "text", "text": "is it?"}]
    row = {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Short."}]},
            {"role": "user", "content": user},
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
        ]
    }
    if name in ("trl", "hub"):
        row["images"] = ["cat.jpg"]
    plain = PLAIN[name]
    assert plain is not None
    where = {
        "openai": "messages[1].content[1].image_url.url",
        "axolotl": "messages[1].content[1].path",
    }.get(name, "images[0]")
    assert plain.read(row) == (
        "Short.",
        [
            (DraftTurn("What is it?", "A cat.", (), [5]), [ImageRef("cat.jpg", where)]),
            (DraftTurn("Sure?", "Yes."), []),
        ],
    )


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("llava", {"image": "cat.jpg", "conversations": [("human", "<image>\nWhat?"), ("gpt", "A cat.")]}),
        ("qwen", {"conversations": [("human", "What?"), ("gpt", "a < b"), ("human", "2"), ("gpt", "Yes.")]}),
        ("swift", {"messages": [("system", "Short."), ("user", "<image>Which <image>?"), ("assistant", "Both.")],
                   "images": ["cat.jpg", "cup.jpg"], "videos": [], "label": None}),
        ("sharegpt", {"id": 3, "conversations": [("human", "What?"), ("gpt", "A cat.")], "system": "Short."}),
        ("sharegpt with an entry", {"messages": [("human", "What?"), ("gpt", "A cat.")], "tools": "", "video": "x"}),
    ],
)  # fmt: skip
def test_the_usual_rows_of_each_format_take_the_quick_way(name: str, row: dict[str, Any]) -> None:
    key = "messages" if "messages" in row else "conversations"
    keys = ("role", "content") if key == "messages" else ("from", "value")
    row = {**row, key: [dict(zip(keys, message, strict=True)) for message in row[key]]}
    plain = PLAIN[name]
    assert plain is not None
    found = plain.read(row)
    assert found is not None
    system, turns = found
    assert system == ("Short." if "Short." in str(row) else "")
    expected = {
        "llava": [("What?", "A cat.", [], ["cat.jpg"])],
        "qwen": [("What?", "a < b", [], []), ("2", "Yes.", [], [])],
        "swift": [("Which ?", "Both.", [0, 6], ["cat.jpg", "cup.jpg"])],
    }.get(name, [("What?", "A cat.", [], [])])
    assert [
        (turn.user, turn.assistant, list(turn.image_offsets), [ref.value for ref in refs]) for turn, refs in turns
    ] == expected


def chat_row(*texts: str, **more: Any) -> dict[str, Any]:
    """A row of questions and answers in turn."""
    names = ("human", "gpt")
    return {"conversations": [{"from": names[at % 2], "value": text} for at, text in enumerate(texts)], **more}


@pytest.mark.parametrize(
    ("name", "row", "code"),
    [
        ("sharegpt", chat_row("What?", "A cat.", "Sure?"), "last-turn-open"),
        ("sharegpt", chat_row("What?", " "), "empty-text"),
        ("sharegpt", chat_row("<image>What?", "A cat."), "image-count"),
        ("sharegpt", chat_row("What?", "A cat.", images=["cat.jpg"]), "image-count"),
        ("sharegpt", chat_row("<image>What?", "A cat.", images=["gone.jpg"]), "image-missing"),
        ("sharegpt", chat_row("What?", "A <image>cat.", images=["cat.jpg"]), "image-in-answer"),
        ("sharegpt", chat_row("<|us<image>er|>", "A cat.", images=["cat.jpg"]), "control-token"),
        ("sharegpt", chat_row("What?", "A cat.", system="<|end|>"), "control-token"),
        ("sharegpt", chat_row("What?", "A cat.", kto_tag=False), "nothing-trained"),
        ("sharegpt", chat_row("What?", "A cat.", videos=["a.mp4"]), "media-left-out"),
        (
            "sharegpt",
            {"system": "Short.", "messages": [{"role": "system", "content": ""}, {"role": "user", "content": "What?"},
                                              {"role": "assistant", "content": "A cat."}]},
            "key-ignored",
        ),
        ("swift", {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat.",
                                                                       "loss_scale": 0.5}]}, "wrong-type"),
        ("swift", chat_row("What?", "A cat.", objects={"ref": ["cat"]}), "media-left-out"),
    ],
)  # fmt: skip
def test_faults_of_a_row_are_reported_by_the_thorough_way(
    name: str, row: dict[str, Any], code: str, places: ImagePlaces
) -> None:
    assert made(name, row, places, PLAIN[name])[0] == code


def test_control_tokens_are_those_of_the_model_that_is_given(places: ImagePlaces) -> None:
    for model, text, is_reject in [
        ("qwen2_5_vl", "<|im_end|> What?", True),
        ("", "<|im_end|> What?", False),
        ("", "<|end|> What?", True),
        ("qwen2_5_vl", "<|end|> What?", False),
    ]:
        plain = make_plain_rows(ShareGPT(), (), model)
        assert plain is not None
        row = chat_row(text, "A cat.")
        assert (plain.read(row) is None) == is_reject
        if is_reject:
            with pytest.raises(Reject, match="a control token of the model"):
                make_draft(row, ShareGPT(), "row 1", places, key="a", model=model, plain=plain)


def test_tags_of_forks_and_pairs_are_read_by_the_thorough_way(places: ImagePlaces) -> None:
    inline = made("llava", chat_row("<img>cat.jpg</img>What?", "A cat."), places, PLAIN["llava"])
    assert [(turn.user, len(turn.images)) for turn in inline.turns] == [("What?", 1)]
    pair = {key: {"from": "gpt", "value": text} for key, text in (("chosen", "A cat."), ("rejected", "A dog."))}
    row = chat_row("Hi", "Hello.") | pair
    row["conversations"].append({"from": "human", "value": "What?"})
    assert made("sharegpt", row, places, PLAIN["sharegpt"]).rejected == "A dog."


def test_a_format_whose_class_reads_in_its_own_way_is_read_by_it() -> None:
    @dataclass(frozen=True)
    class Shouted(ShareGPT):
        """Overrides how a message is read, and says nothing of columns."""

        def message_of(self, message: Any, where: str, faults: list[Fault]) -> Any:
            return super().message_of({**message, "value": message["value"].upper()}, where, faults)

    @dataclass(frozen=True)
    class Doubled(Hub):
        """Overrides how the block of an image is read, and says nothing of usual ones."""

        @property
        def own_columns(self) -> tuple[str, ...]:
            return ()

        def image_of(self, block: Mapping[str, Any], where: str, faults: list[Fault]) -> list[ImageRef]:
            return super().image_of(block, where, faults) * 2

    @dataclass(frozen=True)
    class Renamed(ShareGPT):
        """Other names only."""

        message_keys = ("talk",)

    assert make_plain_rows(Shouted(), ()) is None
    assert make_plain_rows(WebDataset(), ()) is None
    assert make_plain_rows(Doubled(), ()) is None
    assert make_plain_rows(ShareGPT(entry=Entry()), ()) is None  # columns of questions and answers
    renamed = make_plain_rows(Renamed(), ())
    assert renamed is not None
    found = renamed.read({"talk": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]})
    assert found == ("", [(DraftTurn("Hi", "Hello."), [])])


def test_a_mapping_that_is_not_a_dict_is_left_to_the_format() -> None:
    class Row(Mapping[str, Any]):
        """As rows of tables may be."""

        def __getitem__(self, key: str) -> Any:
            return {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}[key]

        def __iter__(self) -> Any:
            return iter(("messages",))

        def __len__(self) -> int:
            return 1

    plain = PLAIN["sharegpt"]
    assert plain is not None
    assert plain.read(Row()) is None
    draft = make_draft(Row(), FORMATS["sharegpt"], "row 1", ImagePlaces("/"), key="a", plain=plain)
    assert [(turn.user, turn.assistant) for turn in draft.turns] == [("Hi", "Hello.")]
