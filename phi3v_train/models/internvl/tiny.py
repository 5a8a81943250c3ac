"""A small InternVL with random weights."""

from phi3v_train.models.huggingface.tiny import TEXT, Tiny, byte_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% elif c.type == 'text' %}{{ c.text }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_internvl() -> Tiny:
    """With 4 tokens per tile and up to 4 tiles."""
    from transformers import InternVLConfig
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokens = byte_tokenizer(["<|im_start|>", "<|im_end|>", "<|endoftext|>"], named, eos_token="<|im_end|>")
    text = {**TEXT, "model_type": "qwen2", "vocab_size": len(tokens), "pad_token_id": tokens.pad_token_id}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": [56, 56],
        "patch_size": [14, 14],
    }
    config = InternVLConfig(
        vision_config=vision,
        text_config={**text, "eos_token_id": tokens.eos_token_id, "bos_token_id": tokens.bos_token_id},
        image_token_id=tokens.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    images = GotOcr2ImageProcessorPil(
        size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    return Tiny(config, tokens, images, TEMPLATE, "InternVLProcessor", {"image_seq_length": 4})
