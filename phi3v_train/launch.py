"""Several processes on this machine, as torchrun would start them, without its noise.

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

from phi3v_data.cli.base import PROBLEMS
from phi3v_train.config import RunConfig

GRACE = 10.0
"""Seconds between asking a process to end and ending it."""

POLL = 0.1

LAUNCHED = "PHI3V_LAUNCHED"
"""Set for processes started here: the data are checked and the plan is shown already."""


def processes_to_start(config: RunConfig) -> int:
    """How many processes this one should start; 0 where it is one of them itself, or the only one."""
    if "RANK" in os.environ:
        return 0
    number = config.parallel.num_processes
    if number is None and config.model.device != "cpu":
        import torch

        number = torch.cuda.device_count()
    return number if number is not None and number > 1 else 0


def launch(number: int, arguments: Sequence[str]) -> int:
    """Run `python -m phi3v_train ARGUMENTS` in `number` processes; 0 where all end well, else 1."""
    port = free_port()
    threads = max(1, (os.cpu_count() or 1) // number)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "phi3v_train", *arguments],
            env={
                "OMP_NUM_THREADS": str(threads),
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(number),
                "LOCAL_WORLD_SIZE": str(number),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                LAUNCHED: "1",
            },
        )
        for rank in range(number)
    ]
    try:
        return wait(processes)
    finally:
        end(processes)


def obey_launcher() -> None:
    """In a process started here: leave Ctrl-C to the launcher, and end when it is gone, even by SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(PROBLEMS)

    threading.Thread(target=watch, daemon=True).start()


def wait(processes: Sequence["subprocess.Popen[bytes]"]) -> int:
    """Wait until all have ended well, or one badly: then 1."""
    while True:
        codes = [process.poll() for process in processes]
        killed = [rank for rank, code in enumerate(codes) if code is not None and code < 0]
        if killed:
            name = signal.Signals(-(codes[killed[0]] or 0)).name
            print(f"error: rank {killed[0]} was ended by {name}; the others are stopped", file=sys.stderr)
        if any(codes):
            return PROBLEMS
        if all(code == 0 for code in codes):
            return 0
        time.sleep(POLL)


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
