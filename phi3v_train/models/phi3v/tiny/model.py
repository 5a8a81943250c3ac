"""A small random Phi-3-vision for demonstrations and tests: every component of the real one, a thousandth of its size.

It uses the tiny tokenizer and answers noise until it is trained. A step on eight frames takes about a second on two
cores, and it is large enough to learn to distinguish simple images.
"""

import torch

from phi3v_train.models.phi3v.configuration_phi3_v import Phi3VConfig
from phi3v_train.models.phi3v.modeling_phi3_v import Phi3VForConditionalGeneration
from phi3v_train.models.phi3v.tiny.tokenizer import VOCAB_SIZE, tiny_tokenizer

HEAD_DIM = 32


def tiny_config() -> Phi3VConfig:
    """Sizes of the tiny model; context, rope switch and image tokens are those of the real one."""
    tokenizer = tiny_tokenizer()
    half = HEAD_DIM // 2
    return Phi3VConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
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
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids("</s>"),
        pad_token_id=tokenizer.pad_token_id,
        img_processor={
            "image_dim_out": 64,
            "vision_config": {
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
            },
        },
    )


def tiny_model(seed: int = 0) -> Phi3VForConditionalGeneration:
    """Random weights that depend on `seed` alone; fp32, on the CPU, in evaluation mode; torch's generator is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Phi3VForConditionalGeneration(tiny_config())
    model.set_stop_ids(tiny_tokenizer())
    model.eval()
    return model
