"""Models and batches of the benchmark: random weights, random pixels, the shapes of real images."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from phi3v_data.tokens.phi3v_geometry import crop_geometry
from phi3v_train.models.phi3v.configuration_phi3_v import Phi3VConfig
from phi3v_train.models.phi3v.modeling_phi3_v import Phi3VForConditionalGeneration
from phi3v_train.models.phi3v.tiny.model import Sizes, config_by_sizes

PAD = 12000
"""Padding of the small model; random text has smaller ids."""

NUM_PROMPT_TOKENS, NUM_ANSWER_TOKENS = 24, 12

IMAGES: dict[str, tuple[int, tuple[int, int], int]] = {
    "A4 page, 16 crops": (1, (1654, 2339), 16),
    "2:1 image, 4 crops": (1, (800, 400), 4),
    "letter page, 16 crops": (1, (1700, 2200), 16),
    "8 frames 320x240, 4 crops": (8, (320, 240), 4),
    "square, 16 crops": (1, (1000, 1000), 16),
}
"""Name -> how many images, (width, height), tile budget."""


@dataclass(frozen=True)
class Batch:
    """Inputs of one step, and what it holds."""

    inputs: dict[str, Tensor]
    num_tokens: int
    num_tiles: int


def small_config() -> Phi3VConfig:
    """A few layers of each part, the tower the larger: what a saving is worth depends on such shares."""
    return config_by_sizes(
        Sizes(width=128, inner=384, layers=4, heads=4),
        Sizes(width=96, inner=384, layers=5, heads=4),
        vocab_size=12288,
        **(long_context(16) | {"pad_token_id": PAD}),
    )


def full_config() -> Phi3VConfig:
    """Phi-3.5-vision's sizes."""
    return Phi3VConfig(**long_context(48))


def long_context(half_head: int) -> dict[str, Any]:
    """Context settings of Phi-3.5-vision, with plain factors."""
    factors = [1.0 + index / half_head for index in range(half_head)]
    return {
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "su", "short_factor": factors, "long_factor": [4 * factor for factor in factors]},
        "pad_token_id": 32000,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def build(config: Phi3VConfig, device: str, dtype: torch.dtype) -> Phi3VForConditionalGeneration:
    """Random weights on the device, in training mode."""
    torch.manual_seed(0)
    with torch.device(device):
        model: Phi3VForConditionalGeneration = Phi3VForConditionalGeneration._from_config(
            config, attn_implementation="sdpa", dtype=dtype
        )
    model.train()
    return model


def image_batch(name: str, device: str, dtype: torch.dtype) -> Batch:
    """One sample about the images called `name`."""
    count, (width, height), num_crops = IMAGES[name]
    geometry = crop_geometry(width, height, num_crops)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.zeros(count, num_crops + 1, 3, 336, 336)
    pixels[:, : geometry.num_tiles] = torch.randn(count, geometry.num_tiles, 3, 336, 336, generator=generator)
    runs = [torch.full((geometry.num_tokens,), -1 - index) for index in range(count)]
    text = torch.randint(3, PAD, (NUM_PROMPT_TOKENS + NUM_ANSWER_TOKENS,), generator=generator)
    ids = torch.cat([*runs, text])[None]
    labels = torch.full_like(ids, -100)
    labels[:, -NUM_ANSWER_TOKENS:] = ids[:, -NUM_ANSWER_TOKENS:]
    inputs = {"input_ids": ids, "labels": labels, "image_sizes": torch.tensor([geometry.image_size] * count)}
    inputs = {key: value.to(device) for key, value in inputs.items()}
    inputs["pixel_values"] = pixels.to(device, dtype)
    return Batch(inputs, ids.shape[1], geometry.num_tiles * count)


def text_samples(lengths: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Ids and labels of text samples; the last tokens of each are labelled."""
    generator = torch.Generator().manual_seed(2)
    samples = []
    for length in lengths:
        ids = torch.randint(3, PAD, (length,), generator=generator)
        labels = torch.full_like(ids, -100)
        labels[-NUM_ANSWER_TOKENS:] = ids[-NUM_ANSWER_TOKENS:]
        samples.append((ids, labels))
    return samples


def right_padded(samples: list[tuple[Tensor, Tensor]], device: str) -> Batch:
    """Rows as wide as the longest."""
    width = max(len(ids) for ids, _ in samples)
    shape = (len(samples), width)
    inputs = {
        "input_ids": torch.full(shape, PAD),
        "labels": torch.full(shape, -100),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
    }
    for row, (ids, labels) in enumerate(samples):
        inputs["input_ids"][row, : len(ids)] = ids
        inputs["labels"][row, : len(ids)] = labels
        inputs["attention_mask"][row, : len(ids)] = 1
    return Batch({key: value.to(device) for key, value in inputs.items()}, sum(len(ids) for ids, _ in samples), 0)


def packed(samples: list[tuple[Tensor, Tensor]], device: str) -> Batch:
    """All in one row."""
    inputs = {
        "input_ids": torch.cat([ids for ids, _ in samples])[None],
        "labels": torch.cat([labels for _, labels in samples])[None],
        "position_ids": torch.cat([torch.arange(len(ids)) for ids, _ in samples])[None],
    }
    return Batch({key: value.to(device) for key, value in inputs.items()}, inputs["input_ids"].shape[1], 0)
