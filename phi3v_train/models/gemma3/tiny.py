"""A small Gemma 3 with random weights."""

from phi3v_train.models.huggingface.tiny import TEXT, Tiny, byte_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% set first = namespace(text='') %}{% if messages[0].role == 'system' %}"
    "{% if messages[0].content is string %}{% set first.text = messages[0].content + '\n\n' %}"
    "{% else %}{% set first.text = messages[0].content[0].text + '\n\n' %}{% endif %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% if loop.first %}{{ first.text }}{% endif %}"
    "{% if m.content is string %}{{ m.content | trim }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<start_of_image>{% else %}{{ c.text | trim }}{% endif %}{% endfor %}{% endif %}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def tiny_gemma3() -> Tiny:
    """With 4 tokens per image, and one layer with a sliding window."""
    from transformers import Gemma3Config
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokens = byte_tokenizer(["<start_of_turn>", "<end_of_turn>"], named, adds_bos=True)
    text = {
        **TEXT,
        "vocab_size": len(tokens),
        "sliding_window": 256,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 14,
        "vision_use_head": False,
    }
    ids = {key: tokens.convert_tokens_to_ids(text) for key, text in named.items()}
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=ids["image_token"],
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
        eos_token_id=tokens.convert_tokens_to_ids("<end_of_turn>"),
    )
    images = Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    return Tiny(config, tokens, images, TEMPLATE, "Gemma3Processor", {"image_seq_length": 4})
