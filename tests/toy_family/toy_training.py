"""The training half of the toy family: what another package writes to bring its own model. Imports no torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from toy_tokens import TOY as TOKENS

from phi3v_train.models.family import ModelFamily, ModuleNames
from phi3v_train.models.renderer import ImageArrays, ImageLayout, Renderer
from phi3v_train.models.size import Linear, LinearGroup, ModelSize, Stack

IMAGE_TOKEN_ID, PATCH = 261, 8


class ToyRenderer(Renderer):
    """Pads on the left; image tokens have one id, whatever the number of the image."""

    padding_side = "left"

    def image_layout(self, width: int, height: int, budget: int | None) -> ImageLayout:
        return ImageLayout(self.tokens.image_tokens(width, height, budget))

    def image_arrays(self, image: Image, layout: ImageLayout, budget: int | None) -> ImageArrays:
        strip = np.asarray(image.convert("RGB").resize((PATCH * layout.num_tokens, PATCH)))
        patches = strip.reshape(PATCH, layout.num_tokens, PATCH, 3).swapaxes(0, 1)
        return {"patches": patches.reshape(layout.num_tokens, -1).astype(np.float32) / 255}

    def collate_images(self, images: Sequence[ImageArrays]) -> dict[str, NDArray[Any]]:
        return {"patches": np.concatenate([image["patches"] for image in images])}

    def model_ids(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where(ids < 0, IMAGE_TOKEN_ID, ids)


class ToyFamily(ModelFamily):
    name = "toy"
    title = "Toy models"
    modules = ModuleNames(language=("language",), head=("language.lm_head",), projector=("patches",))
    tokens = TOKENS

    def size(self, config: Mapping[str, Any]) -> ModelSize:
        hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
        head = hidden // config["num_attention_heads"]
        shared = head * config["num_key_value_heads"]
        layer = (
            *(Linear(f"self_attn.{name}_proj", hidden, width) for name, width in (("q", hidden), ("k", shared))),
            *(Linear(f"self_attn.{name}_proj", hidden, width) for name, width in (("v", shared), ("o", hidden))),
            *(Linear(f"mlp.{name}_proj", hidden, inner) for name in ("gate", "up")),
            Linear("mlp.down_proj", inner, hidden),
        )
        return ModelSize(
            (
                LinearGroup("language", "language.model.layers", layer, config["num_hidden_layers"], nf4=True),
                LinearGroup("head", "language", (Linear("lm_head", hidden, vocab),)),
                LinearGroup("projector", "", (Linear("patches", 3 * PATCH**2, hidden, bias=True),)),
            ),
            decoder=Stack(hidden, hidden, kept=3 * hidden + 2 * shared + 3 * inner, norms=2 * hidden),
            vocab=vocab,
            language_other=vocab * hidden + hidden,
        )

    def renderer(self, processor: Any) -> Renderer:
        return ToyRenderer(self.tokens, processor)

    def load_model(self, directory: Path, *, dtype: Any, attn_implementation: str) -> Any:
        from toy_model import ToyForConditionalGeneration

        return ToyForConditionalGeneration.from_pretrained(
            directory, dtype=dtype, attn_implementation=attn_implementation
        )

    def empty_model(self, directory: Path, *, dtype: Any = None, attn_implementation: str | None = None) -> Any:
        from toy_model import ToyConfig, ToyForConditionalGeneration

        return ToyForConditionalGeneration(ToyConfig.from_pretrained(directory)).to(dtype)

    def load_processor(self, directory: Path) -> Any:
        from toy_model import ToyProcessor

        return ToyProcessor.from_pretrained(directory)

    def tiny_config(self) -> dict[str, Any]:
        from toy_model import ToyConfig

        config: dict[str, Any] = ToyConfig().to_dict()
        return config

    def tiny_model(self, seed: int) -> Any:
        from toy_model import tiny_model

        return tiny_model(seed)

    def tiny_processor(self) -> Any:
        from toy_model import ToyImageProcessor, ToyProcessor, byte_tokenizer

        return ToyProcessor(byte_tokenizer(), ToyImageProcessor())

    def layer_classes(self, model: Any) -> tuple[type, ...]:
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer

        return (LlamaDecoderLayer,)


TOY = ToyFamily()
