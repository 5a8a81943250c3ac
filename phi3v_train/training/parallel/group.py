"""What the processes of a run say to each other, whatever the kind of sharing."""

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable
from datetime import timedelta
from threading import Timer
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # see Together.close
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from phi3v_data.errors import UserError
from phi3v_train.launch import HOSTED
from phi3v_train.training.parallel.place import Place

MEETING = timedelta(minutes=5)
"""How long a process tries each address of the main one; and, where rank 0 is what they meet at, it waits for them."""

NOTICE = timedelta(seconds=15)
"""After so long a process says that it waits."""

TIMEOUT = timedelta(minutes=30)
"""How long a collective call waits; one that died is noticed within a minute, this is for slow ones."""


class Group(ABC):
    """The processes of a run; every method but `close` is called by all of them together.

    `store` is where they leave word for each other; None for one process alone.
    """

    store: Store | None = None

    def __init__(self, place: Place, device: torch.device) -> None:
        self.place = place
        self.device = device

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

    def wait(self) -> None:
        """Go on when all processes are here."""
        self.gather(None)


class Alone(Group):
    """One process, one device."""

    def sum(self, values: Iterable[float]) -> list[float]:
        return [float(value) for value in values]

    def share(self, value: Any) -> Any:
        return value

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def close(self) -> None:
        pass


class Together(Group):
    """Processes that meet where MASTER_ADDR and MASTER_PORT say: NCCL between GPUs, gloo otherwise."""

    def __init__(self, place: Place, device: torch.device) -> None:
        super().__init__(place, device)
        self.store = join_group(device)

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
        """Leave the group and end its threads: one that lives on may abort the interpreter while it shuts down.

        `torch.distributed.nn.functional` takes the group that is there when it is first imported as the default of its
        arguments, for good; so this module imports it before there is any. DeepSpeed does the same.
        """
        if dist.is_initialized():
            dist.destroy_process_group()


def make_group(place: Place, device: torch.device) -> Group:
    """The processes that a launcher started, or this one alone.

    Raises:
        UserError: the main process cannot be reached.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return Alone(place, device) if place.world_size == 1 else Together(place, device)


def join_group(device: torch.device) -> Store:
    """Meet the other processes; returns the store that they share.

    Raises:
        UserError: the main process cannot be reached; its address and port are named.
    """
    address = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    on_gpu = device.type == "cuda"
    patience = Timer(NOTICE.total_seconds(), say_waiting, (address,))
    patience.daemon = True
    if os.environ.get("LOCAL_RANK") == "0":
        patience.start()
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
            f"rank {os.environ.get('RANK')} cannot meet the other processes at {address} ({reason}); see "
            "what machine 0 prints, which may still check the data or have refused them, and check --master_addr, "
            "--master_port and the firewall between the machines"
        ) from error
    finally:
        patience.cancel()
    shared: Store = store
    return shared


def say_waiting(address: str) -> None:
    """Say why nothing happens; once a machine."""
    minutes = (TIMEOUT if os.environ.get(HOSTED) == str(True) else MEETING).total_seconds() / 60
    print(f"waiting for the other processes at {address}, at most {minutes:.0f} minutes", file=sys.stderr, flush=True)
