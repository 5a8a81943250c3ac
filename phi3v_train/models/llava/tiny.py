"""Small LLaVA-NeXT and LLaVA-OneVision models with random weights."""

from typing import Any

from phi3v_train.models.huggingface.tiny import TEXT, Tiny, byte_tokenizer

NEXT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}<<SYS>>\n{{ m.content[0].text }}\n<</SYS>>\n\n"
    "{% elif m.role == 'user' %}[INST] {% for c in m.content %}{% if c.type == 'image' %}{{ '<image>\n' }}{% endif %}"
    "{% endfor %}{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %} [/INST]"
    "{% else %} {{ m.content[0].text }}</s> {% endif %}{% endfor %}"
)
ONEVISION_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% for c in m.content %}{% if c.type == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PINPOINTS = [[56, 112], [112, 56], [112, 112], [56, 168], [168, 56]]
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}


def tiny_llava_next() -> Tiny:
    """Of LLaVA-NeXT on Mistral."""
    from transformers import LlavaNextConfig
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    tokens = byte_tokenizer(
        ["</s>", "<s>"], {"image_token": "<image>"}, adds_bos=True, eos_token="</s>", bos_token="<s>"
    )
    text = {**TEXT, "model_type": "mistral", "vocab_size": len(tokens), "pad_token_id": tokens.pad_token_id}
    config = LlavaNextConfig(
        vision_config={**VISION, "model_type": "clip_vision_model"},
        text_config={**text, "eos_token_id": tokens.eos_token_id, "bos_token_id": tokens.bos_token_id},
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=PINPOINTS
    )
    settings = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return Tiny(config, tokens, images, NEXT_TEMPLATE, "LlavaNextProcessor", settings)


def tiny_llava_onevision() -> Tiny:
    """Of LLaVA-OneVision."""
    from transformers import LlavaOnevisionConfig
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    named = {"image_token": "<image>", "video_token": "<video>"}
    tokens = byte_tokenizer(["<|im_start|>", "<|im_end|>", "<|endoftext|>"], named, eos_token="<|im_end|>")
    text = {**TEXT, "model_type": "qwen2", "vocab_size": len(tokens), "pad_token_id": tokens.pad_token_id}
    config = LlavaOnevisionConfig(
        vision_config={**VISION, "model_type": "siglip_vision_model", "vision_use_head": False},
        text_config={**text, "eos_token_id": tokens.eos_token_id, "bos_token_id": tokens.bos_token_id},
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        video_token_index=tokens.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        vision_aspect_ratio="anyres_max_9",
        tie_word_embeddings=False,
    )
    images = LlavaOnevisionImageProcessorPil(size={"height": 56, "width": 56}, image_grid_pinpoints=PINPOINTS)
    settings = {
        "num_image_tokens": 16,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_9",
    }
    return Tiny(config, tokens, images, ONEVISION_TEMPLATE, "LlavaOnevisionProcessor", settings)
