"""Several processes on this machine, and on others beside it, as torchrun would start them, without its noise.

Each process says its own errors; here it is only seen to that none outlives another's failure.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from phi3v_data.cli.base import COULD_NOT_RUN, PROBLEMS
from phi3v_data.errors import UserError
from phi3v_train.config import ParallelConfig, RunConfig

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

GRACE = 10.0
"""Seconds between asking a process to end and ending it."""

POLL = 0.1

PORT = 29500
"""Where several machines meet, unless another port is given; torchrun's."""

FOLLOWED = 3
"""Exit code of a process that ends because of another one, which said why."""

HOSTED = "TORCHELASTIC_USE_AGENT_STORE"
"""Tells torch that the launcher, not rank 0, opens the port where all meet: torchrun's and ours do."""

LAUNCHED = "PHI3V_LAUNCHED"
"""Set for processes started here: the data are checked and the plan is shown already."""


def processes_to_start(config: RunConfig) -> int:
    """How many processes this one should start on this machine; 0 where it is one of them, or the only one.

    Raises:
        UserError: several machines without an address to meet at, or a number that this one cannot have.
    """
    if "RANK" in os.environ:
        return 0
    parallel = config.parallel
    check_machines(parallel)
    number = parallel.num_processes
    if number is None and config.model.device != "cpu":
        import torch

        number = torch.cuda.device_count()
    number = max(1, number or 1)
    return number if number * parallel.nnodes > 1 else 0


def check_machines(parallel: ParallelConfig) -> None:
    """See that the options for several machines fit together.

    Raises:
        UserError: they do not.
    """
    if parallel.node_rank >= parallel.nnodes:
        machines = f"the machines are numbered 0 to {parallel.nnodes - 1}" if parallel.nnodes > 1 else "give --nnodes"
        raise UserError(f"--node_rank {parallel.node_rank} of --nnodes {parallel.nnodes}: {machines}")
    if parallel.nnodes > 1 and parallel.master_addr is None:
        raise UserError(f"--nnodes {parallel.nnodes}: give --master_addr, the address of machine 0, on each of them")


def open_meeting(parallel: ParallelConfig) -> "Store | None":
    """What the processes of several machines meet at, where this is machine 0; it lasts as long as the result is kept.

    Machine 0 opens it before it checks the data, so that the others find it at once, however long the check takes.

    Raises:
        UserError: the port is taken.
    """
    if parallel.nnodes == 1 or parallel.node_rank > 0:
        return None
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not in its __all__

    port = parallel.master_port or PORT
    try:
        store: Store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    except RuntimeError as error:
        raise UserError(
            f"--master_port {port} cannot be opened on this machine (is another run using it?); give all machines "
            "another one"
        ) from error
    return store


def launch(number: int, arguments: Sequence[str], parallel: ParallelConfig | None = None) -> int:
    """Run `python -m phi3v_train ARGUMENTS` in `number` processes here; 0 where all end well.

    Returns 2 where a process could not begin, because of a mistake that it has told, else 1.
    """
    machines = parallel or ParallelConfig()
    port = machines.master_port or (PORT if machines.nnodes > 1 else free_port())
    first = machines.node_rank * number
    threads = max(1, (os.cpu_count() or 1) // number)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "phi3v_train", *arguments],
            env={
                "OMP_NUM_THREADS": str(threads),
                **os.environ,
                "RANK": str(first + local),
                "LOCAL_RANK": str(local),
                "WORLD_SIZE": str(number * machines.nnodes),
                "LOCAL_WORLD_SIZE": str(number),
                "GROUP_RANK": str(machines.node_rank),
                "MASTER_ADDR": machines.master_addr or "127.0.0.1",
                "MASTER_PORT": str(port),
                **({HOSTED: str(True)} if machines.nnodes > 1 else {}),
                LAUNCHED: "1",
            },
        )
        for local in range(number)
    ]
    try:
        return wait(processes, first)
    finally:
        end(processes)


def is_explained(*, of_way_on: bool = False) -> bool:
    """Whether a launcher of ours says which process was killed; `of_way_on`: how the run goes on.

    It sees the processes of its own machine, so one of several can be silent on why those of another one ended.
    """
    if LAUNCHED not in os.environ:
        return False
    return of_way_on or os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]


def obey_launcher() -> None:
    """In a process started here: leave Ctrl-C to the launcher, and end when it is gone, even by SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(PROBLEMS)

    threading.Thread(target=watch, daemon=True).start()


def wait(processes: Sequence["subprocess.Popen[bytes]"], first: int = 0) -> int:
    """Wait until all have ended well, or one badly; `first` is the rank of the first one."""
    deadline = 0.0
    while True:
        codes = [process.poll() for process in processes]
        for rank, code in enumerate(codes, first):
            if code is not None and code not in (0, PROBLEMS, COULD_NOT_RUN, FOLLOWED):
                print(f"error: rank {rank} {how_it_ended(code)}; the others are stopped", file=sys.stderr)
                return PROBLEMS
        if COULD_NOT_RUN in codes or PROBLEMS in codes:
            return COULD_NOT_RUN if COULD_NOT_RUN in codes else PROBLEMS
        if FOLLOWED in codes:
            deadline = deadline or time.monotonic() + GRACE
            if None not in codes or time.monotonic() > deadline:
                return PROBLEMS
        if all(code == 0 for code in codes):
            return 0
        time.sleep(POLL)


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}" + (", as when the machine's memory is used up" if name == "SIGKILL" else "")


def end(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Ask those still running to end, then end them."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
