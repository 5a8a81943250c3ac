"""A vision-language model in a few dozen lines: a linear projector of patches before a small Llama, bytes as tokens."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

SPECIAL = ("[PAD]", "[SYS]", "[ASK]", "[ANSWER]", "[STOP]", "[IMG]")
"""Their ids follow the 256 bytes: 256 to 261."""

IMAGE_TOKEN_ID = 261
PATCH = 8
FEATURES = 3 * PATCH * PATCH


class ToyConfig(PretrainedConfig):  # type: ignore[misc]  # transformers is untyped
    """Sizes of the Llama; all else is fixed."""

    model_type = "toy_vl"

    def __init__(self, hidden_size: int = 32, intermediate_size: int = 64, num_hidden_layers: int = 2, **kwargs: Any):
        self.hidden_size, self.intermediate_size = hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads, self.num_key_value_heads = num_hidden_layers, 4, 2
        self.vocab_size = 256 + len(SPECIAL)
        super().__init__(**kwargs)


class ToyForConditionalGeneration(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """`patches` (n, 192) of all images replace the embeddings of the image tokens, in order; all else is the Llama."""

    config_class = ToyConfig
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    _no_split_modules = ("LlamaDecoderLayer",)

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        text = LlamaConfig(
            **{name: getattr(config, name) for name in names},
            vocab_size=config.vocab_size,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.language = LlamaForCausalLM(text)
        self.patches = nn.Linear(FEATURES, config.hidden_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language.get_input_embeddings()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        patches: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        embeds = self.get_input_embeddings()(input_ids)
        if patches is not None:
            found = (input_ids == IMAGE_TOKEN_ID)[..., None].expand_as(embeds)
            embeds = embeds.masked_scatter(found, self.patches(patches.to(self.patches.weight.dtype)).to(embeds.dtype))
        return self.language(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **kwargs,
        )

    def prepare_inputs_for_generation(self, *args: Any, patches: Tensor | None = None, **kwargs: Any) -> Any:
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        if inputs["input_ids"].shape[1] > 1:
            inputs["patches"] = patches
        return inputs


class ToyImageProcessor:
    """Cuts an image into a strip of patches."""

    def __init__(self, sharpness: int = 1) -> None:
        self.sharpness = sharpness


class ToyProcessor:
    """Tokenizer and image processor, with what `save_pretrained` writes: one file, as transformers 5 does."""

    chat_template = None

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_processor: ToyImageProcessor) -> None:
        self.tokenizer, self.image_processor = tokenizer, image_processor

    def save_pretrained(self, directory: str | Path) -> None:
        self.tokenizer.save_pretrained(directory)
        values = {"processor_class": type(self).__name__, "image_processor": vars(self.image_processor)}
        Path(directory, "processor_config.json").write_text(json.dumps(values))

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "ToyProcessor":
        values = json.loads(Path(directory, "processor_config.json").read_text())["image_processor"]
        return cls(PreTrainedTokenizerFast.from_pretrained(directory), ToyImageProcessor(**values))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token whose id is its value."""
    order = {letter: byte for byte, letter in enumerate(byte_letters())}
    inner = Tokenizer(BPE(vocab=order, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", padding_side="left")


def byte_letters() -> list[str]:
    """The letter that byte-level tokenizers write for each byte (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(rest)) for byte in range(256)]


def tiny_model(seed: int) -> ToyForConditionalGeneration:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ToyForConditionalGeneration(ToyConfig()).eval()


AutoConfig.register("toy_vl", ToyConfig, exist_ok=True)
AutoModelForImageTextToText.register(ToyConfig, ToyForConditionalGeneration, exist_ok=True)
