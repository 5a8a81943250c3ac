"""Several processes on this machine, and on others beside it, as torchrun would start them, without its noise.

Each process says its own errors; here it is only seen to that none outlives another's failure.
"""

import os
import signal
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
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not in its __all__

GRACE = 10.0
"""Seconds between asking a process to end and ending it."""

POLL = 0.1

PORT = 29500
"""Where several machines meet, unless another port is given; torchrun's."""

FOLLOWED = 3
"""Exit code of a process that ends because of another one, which said why."""

HOSTED = "TORCHELASTIC_USE_AGENT_STORE"
"""Tells torch that the launcher, not rank 0, opens the port where all meet: torchrun's and ours do."""

CAUSES = {
    "SIGABRT": " after the error in its last lines",
    "SIGKILL": ", as when the machine's memory is used up",
    "SIGBUS": ", as when /dev/shm is full (docker run --shm-size=8g)",
}
"""Signal -> its usual cause, where no person sends it."""

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
    if config.model.device != "cpu":
        import torch

        gpus = torch.cuda.device_count()
        if number is not None and 0 < gpus < number:
            raise UserError(
                f"--num_processes {number}: this machine has {gpus} GPU{'s' * (gpus > 1)}, and each process needs one; "
                f"give at most {gpus}, or --device cpu"
            )
        number = number or gpus
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


def open_meeting(parallel: ParallelConfig) -> "TCPStore | None":
    """What the processes meet at, where this is machine 0; it lasts as long as the result is kept.

    Machine 0 opens it before it checks the data, so that the others find it at once, however long the check takes. On
    one machine any free port does.

    Raises:
        UserError: the port is taken.
    """
    if parallel.node_rank > 0:
        return None
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not in its __all__

    port = parallel.master_port or (PORT if parallel.nnodes > 1 else 0)
    try:
        store: TCPStore = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    except RuntimeError as error:
        to_whom = "all machines " if parallel.nnodes > 1 else ""
        raise UserError(
            f"--master_port {port} cannot be opened on this machine (is another run using it?); give {to_whom}another "
            "one"
        ) from error
    return store


def launch(
    number: int, arguments: Sequence[str], parallel: ParallelConfig | None = None, meeting: "TCPStore | None" = None
) -> int:
    """Run `python -m phi3v_train ARGUMENTS` in `number` processes here; 0 where all end well.

    Args:
        number: processes to start.
        arguments: of the command.
        parallel: this machine's place among others; none: it is the only one.
        meeting: of `open_meeting`, where it is open already.

    Returns 2 where a process could not begin, because of a mistake that it has told, else 1.
    """
    machines = parallel or ParallelConfig()
    meeting = meeting or open_meeting(machines)
    port = meeting.port if meeting is not None else machines.master_port or PORT
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
                HOSTED: str(True),
                LAUNCHED: "1",
            },
        )
        for local in range(number)
    ]
    try:
        return wait(processes, first, alone=machines.nnodes == 1)
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


def wait(processes: Sequence["subprocess.Popen[bytes]"], first: int = 0, *, alone: bool = True) -> int:
    """Wait until all have ended well, or one badly.

    Args:
        processes: what was started here.
        first: rank of the first one.
        alone: there are no other machines, where the cause of an end might lie.
    """
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
                if alone:
                    ranks = ", ".join(str(rank) for rank, code in enumerate(codes, first) if code == FOLLOWED)
                    print(f"error: rank {ranks} lost the connection to the others, which go on", file=sys.stderr)
                return PROBLEMS
        if all(code == 0 for code in codes):
            return 0
        time.sleep(POLL)


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}{CAUSES.get(name, '')}"


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
