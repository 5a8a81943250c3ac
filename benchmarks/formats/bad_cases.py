"""Bad rows for `bad_rows.py`: what the linter has to say of each, and what the tool has to make of its file."""

from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
STOPS = "stops"


def talk(*turns: tuple[Any, ...], **more: Any) -> Row:
    """A row of `conversations`; a third value of a message is more of its keys."""
    rows = [{"from": name, "value": text, **(rest[0] if rest else {})} for name, text, *rest in turns]
    return {"conversations": rows, **more}


def chat(*messages: tuple[Any, ...], **more: Any) -> Row:
    """A row of `messages`; a third value of a message is more of its keys."""
    rows = [{"role": role, "content": text, **(rest[0] if rest else {})} for role, text, *rest in messages]
    return {"messages": rows, **more}


def blocks(text: str, *paths: str) -> list[Row]:
    """The content of a message with images before its text."""
    return [*({"type": "image", "path": path} for path in paths), {"type": "text", "text": text}]


TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
COLUMNS = {"messages": "conversations", "images": "images", "system": "system", "tools": "tools"}
ENTRY: Row = {"formatting": "sharegpt", "columns": COLUMNS, "tags": TAGS}
OPEN_ENTRY: Row = {
    "formatting": "openai",
    "columns": {"messages": "messages"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    },
}

H1, G1 = ("human", "What is red?"), ("gpt", "Blood.")
H2, G2 = ("human", "What is blue?"), ("gpt", "The sky.")
H, G = ("human", "What is it?"), ("gpt", "A cat.")
U1, A1 = ("user", "What is red?"), ("assistant", "Blood.")
U2, A2 = ("user", "What is blue?"), ("assistant", "The sky.")
U, A = ("user", "What is it?"), ("assistant", "A cat.")
FIRST, LAST = "What is red? > Blood.", "What is blue? > The sky."
GOOD = (FIRST, LAST)
NONE = {"images": [], "system": "", "tools": ""}  # LLaMA-Factory stops at columns that no row has


@dataclass(frozen=True)
class Case:
    """One bad row.

    Attributes:
        row: the bad row, in the second line; the whole file if it is an array.
        code: of the finding.
        words: of its message, on what the tool does.
        becomes: what the tool makes of the file: `STOPS`, or a text per sample (`rendered`).
        entry: of `dataset_info.json`.
        name: of the file.
        line: of the finding; None for the file, or the file's settings.
    """

    row: Row | list[Row]
    code: str
    words: str
    becomes: str | tuple[str, ...]
    entry: Row | None = None
    name: str = "train.jsonl"
    line: int | None = 2


SKIPS = "makes the row empty with a warning, and skips it"
ANY = "trains another, chosen at random, in its place"

