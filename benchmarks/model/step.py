"""The full-size model's training step, for a device that is not there (`fake_step.py`) and one that is (a GPU)."""

from typing import Any

import torch
from inputs import NUM_ANSWER_TOKENS, build, long_context

from phi3v_data.tokens.phi3v_geometry import TILE_SIZE
from phi3v_train.build import enable_checkpointing
from phi3v_train.config import MethodConfig
from phi3v_train.models.labelled import Labelled
from phi3v_train.models.phi3v.configuration_phi3_v import Phi3VConfig
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.models.phi3v.packing import plan_layout
from phi3v_train.models.phi3v.prepared import ImagePlaces, Prepared
from phi3v_train.models.phi3v.tiny.model import Sizes, config_by_sizes
from phi3v_train.models.phi3v.vision import gather_index
from phi3v_train.precision import Precision
from phi3v_train.training.memory import Memory, estimate
from phi3v_train.training.methods import TrainedModel, apply_method

TOKENS, SIDE, IMAGE_TOKENS = SAMPLE = 2443, 4, 2377
"""A sample as those of DocVQA: 4 x 4 tiles and the global view, and 2,377 of their tokens in a text of 2,443."""

SMALL_SAMPLE = 200, 1, 160
"""The same of a small one, for tests."""

METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, vision frozen": {"freeze_vision_model": True},
    "LoRA rank 32": {"use_lora": True, "lora_rank": 32},
    "QLoRA rank 32": {"use_qlora": True, "lora_rank": 32},
}


def small_config() -> Phi3VConfig:
    """A twentieth of the full size in each direction, for tests; sizes that the flash kernel takes."""
    return config_by_sizes(
        Sizes(width=256, inner=640, layers=4, heads=4),
        Sizes(width=128, inner=512, layers=4, heads=2),
        vocab_size=32064,
        **long_context(32),
    )


def host_batch(tokens: int, side: int, image_tokens: int) -> dict[str, Any]:
    """A prepared batch of one sample on the CPU, as the loader gives it: an image of side x side tiles, then text."""
    pixels = side * TILE_SIZE
    layout = plan_layout(1, tokens, torch.device("cpu"))
    index = gather_index([(pixels, pixels)], [0])[:image_tokens]
    places = ImagePlaces(torch.arange(image_tokens), index, torch.tensor([[pixels, pixels]]))
    answer = torch.arange(tokens - NUM_ANSWER_TOKENS - 1, tokens - 1)
    labelled = Labelled(answer, torch.full_like(answer, 7), (1, tokens))
    return {
        "input_ids": torch.cat((torch.full((image_tokens,), -1), torch.full((tokens - image_tokens,), 7)))[None],
        "canvases": torch.zeros(pixels * pixels * 3, dtype=torch.uint8),
        "prepared": Prepared(layout, places, labelled),
    }


def trained_model(
    config: Phi3VConfig,
    method: MethodConfig,
    precision: Precision,
    device: torch.device,
    *,
    checkpointing: bool,
    built_on: str,
) -> TrainedModel:
    """A model with random weights, made on one device and readied for its method on another, as a run does it."""
    trained = apply_method(build(config, built_on, precision.dtype), method, precision, seed=0, device=device)
    if checkpointing:
        enable_checkpointing(trained.model)
    return trained


def planned(config: Phi3VConfig, method: MethodConfig, sample: tuple[int, int, int], *, checkpointing: bool) -> Memory:
    """The memory that `phi3v-train plan` computes for a step on such a sample in bf16."""
    tokens, side, _ = sample
    return estimate(
        PHI3V.size(config.to_dict()),
        method,
        dtype="bf16",
        tokens=tokens,
        tiles=side * side + 1,
        labels=NUM_ANSWER_TOKENS,
        checkpointing=checkpointing,
    )
