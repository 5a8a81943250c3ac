"""A small tokenizer of the released model's kind, shipped with the package, so that everything runs without a download.

`train_tokenizer` says how it was made, and from which text.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phi3v_train.models.phi3v.configuration_phi3_v import Phi3VConfig
    from phi3v_train.models.phi3v.modeling_phi3_v import Phi3VForConditionalGeneration
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
    """A processor with the tiny tokenizer and a budget of `num_crops` tiles a picture."""
    from phi3v_train.models.phi3v.image_processing_phi3_v import Phi3VImageProcessor
    from phi3v_train.models.phi3v.processing_phi3_v import Phi3VProcessor

    return Phi3VProcessor(Phi3VImageProcessor(num_crops=num_crops), tiny_tokenizer())


def tiny_config() -> "Phi3VConfig":
    """Sizes of the tiny model; see `phi3v_train.models.phi3v.tiny_model`."""
    from phi3v_train.models.phi3v import tiny_model as home

    return home.tiny_config()


def tiny_model(seed: int = 0) -> "Phi3VForConditionalGeneration":
    """The tiny model with random weights that depend on `seed` alone."""
    from phi3v_train.models.phi3v import tiny_model as home

    return home.tiny_model(seed)


def save_tiny(directory: str | Path, seed: int = 0) -> None:
    """Write the tiny model and its processor as a directory that loads like an official one."""
    tiny_model(seed).save_pretrained(directory)
    tiny_processor().save_pretrained(directory)