LLAMA_FACTORY: dict[str, Case] = {
    "two user messages in a row": Case(talk(H, H, G), "turn-order", SKIPS, GOOD),
    "an answer first": Case(talk(G, H, G), "turn-order", SKIPS, GOOD),
    "the last message is the user's": Case(talk(H, G, H), "last-turn-open", SKIPS, GOOD),
    "a system message in the middle": Case(
        talk(H, G, ("system", "Be brief."), H, G), "system-message-place", SKIPS, GOOD
    ),
    "an unknown role": Case(talk(("narrator", "Hi"), G), "role-unknown", SKIPS, GOOD),
    "no messages": Case(talk(), "no-turns", SKIPS, GOOD),
    "one tag more than images": Case(
        talk(("human", "<image><image>Hi"), G, images=["a.png"]), "image-count", "stops", STOPS
    ),
    "an image without a tag": Case(talk(H, G, images=["a.png"]), "image-count", "stops", STOPS),
    "a <video> tag in the text": Case(
        talk(("human", "What does <video> mean?"), G), "placeholder-in-text", "stops", STOPS
    ),
    "a missing image": Case(talk(("human", "<image>Hi"), G, images=["none.png"]), "image-missing", "stops", STOPS),
    "a number for a text": Case(talk(("human", 5), G), "wrong-type", "stops", STOPS),
    "an empty text for images": Case(
        talk(H, G, images=""), "wrong-type", "takes an empty text for an image without a tag, and stops", STOPS
    ),
    "tools that are not JSON": Case(talk(H, G, tools="[{"), "wrong-type", "stops", STOPS),
    "a call that is not JSON": Case(
        talk(H, ("function_call", "look()"), ("observation", "1"), G), "wrong-type", "stops", STOPS
    ),
    "an answer of weight 0": Case(
        talk(H, ("gpt", "A cat.", {"weight": 0})),
        "key-ignored",
        "it trains the answer",
        (FIRST, "What is it? > A cat.", LAST),
    ),
    "another name of a role": Case(talk(H, ("model", "A cat.")), "role-unknown", SKIPS, GOOD),
    "the system column and a system message": Case(
        talk(("system", "Be kind."), H, G, system="Be brief."),
        "key-ignored",
        "takes the message, and ignores this column",
        (FIRST, "[Be kind.] What is it? > A cat.", LAST),
    ),
    "a column that the entry does not name": Case(
        talk(H, G, system="Be brief."),
        "key-ignored",
        "LLaMA-Factory does not see it",
        (FIRST, "What is it? > A cat.", LAST),
        entry={**ENTRY, "columns": {"messages": "conversations"}},
    ),
    "an entry with formatting openai": Case(
        [chat(U1, A1), chat(U2, A2)],
        "system-text-added",
        "adds 'detailed thinking off' to the system text",
        ("[detailed thinking off] What is red? > Blood.", "[detailed thinking off] What is blue? > The sky."),
        entry=OPEN_ENTRY,
        line=None,
    ),
    "columns that no row has": Case(
        [talk(H1, G1), talk(H2, G2)], "settings-invalid", "no row has it, and it stops", STOPS, line=None
    ),
    "rows of alpaca without an input": Case(
        [{"instruction": "What is red?", "output": "Blood."}, {"instruction": "What is blue?", "output": "The sky."}],
        "settings-invalid",
        "reads 'input' as 'query' of each row, no row has it, and it stops",
        STOPS,
        entry={},
        line=None,
    ),
    "an entry without its column of messages": Case(
        [talk(H1, G1, **NONE), talk(H2, G2, **NONE)],
        "settings-invalid",
        "LLaMA-Factory reads no messages",
        STOPS,
        entry={**ENTRY, "columns": {"images": "images"}},
        line=None,
    ),
    "an entry with one tag only": Case(
        [talk(H1, G1, **NONE), talk(H2, G2, **NONE)],
        "settings-invalid",
        "LLaMA-Factory makes every row empty",
        STOPS,
        entry={**ENTRY, "tags": {"role_tag": "from"}},
        line=None,
    ),
    "a file named .ndjson": Case(
        [talk(H1, G1, **NONE), talk(H2, G2, **NONE)], "file-encoding", "stops", STOPS, name="train.ndjson", line=None
    ),
    "a gzip file": Case(
        [talk(H1, G1, **NONE), talk(H2, G2, **NONE)], "file-encoding", "stops", STOPS, name="train.jsonl.gz", line=None
    ),
}

