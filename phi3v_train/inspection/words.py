"""Tokens as words that people can read, whatever kind of vocabulary they come from."""

from collections.abc import Sequence
from functools import cache
from typing import Any

SPACE, NEWLINE = "▁", "⏎"
"""Signs for a space and a line end within a word."""

_NEWLINE_BYTE = "<0x0A>"


def token_words(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The word of each token, with `▁` for a space and `⏎` for a line end; bytes that are no text as `⟨e7⟩`."""
    words: list[str] = tokenizer.convert_ids_to_tokens(list(ids))
    if not _is_byte_level(tokenizer):
        return [word.replace(_NEWLINE_BYTE, NEWLINE) for word in words]
    return [_of_bytes(word).replace(" ", SPACE).replace("\n", NEWLINE) for word in words]


def marker_words(tokenizer: Any) -> frozenset[str]:
    """Words that are not made of text: the markers of the chat format among them."""
    return frozenset(str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values())


def as_text(word: str) -> str:
    """A word with spaces; a line end keeps its sign, and the line ends after it."""
    return word.replace(SPACE, " ").replace(NEWLINE, f"{NEWLINE}\n")


def _is_byte_level(tokenizer: Any) -> bool:
    """Whether the vocabulary spells bytes as GPT-2's does: a space is `Ġ`."""
    number = tokenizer.convert_tokens_to_ids("Ġ")
    return number is not None and tokenizer.convert_ids_to_tokens([number]) == ["Ġ"]


def _of_bytes(word: str) -> str:
    table = _byte_of_letter()
    if any(letter not in table for letter in word):
        return word  # an added token, which is spelled as it is
    data = bytes(table[letter] for letter in word)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "".join(f"⟨{byte:02x}⟩" for byte in data)


@cache
def _byte_of_letter() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 letters stand for themselves, other bytes for the letters from U+0100 on."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + index): byte for index, byte in enumerate(others)}
