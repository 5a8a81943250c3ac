"""Small Idefics3 and SmolVLM models with random weights."""

from typing import Any

from phi3v_data.tokens.idefics import FAKE, GLOBAL, IMAGE
from phi3v_train.models.huggingface.tiny import TEXT, Tiny, byte_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m.role | capitalize }}:{% if m.content[0].type != 'image' %} {% endif %}"
    "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% elif c.type == 'image' %}<image>{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}
SIZE: dict[str, Any] = {"size": {"longest_edge": 168}, "max_image_size": {"longest_edge": 56}}


def parts(begin: str) -> tuple[Any, dict[str, Any]]:
    """A tokenizer, and the arguments of a configuration."""
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokens = byte_tokenizer(
        [begin, "<end_of_utterance>", FAKE, IMAGE, GLOBAL, *tiles],
        adds_bos=begin == "<|begin_of_text|>",
        bos_token=begin,
        eos_token="<end_of_utterance>",
    )
    text = {**TEXT, "model_type": "llama", "vocab_size": len(tokens), "pad_token_id": tokens.pad_token_id}
    text |= {"eos_token_id": tokens.eos_token_id, "bos_token_id": tokens.bos_token_id}
    return tokens, {
        "text_config": text,
        "vision_config": VISION,
        "scale_factor": 2,
        "image_token_id": tokens.convert_tokens_to_ids(IMAGE),
        "pad_token_id": tokens.pad_token_id,
        "tie_word_embeddings": False,
    }


def tiny_idefics3() -> Tiny:
    """Of Idefics3."""
    from transformers import Idefics3Config
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tokens, values = parts("<|begin_of_text|>")
    template = "<|begin_of_text|>" + TEMPLATE
    images = Idefics3ImageProcessorPil(**SIZE)
    return Tiny(Idefics3Config(**values), tokens, images, template, "Idefics3Processor", {"image_seq_len": 4})


def tiny_smolvlm() -> Tiny:
    """Of SmolVLM."""
    from transformers import SmolVLMConfig
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    tokens, values = parts("<|im_start|>")
    template = "<|im_start|>" + TEMPLATE
    images = SmolVLMImageProcessorPil(**SIZE)
    return Tiny(SmolVLMConfig(**values), tokens, images, template, "SmolVLMProcessor", {"image_seq_len": 4})
