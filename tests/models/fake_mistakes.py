"""Training steps of a small model on the fake device, one as it is, others with a mistake; their outcomes as JSON.

A process of its own: a device stays registered with torch, and some mistakes would end the process.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "model"))

import fake_step
from fake_step import NAME, fake_engine, register_device, run_step
from step import METHODS, host_batch, small_config

from phi3v_train.config import MethodConfig
from phi3v_train.models.phi3v import backbone
from phi3v_train.precision import Precision


def linear_on_host(engine: Any) -> None:
    """A linear layer of which the weight was left on the CPU."""
    layer = engine.trained.model.model.layers[1].mlp.down_proj
    layer.weight = torch.nn.Parameter(torch.empty(layer.weight.shape, dtype=layer.weight.dtype))


def index_on_host(engine: Any) -> None:
    """Image tokens are put in place with an index that was left on the CPU."""
    embed = engine.trained.model.model._embed

    def wrong(ids: Any, places: Any, images: Any) -> Any:
        return embed(ids, replace(places, positions=torch.arange(len(places.positions))), images)

    backbone.constant_on = lambda tensor, device: tensor
    engine.trained.model.model._embed = wrong


def advanced_index_on_host(engine: Any) -> None:
    """A tensor indexed with one of the CPU: torch takes it, and waits for its copy."""
    norm = engine.trained.model.model.norm
    norm.register_forward_hook(lambda module, given, output: output[:, torch.arange(output.shape[1])])


def product_in_fp32(engine: Any) -> None:
    """A linear layer outside of autocast."""
    layer = engine.trained.model.model.layers[1].mlp.down_proj
    forward = layer.forward

    def wide(hidden: Any) -> Any:
        with torch.autocast(NAME, enabled=False):
            return torch.nn.functional.linear(hidden.float(), layer.weight)

    layer.forward = wide
    assert forward is not layer.forward


MISTAKES: dict[str, Callable[[Any], None]] = {
    "none": lambda engine: None,
    "linear": linear_on_host,
    "advanced index": advanced_index_on_host,
    "fp32": product_in_fp32,
    "index": index_on_host,
}


def main() -> None:
    """One JSON object: mistake -> the error, or the dtypes of matrix products."""
    device = register_device()
    outcomes: dict[str, Any] = {}
    for name, make in MISTAKES.items():
        batch = host_batch(200, 1, 160)
        method = MethodConfig.model_validate(METHODS["full"])
        with fake_engine(device, small_config(), method, Precision("bf16", NAME), checkpointing=False) as made:
            engine, watch, mode = made
            for parameter in engine.parameters:  # before the mistake: the optimizer's state
                parameter.grad = torch.zeros_like(parameter)
            make(engine)
            try:
                outcomes[name] = sorted(run_step(engine, watch, mode, batch)["products"])
            except (RuntimeError, AssertionError) as error:
                outcomes[name] = f"{type(error).__name__}: {str(error)[:200]}"
    cases = [
        fake_step.case(device, small_config(), name, checkpointing=checkpointing, small=True)
        for name in ("full", "LoRA rank 32")
        for checkpointing in (True, False)
    ]
    print(json.dumps({"outcomes": outcomes, "cases": cases}))


if __name__ == "__main__":
    main()
