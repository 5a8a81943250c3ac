"""Several processes on this machine, and on others beside it, as torchrun would start them, without its noise.

Each process reports its own errors; the launcher only makes sure that none outlives another's failure.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from phi3v_data.errors import COULD_NOT_RUN, PROBLEMS, UserError
from phi3v_train.config import ParallelConfig, RunConfig

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not in its __all__

GRACE = 10.0
"""Seconds that the others have to exit by themselves after one has noticed that another died."""

POLL = 0.1

PORT = 29500
"""Where several machines meet, unless another port is given; torchrun's."""

FOLLOWED = 3
"""Exit code of a process that ends because of another one, which reported why."""

STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT)
"""Exit codes of a process that was stopped by a signal."""

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


IMAGES = "PHI3V_IMAGES"
"""For such processes: the digests of the images that the launcher's check of the data found, as JSON."""


def launched_images() -> dict[str, str]:
    """The digest of the images of each directory, as the launcher found them; empty without a launcher of phi3v."""
    return dict(json.loads(os.environ.get(IMAGES, "{}"))) if LAUNCHED in os.environ else {}


def processes_to_start(config: RunConfig) -> int:
    """Number of processes to start on this machine; 0 if this process is one of them, or the only one.

    Raises:
        UserError: several machines without an address to meet at, or more processes than this machine can run.
    """
    if "RANK" in os.environ:
        return 0
    parallel = config.parallel
    check_machines(parallel)
    number = parallel.num_processes
    if config.model.device == "mps" and (number or 1) * parallel.nnodes > 1:
        option = f"--nnodes {parallel.nnodes}" if parallel.nnodes > 1 else f"--num_processes {number}"
        raise UserError(f"{option}: --device mps is one GPU for one process; leave {option.split()[0]} out")
    if config.model.device not in ("cpu", "mps"):
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
    """Check that the options for several machines agree.

    Raises:
        UserError: they do not.
    """
    if parallel.node_rank >= parallel.nnodes:
        machines = f"the machines are numbered 0 to {parallel.nnodes - 1}" if parallel.nnodes > 1 else "give --nnodes"
        raise UserError(f"--node_rank {parallel.node_rank} of --nnodes {parallel.nnodes}: {machines}")
    if parallel.nnodes > 1 and parallel.master_addr is None:
        raise UserError(f"--nnodes {parallel.nnodes}: give --master_addr, the address of machine 0, on each of them")


def open_meeting(parallel: ParallelConfig) -> "TCPStore | None":
    """The store where the processes meet, on machine 0; it lasts as long as the result is kept.

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
    number: int,
    arguments: Sequence[str],
    parallel: ParallelConfig | None = None,
    meeting: "TCPStore | None" = None,
    images: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Run `python -m phi3v_train ARGUMENTS` in `number` processes here; returns 0 if all succeed.

    SIGTERM and Ctrl-C are passed on as SIGTERM, once: a run then saves a checkpoint and ends. A second one kills all
    processes at once.

    Args:
        number: processes to start.
        arguments: of the command.
        parallel: this machine's index among several; None: it is the only one.
        meeting: result of `open_meeting`, if it is open already.
        images: for `launched_images` of the processes.

    Returns 143 or 130 where the run was stopped by a signal, 2 where a process could not begin, because of a mistake
    that it has reported, else 1.
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
                IMAGES: json.dumps(dict(images)),
            },
        )
        for local in range(number)
    ]
    stop = Stop(processes)
    try:
        with stop:
            return stop.code(wait(processes, first, alone=machines.nnodes == 1))
    finally:
        end(processes)


def launch_evaluation(number: int) -> int:
    """Run this command line in `number` processes here; the exit code, see `launch`."""
    code = launch(number, sys.argv[1:])
    if code in STOPPED:
        print("Stopped. The same command resumes where it stopped.", file=sys.stderr)
    return code


def is_explained(*, of_resume_hint: bool = False) -> bool:
    """Whether a launcher of phi3v reports which process was killed; with `of_resume_hint`: how to resume.

    It sees the processes of its own machine, so one of several may not know why those of another one exited.
    """
    if LAUNCHED not in os.environ:
        return False
    return of_resume_hint or os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]


def obey_launcher() -> None:
    """In a process started here: leave Ctrl-C to the launcher, and end when it is gone, even by SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(PROBLEMS)

    threading.Thread(target=watch, daemon=True).start()


class Stop:
    """While it runs, the first SIGTERM or SIGINT is passed on to the processes, the second kills them."""

    def __init__(self, processes: Sequence["subprocess.Popen[bytes]"]) -> None:
        self._processes = processes
        self._received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._receive)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        if self._received:
            for process in self._processes:
                process.kill()
            os._exit(128 + number)
        self._received = number
        for process in self._processes:
            process.terminate()

    def code(self, code: int) -> int:
        """Exit code of the run; only the launcher knows which signal it was."""
        return 128 + self._received if self._received and code in STOPPED else code


def wait(processes: Sequence["subprocess.Popen[bytes]"], first: int = 0, *, alone: bool = True) -> int:
    """Wait until all have succeeded, or one has failed.

    If a signal stopped the run, all of them exit by themselves, each after its part of the checkpoint.

    Args:
        processes: the processes started here.
        first: rank of the first one.
        alone: there are no other machines, where the cause might be.
    """
    deadline = 0.0
    while True:
        # Killed by SIGTERM: it came before the process was ready to save anything.
        codes = [STOPPED[0] if code == -signal.SIGTERM else code for code in (each.poll() for each in processes)]
        for rank, code in enumerate(codes, first):
            if code is not None and code not in (0, PROBLEMS, COULD_NOT_RUN, FOLLOWED, *STOPPED):
                print(f"error: rank {rank} {how_it_ended(code)}; the others are stopped", file=sys.stderr)
                return PROBLEMS
        if COULD_NOT_RUN in codes or PROBLEMS in codes:
            return COULD_NOT_RUN if COULD_NOT_RUN in codes else PROBLEMS
        if FOLLOWED in codes:
            deadline = deadline or time.monotonic() + GRACE
            if None not in codes or time.monotonic() > deadline:
                stopped = next((code for code in codes if code in STOPPED), None)
                if stopped is not None:
                    return stopped
                if alone:
                    ranks = ", ".join(str(rank) for rank, code in enumerate(codes, first) if code == FOLLOWED)
                    print(f"error: rank {ranks} lost the connection to the others, which continue", file=sys.stderr)
                return PROBLEMS
        if None not in codes:
            return next((code for code in codes if code), 0)
        time.sleep(POLL)


def how_it_ended(code: int) -> str:
    """Description of an exit code."""
    if code >= 0:
        return f"exited with code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}{CAUSES.get(name, '')}"


def end(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Kill those still running: another one has failed, and they would wait for it."""
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()
