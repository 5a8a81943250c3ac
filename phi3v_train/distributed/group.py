"""Collective calls between the processes of a run, whatever the parallel strategy."""

import os
import socket
import struct
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from datetime import timedelta
from threading import Timer
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # see DistributedGroup.close
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from phi3v_data.errors import UserError
from phi3v_train.distributed.agreement import Facts, agree
from phi3v_train.distributed.rank_info import RankInfo, master
from phi3v_train.launch import HOSTED

MEETING = timedelta(minutes=5)
"""How long a process tries each address of the main one; and, where rank 0 is what they meet at, it waits for them."""

SIOCGIFADDR = 0x8915
"""Linux: the address of a network interface."""

NOTICE = timedelta(seconds=15)
"""Time after which a process prints that it waits."""

TIMEOUT = timedelta(minutes=30)
"""How long a collective call on gradients or weights waits for a slow process; a lost one is noticed at once."""

PATIENCE = timedelta(days=7)
"""How long processes wait for one that saves, evaluates or reads files."""


class Group(ABC):
    """The processes of a run; every method but `close` is called by all of them together.

    `store` holds counters and messages that all of them read; None for a single process.
    """

    store: Store | None = None

    def __init__(self, rank_info: RankInfo, device: torch.device) -> None:
        self.rank_info = rank_info
        self.device = device

    @property
    def rank(self) -> int:
        """Number of this process among all."""
        return self.rank_info.rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.rank_info.world_size

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank_info.is_main

    @abstractmethod
    def sum(self, values: Iterable[float]) -> list[float]:
        """Sum each value over the processes, in double precision."""

    @abstractmethod
    def broadcast(self, value: Any) -> Any:
        """The main process's `value`, on all of them."""

    @abstractmethod
    def all_gather(self, value: Any) -> list[Any]:
        """Every process's `value` in the order of ranks, on all of them."""

    @abstractmethod
    def gather_to_main(self, value: Any) -> list[Any]:
        """Every process's `value` in the order of ranks, on the main process; an empty list on the others."""

    @abstractmethod
    def close(self) -> None:
        """Leave the group."""

    @abstractmethod
    def abort(self) -> None:
        """Leave the group after an error: collective calls that are under way fail, here and in the other processes."""

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, error: type[BaseException] | None, *details: object) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    def barrier(self) -> None:
        """Return when all processes have called it."""
        self.all_gather(None)


class SingleProcess(Group):
    """One process, one device."""

    def __init__(self, device: torch.device = torch.device("cpu")) -> None:  # noqa: B008  # immutable
        super().__init__(RankInfo(), device)

    def sum(self, values: Iterable[float]) -> list[float]:
        return [float(value) for value in values]

    def broadcast(self, value: Any) -> Any:
        return value

    def all_gather(self, value: Any) -> list[Any]:
        return [value]

    def gather_to_main(self, value: Any) -> list[Any]:
        return [value]

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


