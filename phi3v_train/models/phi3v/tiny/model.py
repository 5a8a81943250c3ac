"""A small random Phi-3-vision for demonstrations and tests: every component of the real one, a thousandth of its size.

It uses the tiny tokenizer and answers noise until it is trained. A step on eight frames takes about a second on two
cores, and it is large enough to learn to distinguish simple images.
"""

from typing import Any, NamedTuple

import torch

from phi3v_train.models.phi3v.configuration_phi3_v import Phi3VConfig
from phi3v_train.models.phi3v.modeling_phi3_v import Phi3VForConditionalGeneration
from phi3v_train.models.phi3v.tiny.tokenizer import VOCAB_SIZE, tiny_tokenizer

HEAD_DIM = 32


class Sizes(NamedTuple):
    """Sizes of a decoder or of a vision tower."""

    width: int
    inner: int
    layers: int
    heads: int


def config_by_sizes(decoder: Sizes, tower: Sizes, **others: Any) -> Phi3VConfig:
    """The configuration of a model of these sizes; `others` are further fields of it."""
    return Phi3VConfig(
        hidden_size=decoder.width,
        intermediate_size=decoder.inner,
        num_hidden_layers=decoder.layers,
        num_attention_heads=decoder.heads,
        num_key_value_heads=decoder.heads,
        img_processor={
            "image_dim_out": tower.width,
            "vision_config": {
                "hidden_size": tower.width,
                "intermediate_size": tower.inner,
                "num_hidden_layers": tower.layers,
                "num_attention_heads": tower.heads,
            },
        },
        **others,
    )


def tiny_vocabulary() -> dict[str, int]:
    """Fields of a configuration that depend on the tiny tokenizer."""
    tokenizer = tiny_tokenizer()
    return {
        "vocab_size": VOCAB_SIZE,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.convert_tokens_to_ids("</s>"),
        "pad_token_id": tokenizer.pad_token_id,
    }


def tiny_config() -> Phi3VConfig:
    """Sizes of the tiny model; context, rope switch and image tokens are those of the real one."""
    half = HEAD_DIM // 2
    return config_by_sizes(
        Sizes(width=4 * HEAD_DIM, inner=256, layers=2, heads=4),
        Sizes(width=64, inner=128, layers=3, heads=4),
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        sliding_window=262144,
        initializer_range=0.05,
        rope_theta=10000.0,
        rope_scaling={
            "type": "su",
            "short_factor": [1.0 + 0.1 * index for index in range(half)],
            "long_factor": [1.0 + 4.0 * index for index in range(half)],
        },
        **tiny_vocabulary(),
    )


def tiny_model(seed: int = 0) -> Phi3VForConditionalGeneration:
    """Random weights that depend on `seed` alone; fp32, on the CPU, in evaluation mode; torch's generator is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Phi3VForConditionalGeneration(tiny_config())
    model.set_stop_ids(tiny_tokenizer())
    model.eval()
    return model
