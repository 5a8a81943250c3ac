"""Moves of a micro-batch to the device; its memory, and whether that ran out."""

import os
from collections.abc import Collection, Mapping

import torch
from torch import Tensor


def to_device(
    inputs: Mapping[str, Tensor], device: torch.device, host_inputs: Collection[str] = ()
) -> dict[str, Tensor]:
    """The tensors of a micro-batch on `device`; those named in `host_inputs` stay where they are."""
    non_blocking = device.type == "cuda"  # from memory that is pinned, which only CUDA has
    return {
        name: tensor if name in host_inputs else tensor.to(device, non_blocking=non_blocking)
        for name, tensor in inputs.items()
    }


def with_fp64(tensor: Tensor) -> Tensor:
    """The tensor where fp64 exists: on the CPU if it is on an Apple GPU, which has none, else as it is."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a CUDA GPU or elsewhere, where torch reports it only in the message."""
    told = ("DefaultCPUAllocator", "MPS backend out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in told)


def memory_used(device: torch.device) -> int:
    """Highest memory of the CUDA GPU so far, or memory of the Apple GPU or of this process now, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
