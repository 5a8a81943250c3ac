"""Moves of a micro-batch to the device; its memory, and whether that ran out."""

import os
from collections.abc import Collection, Mapping

import torch
from torch import Tensor


def to_device(
    inputs: Mapping[str, Tensor], device: torch.device, host_inputs: Collection[str] = ()
) -> dict[str, Tensor]:
    """The tensors of a micro-batch on `device`; those named in `host_inputs` stay where they are."""
    return {
        name: tensor if name in host_inputs else tensor.to(device, non_blocking=True) for name, tensor in inputs.items()
    }


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or on a CPU, where torch reports it only in the message."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def memory_used(device: torch.device) -> int:
    """Highest memory of the GPU so far, or memory of this process now, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
