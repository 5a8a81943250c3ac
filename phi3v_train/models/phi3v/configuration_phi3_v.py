"""Configuration of Phi-3-vision and Phi-3.5-vision: that of Phi-3, with the two image blocks of the official files.

In memory the rope settings have transformers' form (`rope_parameters`); on disk they keep the official one
(`rope_scaling` with type `su`, and `rope_theta`), because the official code and other engines read only that one.
"""

import copy
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.models.phi3.configuration_phi3 import Phi3Config

ARCHITECTURE = "Phi3VForCausalLM"
"""Name of the architecture in every config.json, as in the official files."""

OFFICIAL_VISION_CONFIG: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 336,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""CLIP ViT-L/14-336. It is hard-coded in the official code and not in any official config.json."""

OFFICIAL_IMG_PROCESSOR: dict[str, Any] = {
    "name": "clip_vision_model",
    "model_name": "openai/clip-vit-large-patch14-336",
    "image_dim_out": 1024,
    "num_img_tokens": 144,
}

OFFICIAL_EMBD_LAYER: dict[str, Any] = {
    "embedding_cls": "image",
    "hd_transform_order": "sub_glb",
    "projection_cls": "mlp",
    "use_hd_transform": True,
    "with_learnable_separator": True,
}

DROPPED_ON_SAVE = ("rope_parameters", "auto_map", "_attn_implementation")


@strict
class Phi3VConfig(Phi3Config):  # type: ignore[misc]  # transformers is untyped for mypy
    """Phi-3's fields, plus `embd_layer` and `img_processor` as in the official config.json.

    `img_processor` may have an additional key, `vision_config`: sizes of another CLIP tower (hidden_size,
    intermediate_size, num_hidden_layers, num_attention_heads, patch_size, image_size, hidden_act, layer_norm_eps).
    Without it the tower is CLIP ViT-L/14-336.
    """

    model_type = "phi3_v"

    embd_layer: Any = None
    img_processor: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        # The official file requests flash attention, which depends on the machine and not on the weights.
        kwargs.pop("_attn_implementation", None)
        kwargs.pop("auto_map", None)
        embd_layer = self.embd_layer if isinstance(self.embd_layer, dict) else {}
        self.embd_layer = OFFICIAL_EMBD_LAYER | embd_layer
        self.img_processor = OFFICIAL_IMG_PROCESSOR | copy.deepcopy(self.img_processor or {})
        super().__post_init__(**kwargs)
        self._check()

    def convert_rope_params_to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """As Phi-3's, on copies: it writes into the dictionary it is given."""
        if kwargs.get("rope_scaling") is not None:
            kwargs["rope_scaling"] = copy.deepcopy(kwargs["rope_scaling"])
        self.rope_parameters: Any = copy.deepcopy(self.rope_parameters)
        remaining: dict[str, Any] = super().convert_rope_params_to_dict(**kwargs)
        if self.rope_parameters.get("rope_type") == "longrope":
            original, longest = self.original_max_position_embeddings, self.max_position_embeddings
            self.rope_parameters["original_max_position_embeddings"] = original
            self.rope_parameters["factor"] = max(1.0, longest / original)
        return remaining

    @property
    def layer_types(self) -> list[str]:
        """All layers use full causal attention: the sliding window of the official files is never shorter."""
        return ["full_attention"] * self.num_hidden_layers

    @property
    def vision_settings(self) -> dict[str, Any]:
        """Sizes of the vision tower: the official ones, overridden by `img_processor["vision_config"]`."""
        return OFFICIAL_VISION_CONFIG | dict(self.img_processor.get("vision_config") or {})

    @property
    def num_vision_layers_used(self) -> int:
        """Tower layers that the features pass: `layer_idx` counts hidden states, of which the first is the input."""
        total = int(self.vision_settings["num_hidden_layers"])
        layer_idx = int(self.img_processor.get("layer_idx", -2))
        return total + 1 + layer_idx if layer_idx < 0 else layer_idx

    def _check(self) -> None:
        """Raise ValueError for settings that the official code would compute differently."""
        if self.img_processor.get("type_feature", "patch") != "patch":
            raise ValueError("img_processor.type_feature must be 'patch': no released model uses another")
        used, total = self.num_vision_layers_used, self.vision_settings["num_hidden_layers"]
        if not 0 <= used <= total:
            raise ValueError(f"img_processor.layer_idx points outside the tower's {total} layers")
        expected = {key: OFFICIAL_EMBD_LAYER[key] for key in ("hd_transform_order", "projection_cls")}
        for key, value in expected.items():
            if self.embd_layer[key] != value:
                raise ValueError(f"embd_layer.{key} must be {value!r}: no released model uses {self.embd_layer[key]!r}")
        if self.sliding_window is not None and self.sliding_window < self.max_position_embeddings:
            raise ValueError(
                f"sliding_window ({self.sliding_window}) is shorter than max_position_embeddings "
                f"({self.max_position_embeddings}): windowed attention is not part of this model"
            )

    def to_dict(self) -> dict[str, Any]:
        """The official layout: `rope_scaling` and `rope_theta` instead of `rope_parameters`, no code references."""
        output: dict[str, Any] = super().to_dict()
        rope = output.get("rope_parameters") or {}
        for key in DROPPED_ON_SAVE:
            output.pop(key, None)
        output["rope_theta"] = rope.get("rope_theta", 10000.0)
        output["rope_scaling"] = None
        if rope.get("long_factor") is not None:
            output["rope_scaling"] = {
                "type": rope_kind(rope),
                "short_factor": list(rope["short_factor"]),
                "long_factor": list(rope["long_factor"]),
            }
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            output["partial_rotary_factor"] = rope["partial_rotary_factor"]
        output["architectures"] = [ARCHITECTURE]
        return output

    def to_diff_dict(self) -> dict[str, Any]:
        """Content of config.json: the dtype also under its name in transformers 4, which others read."""
        output: dict[str, Any] = super().to_diff_dict()
        if output.get("dtype") is not None:
            output["torch_dtype"] = output["dtype"]
        return output


def rope_kind(rope_parameters: dict[str, Any]) -> str:
    """`su` or `yarn`, the official names; they differ in the scale of cos and sin only."""
    return "yarn" if rope_parameters.get("type") == "yarn" else "su"
