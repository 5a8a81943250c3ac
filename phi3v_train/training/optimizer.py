"""AdamW with a group for each learning rate, and the learning rate as a pure function of the step."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from phi3v_train.config import OptimConfig
from phi3v_train.models.family import ModelFamily
from phi3v_train.training.eight_bit import make_adamw_8bit


def decays(name: str, parameter: nn.Parameter, family: ModelFamily) -> bool:
    """Whether weight decay applies: not to biases, norms and other vectors, as usual."""
    return parameter.dim() > 1 and not name.endswith(family.no_decay)


def make_optimizer(
    named: Iterable[tuple[str, nn.Parameter]], config: OptimConfig, family: ModelFamily
) -> torch.optim.Optimizer:
    """The AdamW of `--optim` over the trainable parameters; each group carries `part` and its highest rate, `peak`."""
    peaks = {
        "language": config.learning_rate,
        "vision": config.vision_learning_rate or config.learning_rate,
        "projector": config.projector_learning_rate or config.learning_rate,
    }
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    fused = False
    for name, parameter in named:
        groups.setdefault((family.part_of(name), decays(name, parameter, family)), []).append(parameter)
        fused = fused or parameter.is_cuda
    param_groups = [
        {
            "params": parameters,
            "part": part,
            "peak": peaks[part],
            "lr": peaks[part],
            "weight_decay": config.wd if decayed else 0.0,
        }
        for (part, decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    if config.is_8bit:
        return make_adamw_8bit(param_groups, config)
    return torch.optim.AdamW(
        param_groups, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_epsilon, fused=fused or None
    )


def rate_factor(step: int, total: int, config: OptimConfig) -> float:
    """Share of the highest learning rate at the update after `step` updates, as transformers' schedules have it.

    It rises linearly over `warmup_steps` from 0, then falls to 0 at `total` in a line or half a cosine, or stays.
    """
    if step < config.warmup_steps:
        return step / config.warmup_steps
    if config.lr_scheduler == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    if config.lr_scheduler == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    return max(0.0, 1.0 - progress)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Give every group its rate for the next update; returns the highest of them."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return max(float(group["lr"]) for group in optimizer.param_groups)
