"""How the devices of a run share the work: the only module that knows torch.distributed.

A strategy wraps the module that computes the loss, says when gradients are exchanged, and gathers what is saved. The
loop knows nothing else, so a new kind of sharding is one class here.

Losses arrive divided by the supervised tokens of the *global* batch, so gradients are to be summed over processes.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from phi3v_data.errors import UserError

MEETING = timedelta(minutes=5)
"""How long processes wait for each other at the start."""

TIMEOUT = timedelta(minutes=30)
"""How long a collective call waits; a rank that died is noticed at once, this is for one that is merely slow."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which process this is."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> "Place":
        """As torchrun and our own launcher say it."""
        read = os.environ.get
        return cls(int(read("RANK", "0")), int(read("LOCAL_RANK", "0")), int(read("WORLD_SIZE", "1")))

    @property
    def is_main(self) -> bool:
        """Whether this process speaks and writes."""
        return self.rank == 0


class Strategy(ABC):
    """The interface; also complete for one process."""

    name = "single"
    store: Store | None = None
    """Where the processes leave word for each other."""

    def __init__(self, place: Place, device: torch.device) -> None:
        self.place = place
        self.device = device

    @abstractmethod
    def wrap(self, module: nn.Module) -> nn.Module:
        """Make `module`, already on the device, part of the run; checks that it really is."""

    @abstractmethod
    def accumulating(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Around every micro-batch of a step but the last: gradients stay here."""

    @abstractmethod
    def backward_scale(self) -> float:
        """Factor on the loss that makes the exchanged gradients a sum over processes."""

    @abstractmethod
    def sum(self, values: Iterable[float]) -> list[float]:
        """Sum each value over the processes, in double precision."""

    @abstractmethod
    def share(self, value: Any) -> Any:
        """The main process's `value`, on all of them."""

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """Every process's `value` in the order of ranks, on all of them."""

    @abstractmethod
    def close(self) -> None:
        """Leave the group."""

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        """Norm of all gradients, which are scaled down to `max_norm` where it is greater than 0."""
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else float("inf"))


class SingleProcess(Strategy):
    """One process, one device."""

    def wrap(self, module: nn.Module) -> nn.Module:
        return module

    def accumulating(self, module: nn.Module) -> AbstractContextManager[Any]:
        return nullcontext()

    def backward_scale(self) -> float:
        return 1.0

    def sum(self, values: Iterable[float]) -> list[float]:
        return [float(value) for value in values]

    def share(self, value: Any) -> Any:
        return value

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def close(self) -> None:
        pass


class DataParallel(Strategy):
    """A whole copy of the model in every process (torch's DistributedDataParallel)."""

    name = "ddp"

    def __init__(self, place: Place, device: torch.device) -> None:
        super().__init__(place, device)
        self.store = join_group(device)

    def wrap(self, module: nn.Module) -> nn.Module:
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(
            module,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )

    def accumulating(self, module: nn.Module) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = module.no_sync()  # type: ignore[operator]  # DDP's
        return context

    def backward_scale(self) -> float:
        return float(self.place.world_size)

    def sum(self, values: Iterable[float]) -> list[float]:
        totals = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        dist.all_reduce(totals)
        return [float(value) for value in totals.tolist()]

    def share(self, value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        boxes: list[Any] = [None] * self.place.world_size
        dist.all_gather_object(boxes, value)
        return boxes

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


def join_group(device: torch.device) -> Store:
    """Meet the other processes; returns the store that they share.

    Raises:
        UserError: the main process cannot be reached; its address and port are named.
    """
    address = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    on_gpu = device.type == "cuda"
    try:
        store, rank, world_size = next(rendezvous("env://", timeout=MEETING))
        store.set_timeout(TIMEOUT)
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=TIMEOUT,
            device_id=device if on_gpu else None,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"rank {os.environ.get('RANK')} cannot meet the other processes at {address} ({reason}); check "
            "--master_addr, --master_port and the firewall between the machines"
        ) from error
    shared: Store = store
    return shared


def check_parallel(parallel: str) -> None:
    """Refuse a kind of sharing that this version does not have; never another one in its place.

    Raises:
        UserError: which, and what there is.
    """
    if parallel not in ("auto", "ddp"):
        raise UserError(f"--parallel {parallel} is not available in this version: use --parallel ddp")


def make_strategy(parallel: str, place: Place, device: torch.device) -> Strategy:
    """The strategy that `--parallel` names."""
    check_parallel(parallel)
    return SingleProcess(place, device) if place.world_size == 1 else DataParallel(place, device)
