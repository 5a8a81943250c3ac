"""Problems of files of other tools: what their readers drop, move, misread or stop at."""

from typing import Any

from phi3v_data.problems.example import Content, Example, ImageFile, Text, lines
from phi3v_data.problems.model import Problem

_ANSWER = {"role": "assistant", "content": "A shape."}


def _ask(text: str = "What is shown?", role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": text}


def _human(text: str, answer: str = "A shape.") -> list[dict[str, str]]:
    return [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]


def _text(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _file(*rows: dict[str, Any], **options: Any) -> Example:
    """A file of rows that may use a.png and b.png."""
    used = str(rows)
    files: dict[str, Content] = {"data.jsonl": lines(*rows)}
    files |= {name: ImageFile(64, 48, seed=seed) for seed, name in enumerate(("a.png", "b.png")) if name in used}
    return Example(files, options, file="data.jsonl")


FORMATS = (
    Problem(
        "turn-order",
        "formats",
        "error",
        "messages of the user and answers do not take turns",
        "Two user messages or two answers in a row, or an answer first. Rows with tools have an order of their own.",
        "LLaMA-Factory drops the row, LLaVA stops or drops its first message, ms-swift joins them. OpenAI's "
        "format allows several user messages.",
        _file({"messages": [_ask("Look."), _ask(), _ANSWER]}, format="sharegpt"),
        "Join them with a blank line, as `phi3v-data import --merge_turns` does, or drop the row.",
        severity_note="a warning for tools that leave it to the chat template",
    ),
    Problem(
        "system-message-place",
        "formats",
        "error",
        "a system message comes after the first message",
        "Only the first message of a row may be the system's.",
        "LLaMA-Factory drops the row; most chat templates raise an error, or move the text.",
        _file({"messages": [_ask(), _ANSWER, _ask("Be terse.", "system"), _ask(), _ANSWER]}, format="sharegpt"),
        "Move its text into the user message that it is about.",
        severity_note="a warning for tools that leave it to the chat template",
    ),
    Problem(
        "system-message",
        "formats",
        "error",
        "the tool cannot read a system message",
        "LLaVA's format has no system messages, and Qwen's trainer reads that format.",
        "LLaVA stops with a KeyError; Qwen's trainer takes the message for an answer, and trains it.",
        _file(
            {"image": "a.png", "conversations": [{"from": "system", "value": "Be terse."}, *_human("<image>\nWhat?")]},
            **{"format": "llava", "for": "qwen"},
        ),
        "Put its text before the first user text.",
    ),
    Problem(
        "image-in-answer",
        "formats",
        "error",
        "an answer or a system message has an image",
        "A placeholder or block of an image is in a message of the assistant.",
        "Models that read images do not write them: services refuse the file, trainers stop or train a placeholder.",
        _file(
            {"messages": [_ask(), _ask("Here: <image>", "assistant")], "images": ["a.png"]},
            format="sharegpt",
        ),
        "Move the image into the user message that it belongs to.",
    ),
    Problem(
        "last-turn-open",
        "formats",
        "error",
        "the last message of a row is the user's",
        "The conversation ends with a question, and has no answer to it.",
        "LLaMA-Factory drops the row; LLaVA and TRL train nothing of it; others train the answers before.",
        _file({"messages": [_ask(), _ANSWER, _ask("And here?")]}, format="sharegpt"),
        "Add the answer, or remove the message.",
    ),
    Problem(
        "image-count",
        "formats",
        "error",
        "a row has more or fewer images than places for them",
        "Each image needs one `<image>` in a text, or one block.",
        "LLaMA-Factory and TRL stop without naming the row; Qwen's trainer trains the next row instead; ms-swift puts "
        "missing tags before the first message.",
        _file({"messages": [_ask("<image>What is shown?"), _ANSWER], "images": ["a.png", "b.png"]}, format="sharegpt"),
        "Give one place per image, where it belongs in the text.",
        severity_note="a warning if the tags have another spelling that tells their images",
    ),
    Problem(
        "role-unknown",
        "formats",
        "error",
        "the role of a message is not known",
        "The name is none that the format has, or that `tags` of `dataset_info.json` gives.",
        "LLaMA-Factory drops the row, ms-swift deletes it, LLaVA stops.",
        _file({"messages": [_ask(role="customer"), _ANSWER]}, format="sharegpt"),
        "Use the roles of the format, or give the name in `tags`.",
    ),
    Problem(
        "placeholder-in-text",
        "formats",
        "error",
        "a text has a string that the tool replaces",
        "`<image>`, `<video>`, `<audio>`, and in ms-swift `<bbox>` and others, have no escape: in any text they stand "
        "for a file or a box.",
        "LLaMA-Factory looks for a file that is not there and stops, Qwen's trainer trains the next row instead, "
        "ms-swift puts a file of the row there.",
        _file({"messages": [_ask("Describe the <video>."), _ANSWER]}, format="sharegpt"),
        "Write it with a space, as in `< video>`, as `phi3v-data export --lossy` does.",
    ),
    Problem(
        "image-moved",
        "formats",
        "error",
        "the tool puts an image at another place",
        "TRL puts all images of a row before the first user message that is a text; axolotl puts the image of a column "
        "after the first user text; LLaVA's own trainer puts a single image first. Where a row has a single user "
        "message and no tag, that is the only place, and nothing is reported.",
        "The model is trained on a text that speaks of an image that is elsewhere.",
        _file(
            {"messages": [_ask("Hello."), _ANSWER, _ask(), _ANSWER], "images": ["a.png"]},
            format="trl",
        ),
        "Write a block for each image where it belongs.",
        severity_note="a warning for LLaVA and axolotl",
    ),
    Problem(
        "image-ignored",
        "formats",
        "error",
        "the tool does not see an image",
        "The image is in a column that the tool does not read, or behind the first one of a column of which it reads "
        "the first, or its block has a key that hides it.",
        "The model is trained to answer without the image.",
        _file({"images": ["a.png"], "conversations": _human("<image>\nWhat is shown?")}, format="llava"),
        "Rename the column, or give each image a block as the tool reads it.",
    ),
    Problem(
        "image-source",
        "formats",
        "error",
        "the tool does not take an image from there",
        "OpenAI and Azure take https and data URLs, Together and Fireworks only data URLs with base64; LLaVA, Qwen's "
        "trainer and LLaMA-Factory open files only.",
        "The service refuses the file; LLaVA and LLaMA-Factory stop, and Qwen's trainer trains the next row instead.",
        _file(
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "a.png"}}, *_text("What?")],
                    },
                    _ANSWER,
                ]
            },
            **{"for": "together"},
        ),
        "`phi3v-data export openai --image_refs data` writes data URLs.",
        severity_note="a warning for OpenAI, as such files are kept for other tools",
    ),
    Problem(
        "text-stripped",
        "formats",
        "info",
        "the tool removes white space of a text",
        "Qwen's trainer cuts user texts at their images and strips each piece.",
        "Line ends and blanks beside an image are lost, which matters for layouts only.",
        _file(
            {"image": "a.png", "conversations": _human("Look at this:\n\n<image>\nWhat is shown?")},
            **{"format": "llava", "for": "qwen"},
        ),
        "No fix is needed where the white space does not matter.",
    ),
    Problem(
        "assistant-word",
        "formats",
        "warning",
        "a user text has the word that the tool takes for the start of an answer",
        "Qwen's trainer finds answers by the token `assistant`, which the word has at the start of a text, a line or "
        "behind a bracket.",
        "The rest of the user's text is trained as if it were an answer.",
        _file(
            {"image": "a.png", "conversations": _human("<image>\nassistant, what is shown?")},
            **{"format": "llava", "for": "qwen"},
        ),
        "Use another word, or put a space before it.",
    ),
    Problem(
        "trained-as-answer",
        "formats",
        "error",
        "the tool trains a message that is not an answer",
        "Every message that is not from `human` is an answer to Qwen's trainer.",
        "The model learns to write what users say.",
        _file(
            {"image": "a.png", "conversations": [{"from": "user", "value": "<image>\nWhat?"}, _human("")[1]]},
            **{"format": "llava", "for": "qwen"},
        ),
        "Name the user `human` and the model `gpt`.",
    ),
    Problem(
        "answer-newline",
        "formats",
        "warning",
        "the tool does not train an answer that begins with a newline",
        "axolotl looks for the tokens of `assistant` and a newline; tokenizers of Qwen and others join newlines to one "
        "token, so that these are not found.",
        "The answer is context only, without a word.",
        _file(
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "path": "a.png"}, *_text("What is shown?")]},
                    {"role": "assistant", "content": _text("\n\nA shape.")},
                ]
            },
            format="axolotl",
        ),
        "Remove the newline, or train with another tool.",
    ),
    Problem(
        "end-trained",
        "formats",
        "info",
        "the tool trains the end token of an answer that is not to be trained",
        "ms-swift adds the end token of a conversation with a weight of its own.",
        "The model learns to end such answers, not their text.",
        _file(
            {
                "messages": [_ask(), _ANSWER, _ask("Sure?"), {"role": "assistant", "content": "No.", "loss": False}],
                "images": [],
            },
            format="swift",
        ),
        "No fix is needed in most cases; else leave the last turn out.",
    ),
    Problem(
        "key-ignored",
        "formats",
        "warning",
        "the tool ignores a key that has a meaning elsewhere",
        "ms-swift drops keys of a message that it does not know, `weight` among them; LLaVA, Qwen's trainer, "
        "LLaMA-Factory, TRL and axolotl train every answer; TRL drops `tools` of rows with images.",
        "The answer is trained although its weight is 0, or the model never sees the tools.",
        _file({"messages": [_ask(), {**_ANSWER, "weight": 0}], "images": []}, format="swift"),
        "Use the tool's own key: `loss` in ms-swift.",
    ),
    Problem(
        "column-mistaken",
        "formats",
        "warning",
        "the tool takes a column for the answer by its name",
        "In a file without messages, ms-swift takes the first of many names for the answer: `answers`, `text`, "
        "`content`, `solution`, `completion` and others.",
        "The model is trained on a column that was not meant.",
        _file({"query": "What is shown?", "text": "A shape."}, format="swift"),
        "Give `messages`, or name the answer `response`.",
    ),
    Problem(
        "mixed-types",
        "formats",
        "error",
        "a column has values of several types",
        "A text in one row and an array in another, or a number and a text.",
        "Tables have one type per column: LLaMA-Factory stops while it loads the file, at a row far behind.",
        _file(
            {"messages": [_ask("<image>What?"), _ANSWER], "images": ["a.png"]},
            {"messages": [_ask("<image>What?"), {**_ANSWER, "content": "A dot."}], "images": "b.png"},
            format="sharegpt",
        ),
        "Write one type in all rows: an array for one image, too.",
    ),
    Problem(
        "text-only-set",
        "formats",
        "error",
        "the first row decides that the set has no images",
        "TRL reads a set as one with images only if its first row has a column `images`.",
        "All images are ignored, without a word.",
        _file(
            {
                "messages": [
                    {"role": "user", "content": _text("Hello.")},
                    {"role": "assistant", "content": _text("Hi.")},
                ]
            },
            {
                "images": ["a.png"],
                "messages": [
                    {"role": "user", "content": [{"type": "image"}, *_text("What?")]},
                    {"role": "assistant", "content": _text("A shape.")},
                ],
            },
            format="trl",
        ),
        'Give the first row `"images": []`.',
    ),
    Problem(
        "over-limit",
        "formats",
        "error",
        "a row, an image or the file is over a limit of the service",
        "Services limit the number of images of a row, their size, format and mode, and the number of rows. The limits "
        "are those of their documentation on the date that the message gives.",
        "The service refuses the file, or leaves the row out.",
        _file({"messages": [_ask(), _ANSWER]}, **{"format": "openai", "for": "fireworks"}),
        "Split the row, store the image smaller, or add rows.",
        severity_note="a warning for too few rows",
    ),
    Problem(
        "system-text-added",
        "formats",
        "error",
        "the tool adds a sentence of its own to the system text",
        "With `formatting: openai`, LLaMA-Factory writes `detailed thinking off` into the system text of every row "
        "without tools.",
        "The model is trained with a system message that nobody wrote.",
        Example(
            {
                "data.jsonl": lines({"messages": [_ask(), _ANSWER]}),
                "dataset_info.json": Text(
                    '{"demo": {"file_name": "data.jsonl", "formatting": "openai",\n'
                    '          "columns": {"messages": "messages"},\n'
                    '          "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user",\n'
                    '                   "assistant_tag": "assistant", "system_tag": "system"}}}\n'
                ),
            },
            file="data.jsonl",
        ),
        "Write `formatting: sharegpt` and give all tags.",
    ),
    Problem(
        "settings-invalid",
        "formats",
        "error",
        "an entry of dataset_info.json hides the messages",
        "An entry with `columns` has no other columns, and one with `tags` has no other names of roles: what is left "
        "out does not have its usual name, but none.",
        "LLaMA-Factory reads no messages, or makes every row empty.",
        Example(
            {
                "data.jsonl": lines({"conversations": _human("What is shown?"), "images": []}),
                "dataset_info.json": Text(
                    '{"demo": {"file_name": "data.jsonl", "formatting": "sharegpt", "columns": {"images": "images"}}}\n'
                ),
            },
            file="data.jsonl",
        ),
        "Name all columns and tags that the data have, or leave `columns` and `tags` out.",
    ),
)
