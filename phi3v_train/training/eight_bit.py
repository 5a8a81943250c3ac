"""bitsandbytes' AdamW, whose moments are in 8 bits: whether it runs here, how it is made and restored.

Each moment is one byte per element and one fp32 scale per block of 256 elements; tensors of fewer than 4,096 elements
keep fp32 moments (bitsandbytes' `min_8bit_size`). Paged moments are in memory that CUDA moves to the CPU when the GPU
is full and back when a step needs them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from phi3v_data.errors import UserError
from phi3v_train.config import OptimConfig, OptimName
from phi3v_train.models.loading import quieten_libraries

MIN_8BIT_SIZE = 4096
"""Elements of the smallest tensor whose moments are in 8 bits."""


def refuse_device(optim: OptimName, device: str) -> None:
    """Refuse an optimizer that cannot run on `device`, "cpu" or "cuda", before a model is loaded.

    Raises:
        UserError: paged moments without a GPU, or a bitsandbytes whose AdamW needs one.
    """
    if device != "cpu" or optim == "adamw":
        return
    if optim == "paged_adamw_8bit":
        raise UserError("--optim paged_adamw_8bit pages from a GPU, and this run is on a CPU: use --optim adamw_8bit")
    if not runs_on_cpu():
        from importlib.metadata import version

        raise UserError(
            f"--optim {optim}: bitsandbytes {version('bitsandbytes')} cannot run it on a CPU: use bitsandbytes 0.50 or "
            "later, or --optim adamw"
        )


def runs_on_cpu() -> bool:
    """Whether the installed bitsandbytes can take a step of 8-bit AdamW on the CPU; one small step is tried."""
    quieten_libraries()
    parameter = nn.Parameter(torch.zeros(MIN_8BIT_SIZE))
    parameter.grad = torch.zeros_like(parameter)
    try:
        make_adamw_8bit([{"params": [parameter]}], OptimConfig(optim="adamw_8bit")).step()
    except (RuntimeError, AssertionError, AttributeError):  # what versions without CPU kernels raise
        return False
    return True


def make_adamw_8bit(groups: Sequence[Mapping[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    """bitsandbytes' AdamW over parameter groups, paged if `config` says so."""
    import bitsandbytes as bnb

    make = bnb.optim.PagedAdamW8bit if config.optim == "paged_adamw_8bit" else bnb.optim.AdamW8bit
    optimizer: torch.optim.Optimizer = make(
        list(groups),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        min_8bit_size=MIN_8BIT_SIZE,
    )
    return optimizer


@torch.no_grad()
def restore_8bit(optimizer: Any, saved: Mapping[nn.Parameter, Mapping[str, Any]]) -> None:
    """Copy saved states into buffers that bitsandbytes itself makes, so that paged moments are paged again.

    Args:
        optimizer: one of bitsandbytes'.
        saved: its state by parameter: 8-bit or fp32 moments, scales, quantization maps and the step.

    Raises:
        UserError: the installed bitsandbytes keeps other tensors, or tensors of other shapes.
    """
    for group_number, group in enumerate(optimizer.param_groups):
        for number, parameter in enumerate(group["params"]):
            if parameter not in saved:
                continue
            optimizer.init_state(group, parameter, group_number, number)
            if parameter.is_cuda:
                torch.cuda.synchronize(parameter.device)  # paged buffers are filled there and written to from here
            held, values = optimizer.state[parameter], saved[parameter]
            if layout(held) != layout(values):
                raise UserError(
                    f"the checkpoint's 8-bit moments are {layout(values)}, and the installed bitsandbytes keeps "
                    f"{layout(held)}: install the version that environment.json names"
                )
            for key, value in values.items():
                if isinstance(value, Tensor):
                    held[key].copy_(value)
                else:
                    held[key] = value


def layout(state: Mapping[str, Any]) -> str:
    """Names, number formats and shapes of a parameter's state, such as `state1 uint8 64x128`."""
    return ", ".join(
        f"{key} {str(value.dtype).removeprefix('torch.')} {'x'.join(map(str, value.shape))}"
        for key, value in sorted(state.items())
        if isinstance(value, Tensor)
    )
