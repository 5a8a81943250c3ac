"""The tiny tokenizer and a processor with it; `train_tokenizer` made it."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phi3v_train.models.phi3v.processing_phi3_v import Phi3VProcessor
    from phi3v_train.models.phi3v.tokenization_phi3_v import Phi3VTokenizer

VOCAB_SIZE = 2048
"""Entries of the tiny tokenizer, special tokens included."""


def tiny_tokenizer() -> "Phi3VTokenizer":
    """The tiny tokenizer: 2,003 pieces and the 45 special tokens of the released one, `<|endoftext|>` first."""
    from phi3v_train.models.phi3v.tokenization_phi3_v import Phi3VTokenizer

    tokenizer: Phi3VTokenizer = Phi3VTokenizer.from_pretrained(Path(__file__).parent)
    return tokenizer


def tiny_processor(num_crops: int = 16) -> "Phi3VProcessor":
    """A processor with the tiny tokenizer and a budget of `num_crops` tiles per image."""
    from phi3v_train.models.phi3v.image_processing_phi3_v import Phi3VImageProcessor
    from phi3v_train.models.phi3v.processing_phi3_v import Phi3VProcessor

    return Phi3VProcessor(Phi3VImageProcessor(num_crops=num_crops), tiny_tokenizer())