class DistributedGroup(Group):
    """Processes that meet where MASTER_ADDR and MASTER_PORT say: NCCL between GPUs, gloo otherwise.

    Gradients and weights are exchanged in the default process group. Everything else goes over a gloo group of its own,
    which waits for a process that saves 50 GB or evaluates for hours.
    """

    def __init__(self, rank_info: RankInfo, device: torch.device, facts: Facts) -> None:
        super().__init__(rank_info, device)
        self.store = join_group(rank_info, device, facts)
        self.control: dist.ProcessGroup | None = dist.new_group(backend="gloo", timeout=PATIENCE)

    def sum(self, values: Iterable[float]) -> list[float]:
        totals = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(totals, group=self.control)
        return [float(value) for value in totals.tolist()]

    def broadcast(self, value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def all_gather(self, value: Any) -> list[Any]:
        boxes: list[Any] = [None] * self.world_size
        dist.all_gather_object(boxes, value, group=self.control)
        return boxes

    def gather_to_main(self, value: Any) -> list[Any]:
        boxes: list[Any] | None = [None] * self.world_size if self.is_main else None
        dist.gather_object(value, boxes, dst=0, group=self.control)
        return boxes or []

    def close(self) -> None:
        """Leave the group and end its threads: one that lives on may abort the interpreter while it shuts down.

        `torch.distributed.nn.functional` takes the group that is there when it is first imported as the default of its
        arguments, for good; so this module imports it before there is any. DeepSpeed does the same.
        """
        self.control = None
        if dist.is_initialized():
            dist.destroy_process_group()

    def abort(self) -> None:
        """Leave without waiting for collective calls that the others may never join, as `close` would."""
        self.control = None
        if dist.is_initialized():
            dist.distributed_c10d._abort_process_group()


def make_group(rank_info: RankInfo, device: torch.device, facts: Callable[[], Facts] = dict) -> Group:
    """The processes that a launcher started, or this one alone; a context that is left by `close` or, after an error,
    by `abort`.

    Args:
        rank_info: which process this is.
        device: where it computes.
        facts: returns what all processes must agree on; called if there are several.

    Raises:
        UserError: the main process cannot be reached, or this machine has fewer GPUs than processes.
        SystemExit: the processes were started with different facts, which has been reported.
    """
    if device.type == "cuda":
        refuse_missing_gpu(rank_info, torch.cuda.device_count())
        torch.cuda.set_device(device)
    if rank_info.world_size == 1:
        return SingleProcess(device)
    if device.type == "mps":
        raise UserError("--device mps is one GPU for one process: start one, or use --device cpu")
    return DistributedGroup(rank_info, device, facts())


def refuse_missing_gpu(rank_info: RankInfo, number: int) -> None:
    """Each process computes on a GPU of its own.

    Raises:
        UserError: this machine has only `number` of them.
    """
    if rank_info.local_rank >= number:
        raise UserError(
            f"rank {rank_info.rank}: process {rank_info.local_rank + 1} of this machine, which has {number} "
            f"GPU{'s' * (number != 1)}: start one process per GPU"
        )


def join_group(rank_info: RankInfo, device: torch.device, facts: Facts) -> Store:
    """Meet the other processes and check that all agree; returns the store that they share.

    Raises:
        UserError: the main process cannot be reached; its address and port are named.
    """
    address = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    on_gpu = device.type == "cuda"
    choose_interface()
    patience = Timer(NOTICE.total_seconds(), say_waiting, (address,))
    patience.daemon = True
    if os.environ.get("LOCAL_RANK") == "0":
        patience.start()
    try:
        store, rank, world_size = next(rendezvous("env://", timeout=MEETING))
        store.set_timeout(TIMEOUT)
        agree(store, rank_info, facts, TIMEOUT)
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
        if "EADDRINUSE" in reason or "in use" in reason:
            raise UserError(
                f"port {master()[1]} is taken on this machine (is another run using it?): give another --master_port"
            ) from error
        raise UserError(
            f"rank {os.environ.get('RANK')} cannot connect to the other processes at {address} ({reason}); see "
            "what machine 0 prints, which may still check the data or have refused them, and check --master_addr, "
            "--master_port and the firewall between the machines"
        ) from error
    finally:
        patience.cancel()
    shared: Store = store
    return shared


def say_waiting(address: str) -> None:
    """Print why nothing happens; once per machine."""
    minutes = (TIMEOUT if os.environ.get(HOSTED) == str(True) else MEETING).total_seconds() / 60
    print(f"waiting for the other processes at {address}, at most {minutes:.0f} minutes", file=sys.stderr, flush=True)


def choose_interface() -> None:
    """Let gloo use the network interface that leads to the main process, unless GLOO_SOCKET_IFNAME names one.

    By itself it takes the address of the machine's name, which often no other machine reaches.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ or os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        return
    name = interface_to(*master())
    if name is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = name


def interface_to(address: str, port: int) -> str | None:
    """Name of the network interface from which an address is reached; None if that cannot be determined."""
    import fcntl

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, port))  # nothing is sent
            own = probe.getsockname()[0]
            if own.startswith("127."):  # this is the main machine: its own name does not tell how others reach it
                return None
            for _, name in socket.if_nameindex():
                request = struct.pack("256s", name.encode()[:15])
                try:
                    answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
                except OSError:  # an interface without an address
                    continue
                if socket.inet_ntoa(answer[20:24]) == own:
                    return name
    except OSError:
        return None
    return None
