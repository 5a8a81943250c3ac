"""A small model and tokenizer of the released one's kind, shipped with the package: everything runs offline."""

from pathlib import Path
from typing import TYPE_CHECKING

from phi3v_train.models.phi3v.tiny.tokenizer import VOCAB_SIZE, tiny_processor, tiny_tokenizer

if TYPE_CHECKING:
    from phi3v_train.models.phi3v.configuration_phi3_v import Phi3VConfig
    from phi3v_train.models.phi3v.modeling_phi3_v import Phi3VForConditionalGeneration

__all__ = ["VOCAB_SIZE", "save_tiny", "tiny_config", "tiny_model", "tiny_processor", "tiny_tokenizer"]


def tiny_config() -> "Phi3VConfig":
    """Sizes of the tiny model."""
    from phi3v_train.models.phi3v.tiny import model

    return model.tiny_config()


def tiny_model(seed: int = 0) -> "Phi3VForConditionalGeneration":
    """The tiny model with random weights that depend on `seed` alone; loads torch."""
    from phi3v_train.models.phi3v.tiny import model

    return model.tiny_model(seed)


def save_tiny(directory: str | Path, seed: int = 0) -> None:
    """Write the tiny model and its processor as a directory that loads like an official one."""
    tiny_model(seed).save_pretrained(directory)
    tiny_processor().save_pretrained(directory)