SWIFT: dict[str, Case] = {
    "two user messages in a row": Case(
        chat(U, ("user", "And now?"), A),
        "turn-order",
        "joins messages of one role",
        (FIRST, "What is it?And now? > A cat.", LAST),
    ),
    "an answer first": Case(
        chat(A, U, A),
        "turn-order",
        "puts an empty user message before an answer",
        (FIRST, " > A cat. What is it? > A cat.", LAST),
    ),
    "a system message in the middle": Case(
        chat(U, A, ("system", "Be brief."), U, A), "system-message-place", ANY, (FIRST, "a good row", LAST)
    ),
    "the last message is the user's": Case(
        chat(U, A, ("user", "And?")),
        "last-turn-open",
        "trains the answers before it",
        (FIRST, "What is it? > A cat. And?", LAST),
    ),
    "a message without content": Case(
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant"}]},
        "missing-field",
        "deletes the row",
        GOOD,
    ),
    "an unknown role": Case(chat(U, ("narrator", "A cat.")), "role-unknown", "deletes the row", GOOD),
    "one tag more than images": Case(
        chat(("user", "<image>Hi<image>"), A, images=["a.png"]),
        "image-count",
        "keeps the surplus tags as text",
        (FIRST, "<image>Hi<image> > A cat.", LAST),
    ),
    "an image without a tag": Case(
        chat(U, A, U, A, images=["a.png"]),
        "image-count",
        "puts the missing tags before the first message",
        (FIRST, "<image>What is it? > A cat. What is it? > A cat.", LAST),
    ),
    "a missing image": Case(
        chat(("user", "<image>Hi"), A, images=["none.png"]), "image-missing", ANY, (FIRST, "a good row", LAST)
    ),
    "an empty text for images": Case(chat(U, A, images=""), "wrong-type", ANY, (FIRST, "a good row", LAST)),
    "a last answer of loss false": Case(
        chat(U, A, U, ("assistant", "Done.", {"loss": False})),
        "end-trained",
        "trains the end token of a last answer",
        (FIRST, "What is it? > A cat. What is it? > (Done.) + end", LAST),
    ),
    "a text for loss": Case(
        chat(U, ("assistant", "A cat.", {"loss": "false"})),
        "wrong-type",
        "takes it for true, and trains the answer",
        (FIRST, "What is it? > A cat.", LAST),
    ),
    "a weight": Case(
        chat(U, ("assistant", "A cat.", {"weight": 0})),
        "key-ignored",
        "drops the key 'weight' of a message without a word",
        (FIRST, "What is it? > A cat.", LAST),
    ),
    "the rejected answer is the chosen one": Case(
        [
            chat(U1, A1, rejected_response="No."),
            chat(U, A, rejected_response="A cat."),
            chat(U2, A2, rejected_response="No."),
        ],
        "nothing-trained",
        "deletes the row",
        GOOD,
    ),
    "rows without a rejected answer": Case(
        [chat(U1, A1, rejected_response="No."), chat(U, A), chat(U2, A2, rejected_response="No.")],
        "missing-field",
        "deletes 1 row without one",
        GOOD,
    ),
    "the system column and a system message": Case(
        chat(("system", "Be kind."), U, A, system="Be brief."),
        "key-ignored",
        "takes the message, and ignores this column",
        (FIRST, "[Be kind.] What is it? > A cat.", LAST),
    ),
    "rows of two forms": Case(
        [
            chat(U1, A1),
            {"conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Ho"}]},
            chat(U2, A2),
        ],
        "missing-field",
        "reads 'messages' of the whole file, and drops 1 row without it",
        GOOD,
    ),
    "a gzip file": Case(
        [chat(U1, A1), chat(U2, A2)], "file-encoding", "stops", STOPS, name="train.jsonl.gz", line=None
    ),
}

