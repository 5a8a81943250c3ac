"""LLaVA's trainer and its forks (`llava/train/train.py`, eight forks read on 2026-11-28)."""

import re
from collections.abc import Iterator
from typing import ClassVar

from phi3v_data.formats.chat import Fault
from phi3v_data.formats.consumers.base import Consumer, Effect, RowView, num_refs, packed_file, text_of

IMAGE = "<image>"


class LLaVA(Consumer):
    """Reads `conversations` with `from` and `value`, and one image or a list under `image`."""

    name = "llava"
    title = "LLaVA"
    formats = ("llava",)
    files_only = True
    trains_all = True
    roles = ("human", "gpt")
    role_keys = ("from",)
    effects: ClassVar = {
        "turn-order": Effect("drops a first message that is not the user's without a word, and stops at any other"),
        "role-unknown": Effect("stops with a KeyError"),
        "last-turn-open": Effect("trains nothing of the row, and prints 'tokenization mismatch'"),
        "image-missing": Effect("stops"),
        "wrong-type": Effect("stops"),
        "missing-field": Effect("stops with a KeyError"),
        "bom": Effect("stops", "error"),
    }
    suspect = re.compile(
        rb'"images"|(?<![^\\]")(?<!<image>)(?<!<image>\\n)<image>|"image"\s*:\s*(?:null|""|\[\s*\])|"(?:role|content)"\s*:'
    )

    def judge(self, fault: Fault, view: RowView | None) -> Fault | None:
        if fault.code == "image-count" and view is not None and view.row.get("video"):
            num_tags = sum(text_of(message).count(IMAGE) for _, message in view.messages)
            if num_tags == num_refs(view.row.get("image")) + num_refs(view.row["video"]):
                return None  # a video has this tag, too
        return super().judge(fault, view)

    def check_file(self, name: str, kind: str) -> Iterator[Fault]:
        if kind == "gzip":
            yield packed_file("LLaVA reads JSON")
        elif kind == "parquet":
            yield Fault("file-encoding", "", "LLaVA reads JSON, and stops at parquet", "write a JSON array")

    def check(self, view: RowView) -> Iterator[Fault]:
        row = view.row
        if "image" in row and row["image"] in (None, "", []):
            yield Fault(
                "wrong-type",
                "image",
                "a row without images has the key 'image': LLaVA tests for the key only, and stops",
                "leave the key out",
            )
        if "image" not in row and row.get("images") not in (None, "", []):
            yield Fault(
                "image-ignored", "images", "LLaVA reads 'image': it does not see these images", "rename it to 'image'"
            )
        for where, message in view.messages:
            if message.get("from") == "system":
                words = "LLaVA stops at a system message with a KeyError"
                yield Fault("system-message", f"{where}.from", words, "put its text before the first user text")
            if "role" in message and "from" not in message:
                words = "LLaVA reads 'from' and 'value', not 'role' and 'content'"
                yield Fault("missing-field", f"{where}.from", words)
            text = text_of(message)
            if text.count(IMAGE) == 1 and not text.startswith(IMAGE) and text.strip() != IMAGE:
                yield Fault(
                    "image-moved",
                    f"{where}.value",
                    "LLaVA's own trainer moves the image to the start of the text",
                    "put <image> first, if its place does not matter",
                    "warning",
                )
