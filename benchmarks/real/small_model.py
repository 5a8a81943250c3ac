"""A small Phi-3-vision directory with random weights, to be trained from scratch on a CPU."""

from dataclasses import dataclass
from pathlib import Path

import torch

from phi3v_train.models.phi3v import Phi3VConfig, Phi3VForConditionalGeneration
from phi3v_train.models.phi3v.tiny import tiny_processor, tiny_tokenizer
from phi3v_train.models.phi3v.tiny.model import Sizes as PartSizes
from phi3v_train.models.phi3v.tiny.model import config_by_sizes, tiny_vocabulary

IMAGE_TOKENS = 313
"""Of a square image at `num_crops` 1: one tile and the global view, 12 x 12 tokens each, and separators."""


@dataclass(frozen=True)
class Sizes:
    """Widths and layers of decoder and vision tower; `tower_layers` counts those whose output is used."""

    width: int = 96
    layers: int = 2
    heads: int = 3
    tower_width: int = 64
    tower_layers: int = 1
    tower_heads: int = 4
    initializer_range: float = 0.05


@dataclass(frozen=True)
class Recipe:
    """How a small model is trained, by `phi3v-train run` or by a plain loop."""

    epochs: float
    batch_size: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float = 0.01

    def options(self) -> list[str]:
        """Options of `phi3v-train run` on a CPU."""
        values = {
            "num_train_epochs": str(self.epochs),
            "batch_size": str(self.batch_size),
            "batch_size_per_gpu": str(self.batch_size),
            "learning_rate": str(self.learning_rate),
            "warmup_steps": str(self.warmup_steps),
            "lr_scheduler": "cosine",
            "wd": str(self.weight_decay),
            "max_new_tokens": "4",
            "num_workers": "0",
            "logging_steps": "10",
            "save_minutes": "5",
            "report_to": "none",
            "device": "cpu",
        }
        words = [word for name, value in values.items() for word in (f"--{name}", value)]
        return [*words, "--no_gradient_checkpointing", "--no_eval_before", "--no_eval_after"]


def small_config(sizes: Sizes) -> Phi3VConfig:
    """The configuration: no rope factors, and the vocabulary of the tiny tokenizer."""
    return config_by_sizes(
        PartSizes(sizes.width, 2 * sizes.width, sizes.layers, sizes.heads),
        # the last layer of the tower is not used
        PartSizes(sizes.tower_width, 2 * sizes.tower_width, sizes.tower_layers + 1, sizes.tower_heads),
        max_position_embeddings=4096,
        original_max_position_embeddings=4096,
        initializer_range=sizes.initializer_range,
        rope_theta=10000.0,
        **tiny_vocabulary(),
    )


def save_small(out: Path, sizes: Sizes, seed: int) -> None:
    """Write the model, whose weights depend on `seed` alone, with the tiny tokenizer and one tile per image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Phi3VForConditionalGeneration(small_config(sizes))
    model.set_stop_ids(tiny_tokenizer())
    model.save_pretrained(out)
    tiny_processor(1).save_pretrained(out)