AXOLOTL_GOOD = [
    chat(("user", blocks("What is red?")), ("assistant", blocks("Blood."))),
    chat(("user", blocks("What is blue?")), ("assistant", blocks("The sky."))),
]
AXOLOTL: dict[str, Case] = {
    "two images in the column": Case(
        chat(("user", blocks("What is it?")), ("assistant", blocks("A cat.")), images=["a.png", "b.png"]),
        "image-ignored",
        "uses the first of the 2 images of the column",
        (FIRST, "What is it?<image> > A cat.", LAST),
    ),
    "an image in the column, two user messages": Case(
        chat(
            ("user", blocks("What is it?")),
            ("assistant", blocks("A cat.")),
            ("user", blocks("And?")),
            ("assistant", blocks("No.")),
            images=["a.png"],
        ),
        "image-moved",
        "puts the image of the column after the first user text",
        (FIRST, "What is it?<image> > A cat. And? > No.", LAST),
    ),
    "an answer that begins with a newline": Case(
        chat(("user", blocks("What is it?")), ("assistant", blocks("\nA cat."))),
        "answer-newline",
        "does not train an answer",
        (FIRST, "What is it? > (\nA cat.)", LAST),
    ),
    "an <image> tag in the text": Case(
        chat(("user", "<image>What is it?"), ("assistant", "A cat."), images=["a.png"]),
        "image-ignored",
        "keeps <image> as a text",
        (FIRST, "<image>What is it?<image> > A cat.", LAST),
    ),
    "two user messages in a row": Case(
        chat(("user", blocks("Hi")), ("user", blocks("What is it?")), ("assistant", blocks("A cat."))),
        "turn-order",
        "leaves it to the chat template",
        (FIRST, "Hi What is it? > A cat.", LAST),
    ),
    "more image blocks than images": Case(
        chat(
            ("user", [{"type": "image"}, {"type": "image"}, *blocks("Hi")]),
            ("assistant", blocks("A cat.")),
            images=["a.png"],
        ),
        "image-count",
        "axolotl stops",
        STOPS,
    ),
    "an image block without an image": Case(
        chat(("user", [{"type": "image"}, *blocks("What is it?")]), ("assistant", blocks("A cat."))),
        "image-count",
        "keeps the place of an image, and reads none",
        (FIRST, "<image>What is it? > A cat.", LAST),
    ),
    "a column beside blocks with images": Case(
        chat(("user", blocks("What is it?", "a.png")), ("assistant", blocks("A cat.")), images=["b.png"]),
        "image-moved",
        "puts the image of the column after the first user text",
        (FIRST, "<image>What is it?<image> > A cat.", LAST),
    ),
    "an empty text for images": Case(
        chat(("user", blocks("What is it?")), ("assistant", blocks("A cat.")), images=""),
        "wrong-type",
        "and stops",
        STOPS,
    ),
    "an empty array for images": Case(
        chat(("user", blocks("What is it?")), ("assistant", blocks("A cat.")), images=[]),
        "wrong-type",
        "and stops",
        STOPS,
    ),
    "a text for images": Case(
        chat(("user", blocks("What is it?")), ("assistant", blocks("A cat.")), images="a.png"),
        "wrong-type",
        "takes the first character of a text for an image, and stops",
        STOPS,
    ),
    "a missing image": Case(
        chat(("user", blocks("Hi", "none.png")), ("assistant", blocks("A cat."))), "image-missing", "stops", STOPS
    ),
    "content that is a number": Case(
        chat(("user", 5), ("assistant", blocks("A cat."))),
        "wrong-type",
        "leaves the message out",
        (FIRST, "> A cat.", LAST),
    ),
    "content that is null": Case(
        chat(("user", None), ("assistant", blocks("A cat."))),
        "wrong-type",
        "leaves the message out",
        (FIRST, "> A cat.", LAST),
    ),
    "no messages": Case({"messages": []}, "no-turns", "stops if there is no message at all", STOPS),
    "the last message is the user's": Case(
        chat(("user", blocks("What is it?")), ("assistant", blocks("A cat.")), ("user", blocks("And?"))),
        "last-turn-open",
        "trains the answers before it",
        (FIRST, "What is it? > A cat. And?", LAST),
    ),
    "an unknown role": Case(
        chat(("narrator", blocks("Hi")), ("assistant", blocks("A cat."))),
        "role-unknown",
        "leaves it to the chat template",
        (FIRST, "Hi > A cat.", LAST),
    ),
    "a system message in the middle": Case(
        chat(
            ("user", blocks("What is it?")),
            ("assistant", blocks("A cat.")),
            ("system", blocks("Be brief.")),
            ("user", blocks("What is it?")),
            ("assistant", blocks("A cat.")),
        ),
        "system-message-place",
        "leaves it to the chat template",
        (FIRST, "What is it? > A cat. [Be brief.] What is it? > A cat.", LAST),
    ),
    "an answer first": Case(
        chat(("assistant", blocks("A cat.")), ("user", blocks("What is it?")), ("assistant", blocks("A cat."))),
        "turn-order",
        "leaves it to the chat template",
        (FIRST, "> A cat. What is it? > A cat.", LAST),
    ),
    "an answer of weight 0": Case(
        chat(("user", blocks("What is it?")), ("assistant", blocks("A cat."), {"weight": 0})),
        "key-ignored",
        "it trains the answer",
        (FIRST, "What is it? > A cat.", LAST),
    ),
}

REPLACED = "trains the next row instead"
QWEN: dict[str, Case] = {
    "one tag more than images": Case(
        talk(("human", "<image><image>Hi"), G, image="a.png"), "image-count", REPLACED, STOPS
    ),
    "an image without a tag": Case(talk(H, G, image="a.png"), "image-count", REPLACED, STOPS),
    "a <video> tag in the text": Case(
        talk(("human", "What does <video> mean?"), G), "placeholder-in-text", REPLACED, STOPS
    ),
    "a message without text": Case(
        {"conversations": [{"from": "human"}, {"from": "gpt", "value": "A cat."}]}, "missing-field", REPLACED, STOPS
    ),
    "a tag in an answer": Case(talk(H, ("gpt", "It is <image>"), image="a.png"), "image-in-answer", REPLACED, STOPS),
    "a system message": Case(
        talk(("system", "Be brief."), H, G),
        "system-message",
        "takes the system message for an answer",
        (FIRST, "> Be brief. What is it? > A cat.", LAST),
    ),
    "an unknown role": Case(
        talk(("narrator", "Hi"), H, G), "trained-as-answer", "for an answer", (FIRST, "> Hi What is it? > A cat.", LAST)
    ),
    "white space around the text": Case(
        talk(("human", " What is it?\n"), G),
        "text-stripped",
        "removes white space",
        (FIRST, "What is it? > A cat.", LAST),
    ),
    "images, not image": Case(
        talk(H, G, images=["a.png"]),
        "image-ignored",
        "does not see these images",
        (FIRST, "What is it? > A cat.", LAST),
    ),
}


