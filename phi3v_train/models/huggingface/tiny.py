"""Small models with random weights: a tokenizer of bytes, and the files of a processor, made in memory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from phi3v_data.tokens.model_files import Values
from phi3v_train.models.huggingface.processor import HubProcessor

TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 32768,
}
"""Sizes of a small language model."""


@dataclass(frozen=True)
class Tiny:
    """A small model: its configuration and the parts of its processor.

    Args:
        config: transformers' configuration object.
        tokenizer: of transformers.
        image_processor: of transformers, by Pillow.
        template: the chat template.
        processor_class: name of transformers' processor class, for `processor_config.json`.
        settings: further values of `processor_config.json`.
    """

    config: Any
    tokenizer: Any
    image_processor: Any
    template: str
    processor_class: str
    settings: Values = field(default_factory=dict)

    def processor(self) -> HubProcessor:
        """The processor."""
        image: Values = self.image_processor.to_dict()
        image["processor_class"] = self.processor_class
        tokenizer = reloaded(self.tokenizer, self.config)
        tokenizer.chat_template = self.template
        return HubProcessor(
            tokenizer,
            self.image_processor,
            self.template,
            {**self.settings, **image},
            files={
                "preprocessor_config.json": image,
                "processor_config.json": {**self.settings, "processor_class": self.processor_class},
            },
        )


def reloaded(tokenizer: Any, config: Any) -> Any:
    """The tokenizer as transformers loads it from a directory of such a model: of the class that it chooses."""
    from tempfile import TemporaryDirectory

    from transformers import AutoTokenizer

    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)


WORDS = r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Parts of a text that are tokenized apart, as by large tokenizers: line ends never belong to the word behind them."""


def byte_tokenizer(
    special: Sequence[str], named: dict[str, str] | None = None, *, adds_bos: bool = False, **more: Any
) -> Any:
    """A tokenizer with one token per byte, one for two line ends, and special tokens.

    Args:
        special: special tokens, beside `<pad>`, `<bos>`, `<eos>` and `<unk>`.
        named: special tokens that become attributes of the tokenizer: `{"image_token": "<image>"}`.
        adds_bos: BOS is added to every text that is tokenized with special tokens.
        more: arguments of `PreTrainedTokenizerFast`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {each: index for index, each in enumerate([*alphabet, "ĊĊ"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    named = named or {}
    usual = ("<pad>", "<bos>", "<eos>", "<unk>")
    others = [each for each in dict.fromkeys(special) if each not in usual and each not in named.values()]
    tokenizer.add_special_tokens([*usual, *others, *named.values()])
    given = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", **more}
    if adds_bos:
        bos = given["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=others,
        extra_special_tokens=named,
        model_max_length=32768,
        **given,
    )
