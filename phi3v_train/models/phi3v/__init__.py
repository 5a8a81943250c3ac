"""Phi-3-vision and Phi-3.5-vision on current transformers, without hub code; names are imported when first used."""

from importlib import import_module
from typing import Any

_HOME = {
    "Phi3VConfig": "configuration_phi3_v",
    "Phi3VForConditionalGeneration": "modeling_phi3_v",
    "Phi3VImageProcessor": "image_processing_phi3_v",
    "Phi3VProcessor": "processing_phi3_v",
    "Phi3VTokenizer": "tokenization_phi3_v",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
