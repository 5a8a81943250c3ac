"""Train the tiny tokenizer: `python -m phi3v_train.models.phi3v.tiny.train_tokenizer [FOLDER]` writes its files again.

It differs from the released tokenizer only in its pieces: Llama BPE with byte fallback, the same normalizer, decoder,
BOS rule, special tokens in the same order with the same flags. The pieces are learned from `corpus.txt`, a text written
for this purpose with the class names of UCF-101, yes and no, digits and plain English, so that answers are a few tokens
long.

Ids: `<unk>` `<s>` `</s>`, 256 bytes, merged pieces, single characters, then the 45 special tokens.
"""

import json
import sys
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Prepend, Replace, Sequence
from tokenizers.pre_tokenizers import Digits, Punctuation, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.trainers import BpeTrainer

HERE = Path(__file__).parent
NUM_PIECES = 2003
"""Pieces before the special tokens; with their 45 the vocabulary has 2,048 entries."""

SPACE = "▁"
BASE = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
CHARACTERS = [SPACE, *(chr(code) for code in range(0x21, 0x7F)), *"£°ÄÉÖÜßàäçèéêíñóöúü€"]

SPECIAL = [
    "<|endoftext|>",
    "<|assistant|>",
    *(f"<|placeholder{number}|>" for number in range(1, 5)),
    "<|system|>",
    "<|end|>",
    *(f"<|placeholder{number}|>" for number in (5, 6)),
    "<|user|>",
    *(f"<|placeholder{number}|>" for number in range(7, 40)),
    "<|image|>",
]
"""In the released order: 32000 to 32044 there, NUM_PIECES onwards here."""

KEEP_WHAT_FOLLOWS = {"<unk>", "<s>", "<|endoftext|>", "<|system|>", "<|end|>", "<|user|>"}
"""Special tokens that keep the white space after them; the others absorb it."""


def learn_merges(text: str) -> list[tuple[str, str]]:
    """Pairs of pieces in the order in which they are joined; a piece is at most one word with the space before it."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = Sequence([Prepend(SPACE), Replace(" ", SPACE)])
    tokenizer.pre_tokenizer = PreTokenizers(
        [Split(Regex(SPACE), "merged_with_next"), Digits(individual_digits=True), Punctuation()]
    )
    num_merges = NUM_PIECES - len(BASE) - len(BYTES) - len(CHARACTERS)
    trainer = BpeTrainer(
        vocab_size=len(CHARACTERS) + num_merges,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=CHARACTERS,
        limit_alphabet=len(CHARACTERS),
    )
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    if len(merges) != num_merges:
        raise ValueError(f"the corpus gave {len(merges)} merges where {num_merges} were wanted: add text to it")
    return merges


def added_token(content: str, token_id: int) -> dict[str, Any]:
    """A special token with the flags of the released tokenizer; `</s>` is the one that is not special there."""
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": content not in KEEP_WHAT_FOLLOWS,
        "normalized": False,
        "special": content != "</s>",
    }


def tokenizer_json(merges: list[tuple[str, str]]) -> dict[str, Any]:
    """Content of `tokenizer.json`."""
    pieces = [*BASE, *BYTES, *(left + right for left, right in merges), *CHARACTERS]
    specials = [*BASE, *SPECIAL]
    ids = [*range(len(BASE)), *range(NUM_PIECES, NUM_PIECES + len(SPECIAL))]
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    second = {"SpecialToken": {"id": "<s>", "type_id": 1}}
    one, other = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(content, token_id) for content, token_id in zip(specials, ids, strict=True)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, one],
            "pair": [begin, one, second, other],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: token_id for token_id, piece in enumerate(pieces)},
            "merges": [" ".join(merge) for merge in merges],
        },
    }


def tokenizer_config() -> dict[str, Any]:
    """Content of `tokenizer_config.json`."""
    return {
        "additional_special_tokens": ["<|system|>", "<|end|>", "<|user|>"],
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "legacy": False,
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "padding_side": "right",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    }


def write(folder: Path) -> None:
    """Learn from the corpus and write both files."""
    files = {
        "tokenizer.json": tokenizer_json(learn_merges((HERE / "corpus.txt").read_text(encoding="utf-8"))),
        "tokenizer_config.json": tokenizer_config(),
    }
    for name, content in files.items():
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