def array(row: Row | list[Row], code: str, words: str, becomes: str | tuple[str, ...], **more: Any) -> Case:
    """A case whose file is a JSON array with a row per line."""
    return Case(row, code, words, becomes, **{"name": "train.json", "line": 3, **more})


LLAVA: dict[str, Case] = {
    "two user messages in a row": array(talk(H, H, G), "turn-order", "and stops at any other", STOPS),
    "an answer first": array(
        talk(G, H, G),
        "turn-order",
        "drops a first message that is not the user's",
        (FIRST, "What is it? > A cat.", LAST),
    ),
    "the last message is the user's": array(
        talk(H, G, ("human", "And?")),
        "last-turn-open",
        "trains nothing of the row",
        (FIRST, "What is it? > (A cat.) And?", LAST),
    ),
    "a system message": array(
        talk(("system", "Be brief."), H, G), "system-message", "stops at a system message", STOPS
    ),
    "an unknown role": array(talk(("user", "Hi"), G), "role-unknown", "stops with a KeyError", STOPS),
    "a message without text": array(
        {"conversations": [{"from": "human"}, {"from": "gpt", "value": "A cat."}]},
        "missing-field",
        "stops with a KeyError",
        STOPS,
    ),
    "a number for a text": array(talk(("human", 5), G), "wrong-type", "stops", STOPS),
    "role and content": array(
        {"conversations": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
        "missing-field",
        "reads 'from' and 'value', not 'role' and 'content'",
        STOPS,
    ),
    "a missing image": array(talk(("human", "<image>\nHi"), G, image="none.png"), "image-missing", "stops", STOPS),
    "null for an image": array(talk(H, G, image=None), "wrong-type", "tests for the key only, and stops", STOPS),
    "an empty text for an image": array(talk(H, G, image=""), "wrong-type", "tests for the key only, and stops", STOPS),
    "images, not image": array(
        talk(("human", "<image>\nHi"), G, images=["a.png"]),
        "image-ignored",
        "does not see these images",
        (FIRST, "<image>\nHi > A cat.", LAST),
    ),
    "an image in the middle": array(
        talk(("human", "Is <image> red?"), G, image="a.png"),
        "image-moved",
        "moves the image to the start",
        (FIRST, "<image>\nIs  red? > A cat.", LAST),
    ),
    "an answer of weight 0": array(
        talk(H, ("gpt", "A cat.", {"weight": 0})),
        "key-ignored",
        "it trains the answer",
        (FIRST, "What is it? > A cat.", LAST),
    ),
    "a gzip file": array(
        [talk(H1, G1), talk(H2, G2)], "file-encoding", "stops", STOPS, name="train.json.gz", line=None
    ),
}

TOOLS: dict[str, tuple[str, str, str, list[Row], dict[str, Case]]] = {
    "llama_factory": (
        "LLaMA-Factory 0.9.5",
        "sharegpt",
        "llama_factory",
        [talk(H1, G1, **NONE), talk(H2, G2, **NONE)],
        LLAMA_FACTORY,
    ),
    "swift": ("ms-swift 4.6.0", "swift", "swift", [chat(U1, A1), chat(U2, A2)], SWIFT),
    "axolotl": ("axolotl 0.19.0", "axolotl", "axolotl", AXOLOTL_GOOD, AXOLOTL),
    "llava": ("LLaVA, 2024-05-12", "llava", "axolotl", [talk(H1, G1), talk(H2, G2)], LLAVA),
    "qwen": ("Qwen-VL finetune", "qwen", "axolotl", [talk(H1, G1), talk(H2, G2)], QWEN),
}
"""Reader -> title, format, environment, the two good rows, cases."""
