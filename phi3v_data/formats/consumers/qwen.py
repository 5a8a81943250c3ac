"""Qwen-VL's own trainer (QwenLM/Qwen3-VL, `qwen-vl-finetune`, git of 2026-01-30)."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

from phi3v_data.formats.chat import Fault
from phi3v_data.formats.consumers.base import Consumer, Effect, RowView, num_refs, packed_file, text_of
from phi3v_data.messages import shown

REPLACED = "tries the row three times, prints a line, and trains the next row instead"
_STARTS_ANSWER = re.compile(r"(?<! )assistant")
_TAG = re.compile("<image>|<video>")
_IMAGE = "<image>"


class Qwen(Consumer):
    """Reads LLaVA's format; every message that is not `human` is an answer to it."""

    name = "qwen"
    title = "Qwen's trainer"
    formats = ("qwen", "llava")
    files_only = True
    trains_all = True
    effects: ClassVar = {
        "turn-order": Effect("leaves it to the chat template", "warning"),
        "last-turn-open": Effect("trains the answers before it"),
        "placeholder-in-text": Effect(REPLACED),
        "image-count": Effect(REPLACED),
        "image-missing": Effect(REPLACED),
        "missing-field": Effect(REPLACED),
        "wrong-type": Effect(REPLACED),
        "image-in-answer": Effect(f"reads no tag in an answer, has an image left, {REPLACED}"),
        "blank-line": Effect("stops", "error"),
        "bom": Effect("stops", "error"),
    }
    media: ClassVar = {"<video>": ("video",)}
    suspect = re.compile(
        rb'assistant|"images"|"role"|<video>'
        rb'|"(?: |\\[ntr])| "(?=\s*[,}\]])|\\[ntr]"'  # white space at the start and at the end of a text
        rb"| <image>|(?<!<image>)\\[ntr]<image>|<image>(?: |\\[tr]|\\n(?: |\\[ntr]))"  # beside a tag
        rb"|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80"  # others in Unicode
        rb"|\\u(?:00[aA]0|0085|1680|20[0-2]|205[fF]|3000)"
    )

    def judge(self, fault: Fault, view: RowView | None) -> Fault | None:
        if fault.code == "image-count" and view is not None and fault.field in ("image", "images"):
            tags = sum(text_of(message).count(_IMAGE) for _, message in view.messages if message.get("from") == "human")
            if tags == num_refs(view.row.get("image")):
                words = "Qwen's trainer reads those of the user, which fit, and keeps the others as text"
                return replace(fault, message=f"{fault.message}: {words}", severity="warning")
        return super().judge(fault, view)

    def num_tags(self, view: RowView, tag: str) -> int:
        return sum(message.text.count(tag) for message in view.chat.messages if message.role == "user")

    def check_file(self, name: str, kind: str) -> Iterator[Fault]:
        if kind == "gzip":
            yield packed_file("Qwen's trainer reads JSON")
        elif kind == "parquet":
            yield Fault("file-encoding", "", "Qwen's trainer reads JSON, and stops at parquet", "write JSON Lines")
        elif kind == "array" and name.endswith("jsonl"):
            words = "Qwen's trainer reads a file with this name line by line, and stops at an array"
            yield Fault("json-syntax", "", words, "let its name end in .json")
        elif kind == "lines" and not name.endswith("jsonl"):
            words = "Qwen's trainer reads JSON Lines only if the name ends in 'jsonl', and stops"
            yield Fault("json-syntax", "", words, "let its name end in .jsonl")

    def check(self, view: RowView) -> Iterator[Fault]:
        row = view.row
        if "image" not in row and row.get("images") not in (None, "", []):
            yield Fault("image-ignored", "images", "Qwen's trainer reads 'image': it does not see these images")
        for where, message in view.messages:
            role, text = message.get("from"), text_of(message)
            if role == "system":
                yield Fault(
                    "system-message",
                    f"{where}.from",
                    "Qwen's trainer takes the system message for an answer, and trains it",
                    "put its text before the first user text",
                )
            elif role not in ("human", "gpt") and isinstance(role, str):
                yield Fault(
                    "trained-as-answer",
                    f"{where}.from",
                    f"Qwen's trainer takes a message from {shown(role)} for an answer, and trains it",
                    "the user is 'human', the model is 'gpt'",
                )
            if role != "human":
                continue
            if _STARTS_ANSWER.search(text):
                yield Fault(
                    "assistant-word",
                    f"{where}.value",
                    "Qwen's trainer takes the word 'assistant' without a space before it for the start of an answer",
                    "use another word",
                    "warning",
                )
            if any(piece != piece.strip() for piece in _pieces(text)):
                yield Fault(
                    "text-stripped",
                    f"{where}.value",
                    "Qwen's trainer removes white space beside an image and at both ends of the text",
                )


def _pieces(text: str) -> list[str]:
    """The texts between the tags, without the one newline that may follow a tag."""
    first, *rest = _TAG.split(text)
    return [first, *(piece.removeprefix("\n") for piece in rest)]
