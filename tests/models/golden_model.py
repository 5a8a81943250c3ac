"""The tiny random model of the golden fixtures, and their cases as model inputs."""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from golden_files import GOLDEN, golden_image, golden_json
from safetensors.torch import load_file
from torch import Tensor

from phi3v_train.models.phi3v import Phi3VConfig, Phi3VForConditionalGeneration, Phi3VImageProcessor

SMALL_CASES = ("text_only", "text_system", "square_nc4", "wide_nc4", "multiturn_two_images_nc4", "square_nc16")
TOWER_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "patch_size",
    "image_size",
    "hidden_act",
    "layer_norm_eps",
)


@dataclass(frozen=True)
class Case:
    """One golden case: `inputs` for the model, tensors and figures of Microsoft's code."""

    inputs: dict[str, Tensor]
    labels: Tensor | None
    tensors: dict[str, Tensor]
    figures: dict[str, Any]

    @property
    def length(self) -> int:
        return self.inputs["input_ids"].shape[1]


@cache
def golden_case(name: str) -> Case:
    """A case by name; its images go through our own processor."""
    tensors = load_file(GOLDEN / "cases" / f"{name}.safetensors")
    figures = golden_json("cases/index.json")[name]
    inputs = {"input_ids": tensors["input_ids"][None]}
    if figures["images"]:
        processor = Phi3VImageProcessor(num_crops=figures["num_crops"])
        images = processor.preprocess([golden_image(image) for image in figures["images"]])
        inputs |= {"pixel_values": images["pixel_values"], "image_sizes": images["image_sizes"]}
    labels = tensors["labels"][None] if "labels" in tensors else None
    return Case(inputs, labels, tensors, figures)


def golden_config(**overrides: Any) -> Phi3VConfig:
    """The golden config.json, with the sizes of the tiny tower that Microsoft's code had patched in."""
    settings = json.loads((GOLDEN / "checkpoint" / "config.json").read_text(encoding="utf-8"))
    tower = golden_json("checkpoint/vision_config.json")["tiny_clip_config"]
    settings["img_processor"]["vision_config"] = {key: tower[key] for key in TOWER_KEYS}
    return Phi3VConfig(**(settings | overrides))


def golden_model(attention: str = "sdpa", **overrides: Any) -> Phi3VForConditionalGeneration:
    """The golden checkpoint in fp32 (or `dtype`), in evaluation mode, without stop ids."""
    dtype = overrides.pop("dtype", torch.float32)
    model = Phi3VForConditionalGeneration.from_pretrained(
        GOLDEN / "checkpoint", config=golden_config(**overrides), attn_implementation=attention, dtype=dtype
    )
    model.generation_config.eos_token_id = None
    return model


def distance(left: Tensor, right: Tensor) -> float:
    """Largest absolute difference."""
    return (left - right).abs().max().item()
