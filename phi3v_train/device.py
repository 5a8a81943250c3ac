"""Copies to the device; its memory, and whether that ran out."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from phi3v_data.errors import UserError


def to_device(inputs: Mapping[str, Any], device: torch.device, host_inputs: Collection[str] = ()) -> dict[str, Any]:
    """The tensors of a micro-batch on `device`; those named in `host_inputs` stay where they are."""
    return change_tensors(inputs, lambda tensor: copied(tensor, device), host_inputs)


def copied(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; from memory that is pinned, which only CUDA has, without waiting for the copy."""
    return tensor.to(device, non_blocking=device.type == "cuda")


SYNC_DEBUG = "PHI3V_SYNC_DEBUG"
"""Environment variable for tests on a GPU: `error` or `warn` where a training step waits for the device."""


@contextmanager
def watch_syncs(device: torch.device) -> Iterator[None]:
    """Let torch raise, or warn, where the host waits for a CUDA device, if the environment asks for it.

    Raises:
        UserError: the environment asks for something else.
    """
    mode = os.environ.get(SYNC_DEBUG, "")
    if mode not in ("", "error", "warn"):
        raise UserError(f"{SYNC_DEBUG}={mode!r}: expected error or warn; unset it for an ordinary run")
    if not mode or device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def change_tensors(
    inputs: Mapping[str, Any], change: Callable[[Tensor], Tensor], but: Collection[str] = ()
) -> dict[str, Any]:
    """Inputs with every tensor changed, also those of objects that have a method `map`; plain values stay."""

    def changed(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        return value.map(change) if hasattr(value, "map") else value

    return {name: value if name in but else changed(value) for name, value in inputs.items()}


def constant_on(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device, copied without waiting for it."""
    if tensor.device == device:
        return tensor
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def divisor(count: Tensor | float, device: torch.device) -> Tensor:
    """A number as a tensor on a device; a Python number is written there by a kernel, not copied."""
    return count.to(device) if isinstance(count, Tensor) else torch.full((), count, device=device)


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
