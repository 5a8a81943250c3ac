"""The format of Qwen-VL's own fine-tuning code: as LLaVA's, with `<image>` and `<video>` kept at their places.

Its trainer takes every message that is not `human` for an answer, a system message too, so that none is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from phi3v_data.formats.llava import LLaVA
from phi3v_data.formats.placeholders import INLINE


@dataclass(frozen=True)
class Qwen(LLaVA):
    """QwenLM's `qwen-vl-finetune`."""

    name = "qwen"
    title = "Qwen-VL finetune"
    consumer = "qwen"
    reserved = ("<image>", "<video>")
    suffix = ".jsonl"
    other_tags = (INLINE,)

    def recognizes(self, row: Mapping[str, Any]) -> bool:
        return False  # its rows are LLaVA's; only the trainer differs
