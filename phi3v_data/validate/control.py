"""Control tokens and characters that must not occur in a row's text.

The model's own special strings change the sequence wherever they occur. Markers of other models (`<image>`, `[INST]`)
show that an import was incomplete: the model reads them as plain text.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import groupby

import numpy as np
import numpy.typing as npt

from phi3v_data.tokens.chat import NUMBER, marker_pattern
from phi3v_data.tokens.family import TokenFamily
from phi3v_data.tokens.registry import default_family, load_families

COMMON_MARKERS = (
    *(f"<{name}>" for name in ("image", "video", "audio", "img", "/img", "image_placeholder", "ImageHere", "bos")),
    *(f"<{name}>" for name in ("eos", "pad", "start_of_turn", "end_of_turn", "start_of_image", "image_soft_token")),
    *(f"<{name}>" for name in ("fake_token_around_image", "end_of_utterance", "IMG_CONTEXT")),
    *("<<SYS>>", "<</SYS>>", "[INST]", "[/INST]", "[IMG]"),
    *(f"<|{name}|>" for name in ("im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")),
    *(f"<|{name}|>" for name in ("begin_of_text", "end_of_text", "eot_id", "eom_id", "start_header_id")),
    *(f"<|{name}|>" for name in ("end_header_id", "image_start", "image_end", "vision_pad", "box_start", "box_end")),
    *(f"<|{name}|>" for name in ("object_ref_start", "object_ref_end")),
)
"""Markers of models and data formats that have no family here."""

_BRACKET = b"["


@dataclass(frozen=True)
class ControlTokens:
    """Special strings of one model family, and markers of all others.

    Args:
        own: finds a special string of the family in a text.
        foreign: finds a marker of another model or data format in a text.
        candidates: for each first byte of a marker, finds in raw JSON text where one may begin.
        after_bracket: second bytes of markers that begin with `[`, which every row has many of.
        is_ascii: whether every marker is, so that an escape of another character spells none.
    """

    own: re.Pattern[str]
    foreign: re.Pattern[str]
    candidates: tuple[tuple[bytes, re.Pattern[bytes]], ...]
    after_bracket: bytes
    is_ascii: bool

    def find(self, text: str) -> tuple[str, bool] | None:
        """The first marker in a text and whether it is one of the family's own; None if there is none."""
        own = self.own.search(text)
        if own is not None:
            return own.group(), True
        foreign = self.foreign.search(text)
        if foreign is not None:
            return foreign.group(), False
        return None

    def find_candidates(self, data: bytes) -> list[int]:
        """Byte offsets in raw JSON text where a marker may begin; misses those with escapes or that begin with `[`."""
        return [
            match.start() for first, pattern in self.candidates if first in data for match in pattern.finditer(data)
        ]

    def may_follow_bracket(self, following: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Whether a `[` with this byte behind it may begin a marker."""
        result = np.zeros(len(following), np.bool_)
        for byte in self.after_bracket:
            result |= following == byte
        return result


@cache
def control_tokens(family: TokenFamily | None = None) -> ControlTokens:
    """The markers that matter to a family, by default phi3v; those of a family that cannot be loaded are missing."""
    return build_control_tokens(*marker_strings(family))


def marker_strings(family: TokenFamily | None = None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The special strings of a family, by default phi3v, and the markers of all others."""
    own = tuple((family or default_family()).special_strings)
    foreign = (*COMMON_MARKERS, *(text for other in load_families()[0] for text in other.special_strings))
    return own, tuple(text for text in dict.fromkeys(foreign) if text not in own)


def build_control_tokens(own: Iterable[str], foreign: Iterable[str]) -> ControlTokens:
    """Control tokens out of special strings; `{number}` in one stands for digits."""
    own, foreign = tuple(own), tuple(foreign)
    spelled = sorted({_in_json(text) for text in (*own, *foreign)})
    in_brackets = [text for text in spelled if text[:1] == _BRACKET and len(text) > 1]
    others = [text for text in spelled if text not in in_brackets]
    return ControlTokens(
        _any_of(own),
        _any_of(foreign),
        tuple((first, re.compile(_starts(list(group)))) for first, group in groupby(others, key=_first_byte)),
        bytes(sorted({text[1] for text in in_brackets})),
        all(text.isascii() for text in spelled),
    )


def _in_json(marker: str) -> bytes:
    """The beginning of a marker as raw JSON text spells it, up to a number in it."""
    return json.dumps(marker.partition(NUMBER)[0], ensure_ascii=False)[1:-1].encode()


def _first_byte(text: bytes) -> bytes:
    return text[:1]


def _starts(texts: list[bytes], depth: int = 2) -> bytes:
    """A regular expression for sorted texts; branches share their first bytes, so that most places fail at once."""
    if not depth:
        return b"|".join(map(re.escape, texts))
    branches = []
    for first, group in groupby(texts, key=_first_byte):
        rest = _starts([text[1:] for text in group], depth - 1)
        branches.append(re.escape(first) + b"(?:" + rest + b")")
    return b"|".join(branches)


def _any_of(markers: Iterable[str]) -> re.Pattern[str]:
    """Finds any of these markers, of two at one place the longer; nothing where there are none."""
    ordered = sorted(markers, key=len, reverse=True)
    return re.compile("|".join(map(marker_pattern, ordered)) if ordered else r"(?!)")
