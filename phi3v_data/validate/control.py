"""Control tokens and characters that must not stand in a row's text.

The model's own special tokens and image tags change the sequence when they stand in a text; markers of other models
(`<image>`, `[INST]`) mean that an import went half way: the model reads them as plain letters.
"""

import re

OWN_TOKEN = re.compile(
    r"<\|(?:image_\d+|placeholder\d+|image|endoftext|assistant|system|user|end|tool|step|function_output|tag"
    r"|function_call|raw|continue|function_list|calc|code|summary|resource|assistant_mask|start|message)\|>"
    r"|</s>|<s>|<unk>"
)
"""Special tokens of the Phi-3 tokenizers and the image tags of the processor."""

FOREIGN_MARKER = re.compile(
    r"<(?:image|video|audio|img|/img|image_placeholder|ImageHere|bos|eos|pad|start_of_turn|end_of_turn|start_of_image"
    r"|image_soft_token|fake_token_around_image|end_of_utterance|IMG_CONTEXT)>"
    r"|<<SYS>>|<</SYS>>|\[/?INST\]|\[IMG\]"
    r"|<\|(?:im_start|im_end|vision_start|vision_end|image_pad|video_pad|begin_of_text|end_of_text|eot_id|eom_id"
    r"|start_header_id|end_header_id|image_start|image_end|vision_pad|box_start|box_end|object_ref_start"
    r"|object_ref_end)\|>"
)
"""Markers of other models and data formats."""

_ANGLE = re.compile(
    rb"<(?:\||/?s>|unk>|image|video>|audio>|/?img>|ImageHere>|bos>|eos>|pad>|start_of_|end_of_|fake_token|IMG_CONTEXT|<)"
)

SURROGATE = re.compile("[\ud800-\udfff]")


def find_candidates(data: bytes) -> list[int]:
    """Byte offsets where a token may begin in raw JSON text; misses those spelled with escapes or in brackets."""
    return [match.start() for match in _ANGLE.finditer(data)]


def find_control(text: str) -> tuple[str, bool] | None:
    """The first control token in a text and whether it is the model's own; None where there is none."""
    own = OWN_TOKEN.search(text)
    if own is not None:
        return own.group(), True
    foreign = FOREIGN_MARKER.search(text)
    if foreign is not None:
        return foreign.group(), False
    return None


def invalid_character(text: str) -> str | None:
    """What makes a text invalid: a lone surrogate or NUL, in words; None where it is sound."""
    surrogate = SURROGATE.search(text)
    if surrogate is not None:
        return f"a lone surrogate (\\u{ord(surrogate.group()):04x}) at character {surrogate.start()}"
    position = text.find("\0")
    return None if position < 0 else f"a NUL at character {position}"
