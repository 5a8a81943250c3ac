"""Phi-3-vision and Phi-3.5-vision as a model family."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from phi3v_data.errors import UserError
from phi3v_data.messages import shown
from phi3v_data.tokens.chat import TurnText
from phi3v_data.tokens.model_files import PREPROCESSOR_CONFIG, processor_settings, read_values
from phi3v_data.tokens.phi3v import PHI3V as TOKENS
from phi3v_train.models.family import EngineReport, ImageBudget, ModelFamily, ModuleNames, OtherFamilyError
from phi3v_train.models.renderer import Renderer
from phi3v_train.models.size import Linear, LinearGroup, ModelSize, Stack, kept_in_decoder, kept_in_tower

if TYPE_CHECKING:
    from torch import Tensor

OFFICIAL_SIZES: dict[str, int] = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
}
"""Of both released models, for plans without a model at hand."""

OFFICIAL_VISION: dict[str, int] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "image_size": 336,
}

TOKENS_PER_TILE = 144
"""Tokens that the projector makes of a tile, separators left out."""

VISION = "model.vision_embed_tokens"
TOWER = f"{VISION}.img_processor"


class Phi3VFamily(ModelFamily):
    """Phi-3-vision and Phi-3.5-vision, on the port in this folder."""

    name = "phi3v"
    title = "Phi-3-vision and Phi-3.5-vision"
    template_origin = "the released models' own code, golden outputs in tests/"
    modules = ModuleNames(
        language=("model.embed_tokens", "model.layers", "model.norm", f"{VISION}.wte"),
        head=("lm_head",),
        tower=(TOWER,),
        projector=(VISION,),
    )
    needed_files: ClassVar[Mapping[str | tuple[str, ...], str]] = {
        "config.json": "the model's shapes",
        "tokenizer.json": "the tokenizer",
        PREPROCESSOR_CONFIG: "the image processor",
    }
    budget = ImageBudget("num_crops", "tuned_num_crops")
    no_packing = ""
    no_decay = ("bias", "glb_GN", "sub_GN")
    host_inputs = frozenset({"image_sizes"})
    card_tags = ("phi-3-vision", "phi3v")
    has_code = True
    tokens = TOKENS

    def size(self, config: Mapping[str, Any]) -> ModelSize:
        """Sizes by a parsed `config.json`; an empty mapping stands for the released models."""
        text = {name: int(config.get(name) or default) for name, default in OFFICIAL_SIZES.items()}
        image = dict(config.get("img_processor") or {})
        vision = OFFICIAL_VISION | {k: v for k, v in (image.get("vision_config") or {}).items() if k in OFFICIAL_VISION}
        hidden, inner, vocab = text["hidden_size"], text["intermediate_size"], text["vocab_size"]
        head_dim = int(config.get("head_dim") or hidden // text["num_attention_heads"])
        attention = text["num_attention_heads"] * head_dim
        qkv = attention + 2 * text["num_key_value_heads"] * head_dim
        width, wide, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
        index, total = int(image.get("layer_idx", -2)), vision["num_hidden_layers"]
        used = total + 1 + index if index < 0 else index
        positions = (vision["image_size"] // patch) ** 2 + 1
        table = (
            LinearGroup(
                "language",
                "model.layers",
                (
                    Linear("self_attn.qkv_proj", hidden, qkv),
                    Linear("self_attn.o_proj", attention, hidden),
                    Linear("mlp.gate_up_proj", hidden, 2 * inner),
                    Linear("mlp.down_proj", inner, hidden),
                ),
                num_layers=text["num_hidden_layers"],
                nf4=True,
            ),
            LinearGroup("head", "", (Linear("lm_head", hidden, vocab),)),
            LinearGroup(
                "vision",
                f"{TOWER}.vision_model.encoder.layers",
                (
                    *(Linear(f"self_attn.{name}_proj", width, width, bias=True) for name in ("q", "k", "v", "out")),
                    Linear("mlp.fc1", width, wide, bias=True),
                    Linear("mlp.fc2", wide, width, bias=True),
                ),
                num_layers=used,
                has_unused_layers=used < total,
            ),
            LinearGroup(
                "projector",
                VISION,
                (
                    Linear("img_projection.0", 4 * width, hidden, bias=True),
                    Linear("img_projection.2", hidden, hidden, bias=True),
                ),
            ),
        )
        patch_weights = 3 * patch**2 * width
        separators, class_token, norms = 8 * width, width, 4 * width
        return ModelSize(
            table,
            decoder=Stack(
                hidden,
                attention,
                kept=kept_in_decoder(hidden, attention, text["num_key_value_heads"] * head_dim, inner),
                norms=2 * hidden,
            ),
            vocab=vocab,
            language_other=vocab * hidden + hidden,
            tower=Stack(width, width, kept=kept_in_tower(width, wide), norms=4 * width),
            vision_other=patch_weights + positions * width + class_token + norms + separators,
            unused_vision_layers=total - used,
            unused_vision_other=2 * width if used < total else 0,  # the norm behind the last layer
            tile_tokens=positions,
            tile_features=TOKENS_PER_TILE,
            patch_weights=patch_weights,
        )

    def write_code(self, folder: Path) -> None:
        """Write `modeling_phi3_v.py`, and `auto_map` into the four settings files of a model directory."""
        from phi3v_train.models.phi3v.bundle import write_code

        write_code(folder)

    def check_engine(self, directory: Path, engine: str) -> EngineReport:
        """See `ModelFamily.check_engine`; of vLLM, MLX and transformers."""
        from phi3v_train.models.phi3v.engines.check import check

        return check(directory, engine)

    def renderer(self, processor: Any) -> Renderer:
        """Encoder of conversations, equal to the released processor."""
        from phi3v_train.models.phi3v.renderer import Phi3VRenderer

        return Phi3VRenderer(self.tokens, processor)

    def load_model(self, directory: Path, *, dtype: Any, attn_implementation: str) -> Any:
        """The port with a directory's weights."""
        from phi3v_train.models.phi3v.modeling_phi3_v import Phi3VForConditionalGeneration

        return Phi3VForConditionalGeneration.from_pretrained(
            directory, dtype=dtype, attn_implementation=attn_implementation
        )

    def empty_model(self, directory: Path, *, dtype: Any = None, attn_implementation: str | None = None) -> Any:
        """The port by config.json and generation_config.json alone."""
        from transformers import GenerationConfig

        from phi3v_train.models.phi3v.configuration_phi3_v import Phi3VConfig
        from phi3v_train.models.phi3v.modeling_phi3_v import Phi3VForConditionalGeneration

        given = {"dtype": dtype, "attn_implementation": attn_implementation}
        model = Phi3VForConditionalGeneration._from_config(
            Phi3VConfig.from_pretrained(directory),
            **{name: value for name, value in given.items() if value is not None},
        )
        model.generation_config = GenerationConfig.from_pretrained(directory)
        return model

    def load_processor(self, directory: Path) -> Any:
        """Tokenizer and image processor of a directory.

        Raises:
            ValueError, TypeError: a value in its files cannot be used.
            OtherFamilyError: its files are those of another model family.
        """
        from phi3v_train.models.phi3v.processing_phi3_v import Phi3VProcessor

        other = f"{directory}: its processor belongs to another model family than its config.json ({self.name})"
        kind = processor_settings(directory).get("image_processor_type")
        if isinstance(kind, str) and not kind.startswith("Phi3V"):
            raise OtherFamilyError(
                f"{other}: the image processor is a {shown(kind, 40)}; copy preprocessor_config.json from the model's "
                "original files"
            )
        processor: Any = Phi3VProcessor.from_pretrained(directory)
        wanted, found = read_values(directory / "config.json").get("bos_token_id"), processor.tokenizer.bos_token_id
        if isinstance(wanted, int) and wanted != found:
            raise OtherFamilyError(
                f"{other}: its tokenizer begins a text with the token {found}, and config.json says {wanted}; copy the "
                "model's own tokenizer files"
            )
        return processor

    def tiny_config(self) -> dict[str, Any]:
        """Of the tiny model, see `tiny`."""
        from phi3v_train.models.phi3v.tiny import tiny_config

        config: dict[str, Any] = tiny_config().to_dict()
        return config

    def tiny_model(self, seed: int) -> Any:
        """The tiny model, see `tiny`."""
        from phi3v_train.models.phi3v.tiny import tiny_model

        return tiny_model(seed)

    def tiny_processor(self) -> Any:
        """A processor with the tiny tokenizer."""
        from phi3v_train.models.phi3v.tiny import tiny_processor

        return tiny_processor()

    def layer_classes(self, model: Any) -> tuple[type, ...]:
        """Decoder and tower layers."""
        from phi3v_train.models.phi3v.decoder import Phi3VDecoderLayer
        from phi3v_train.models.phi3v.tower import TowerLayer

        return Phi3VDecoderLayer, TowerLayer

    def chat_template(self) -> str:
        """The template that writes what is encoded here."""
        from phi3v_train.models.phi3v.processing_phi3_v import default_chat_template

        return default_chat_template()

    def check_processor(self, processor: Any, model_name: str) -> None:
        """Refuse pixels that are normalised otherwise than the model does it on its device.

        Raises:
            UserError: `image_mean` or `image_std` is not CLIP's.
        """
        from phi3v_train.models.phi3v.tiles import CLIP_MEAN, CLIP_STD

        for name, known in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)):
            value = getattr(processor.image_processor, name)
            if tuple(value) != known:
                raise UserError(
                    f"{model_name}: preprocessor_config.json has {name} {value}, and only CLIP's {list(known)} is "
                    "supported; put that there if the model was trained with it"
                )

    def prepare(self, inputs: "Mapping[str, Tensor]") -> dict[str, Any]:
        """See `ModelFamily.prepare`: layout, image tokens and supervised tokens are `prepared`."""
        from phi3v_train.models.phi3v.prepared import prepare

        return prepare(inputs)

    def loss(
        self, model: Any, inputs: "Mapping[str, Any]", count: float, *, per_token: bool = False
    ) -> "tuple[Tensor, Tensor | None]":
        """See `ModelFamily.loss`; the port computes logits at supervised tokens only."""
        wanted: dict[str, Any] = {"return_token_losses": True} if per_token else {}
        output = model(**inputs, num_items_in_batch=count, return_logits=False, **wanted)
        return output.loss, output.token_losses.detach() if per_token else None

    def card_note(self, *, with_code: bool = False) -> list[str]:
        """The package that registers the port, or the code that takes its place."""
        if with_code:
            return [
                "The model's code is in `modeling_phi3_v.py`, which transformers runs with `trust_remote_code=True`; "
                "phi3v is not needed.",
                "",
            ]
        return [
            "The model needs the package phi3v: `import phi3v_train` registers its class with transformers. A "
            "directory written by `phi3v-train merge --with_code` does not: it loads with `trust_remote_code=True`.",
            "",
        ]

    def card_usage(self, model: str, budget: int | None, *, adapter: bool, with_code: bool = False) -> list[str]:
        """Python lines with the port, which transformers knows as a causal language model."""
        trust = ", trust_remote_code=True" if with_code else ""
        load = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
        prompt = self.tokens.chat.turn_prompt(TurnText("What is this?", num_images=1))
        return [
            *([] if with_code else ["import phi3v_train  # registers the model"]),
            "from PIL import Image",
            *(["from peft import AutoPeftModelForCausalLM"] if adapter else []),
            f"from transformers import {'' if adapter else 'AutoModelForCausalLM, '}AutoProcessor",
            "",
            f'processor = AutoProcessor.from_pretrained("{model}", num_crops={budget}{trust})',
            f'model = {load}.from_pretrained("{model}", dtype="auto"{trust})',
            f"prompt = {json.dumps(prompt)}",
            'inputs = processor(prompt, Image.open("image.jpg"))',
            "ids = model.generate(**inputs, max_new_tokens=64)",
            'print(processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])',
        ]


PHI3V = Phi3VFamily()
FAMILIES = (PHI3V,)
