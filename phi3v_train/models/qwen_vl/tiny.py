"""Small Qwen models with random weights."""

from typing import Any

from phi3v_data.tokens.qwen_vl import OTHER_SPECIAL
from phi3v_train.models.huggingface.tiny import TEXT, Tiny, byte_tokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
THOUGHTS = (
    "{% macro write(content) %}{% if content is string %}{{ content }}{% else %}{% for c in content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}{% endif %}{% endmacro %}"
    "{% set last = messages | selectattr('role', 'equalto', 'user') | list | length %}"
    "{% set turn = namespace(value=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set turn.value = turn.value + 1 %}{% endif %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and turn.value == last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ write(m.content) | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)
"""Template of Qwen3.5 without thinking: only the last answer has an empty block of thoughts."""

VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 4,
    "intermediate_size": 64,
    "out_hidden_size": TEXT["hidden_size"],
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


def tokenizer() -> Any:
    """Bytes and the special tokens of the family."""
    return byte_tokenizer(
        ["<|im_end|>", "<|image_pad|>", *OTHER_SPECIAL, "<think>", "</think>"], eos_token="<|im_end|>"
    )


def ids(tokens: Any) -> dict[str, int]:
    """Ids that a configuration names."""
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    places = {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    return {f"{key}_token_id": tokens.convert_tokens_to_ids(text) for key, text in (names | places).items()}


def text(tokens: Any) -> dict[str, Any]:
    """Sizes of the language model."""
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    return {
        **TEXT,
        "vocab_size": len(tokens),
        "rope_parameters": rope,
        "eos_token_id": tokens.convert_tokens_to_ids("<|im_end|>"),
        "bos_token_id": tokens.bos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }


def image_processor(patch_size: int, factor: int) -> Any:
    """An image processor that makes at most 64 tokens of an image."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    size = {"shortest_edge": 4 * factor**2, "longest_edge": 64 * factor**2}
    return Qwen2VLImageProcessorPil(size=size, patch_size=patch_size, temporal_patch_size=2, merge_size=2)


def tiny_qwen3_vl() -> Tiny:
    """Of Qwen3-VL."""
    from transformers import Qwen3VLConfig

    tokens = tokenizer()
    vision = {**VISION, "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    config = Qwen3VLConfig(text_config=text(tokens), vision_config=vision, tie_word_embeddings=False, **ids(tokens))
    return Tiny(config, tokens, image_processor(16, 32), TEMPLATE, "Qwen3VLProcessor")


def tiny_qwen2_5_vl() -> Tiny:
    """Of Qwen2.5-VL."""
    from transformers import Qwen2_5_VLConfig

    tokens = tokenizer()
    vision = {**VISION, "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(text_config=text(tokens), vision_config=vision, tie_word_embeddings=False, **ids(tokens))
    return Tiny(config, tokens, image_processor(14, 28), DEFAULT_SYSTEM + TEMPLATE, "Qwen2_5_VLProcessor")


def tiny_qwen3_5() -> Tiny:
    """Of Qwen3.5."""
    from transformers import Qwen3_5Config

    tokens = tokenizer()
    linear = {
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
    }
    sizes = text(tokens)
    sizes["rope_parameters"]["partial_rotary_factor"] = 1.0
    vision = {**VISION, "patch_size": 16, "num_position_embeddings": 64}
    config = Qwen3_5Config(
        text_config={**sizes, **linear}, vision_config=vision, tie_word_embeddings=False, **ids(tokens)
    )
    return Tiny(config, tokens, image_processor(16, 32), THOUGHTS, "Qwen3VLProcessor")
