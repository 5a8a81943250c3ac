"""The program of one local worker: takes parts from a pipe until it closes, and never outlives its parent."""

import ctypes
import mmap
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from phi3v_data.engine.base import Job, PartCounts, load_converter, run_part
from phi3v_data.errors import UserError
from phi3v_data.lock import share_lock
from phi3v_data.writing.journal import Journal
from phi3v_data.writing.plan import Part

PR_SET_PDEATHSIG = 1
WORKER_VARIABLE = "PHI3V_WORKER"
CELL = 8
"""Bytes of the shared cell in which a worker notes the item it works on."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What ends the run: a `UserError` (errno 0) or an `OSError`."""

    message: str
    errno: int = 0
    filename: str = ""


def main(pipe: int, cells: int, index: int, parent: int) -> None:
    """Serve until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(parent)
    connection = Connection(pipe)
    memory = mmap.mmap(cells, 0)
    try:
        _serve(connection, memory, index)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)


def die_with(parent: int) -> None:
    """End this process when the parent does, also when that is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _serve(connection: "Connection[Any, Any]", memory: mmap.mmap, index: int) -> None:
    job: Job = connection.recv()
    share_lock(Journal(job.out_dir).workers_lock)

    def tick(item: int) -> None:
        memory[index * CELL : (index + 1) * CELL] = item.to_bytes(CELL, "little", signed=True)

    try:
        converter, options = load_converter(job)
        while True:
            part: Part = connection.recv()
            counts: PartCounts = run_part(job, converter, options, part, tick)
            tick(-1)
            connection.send(counts)
    except UserError as error:
        connection.send(Failure(str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise
    except OSError as error:
        if error.errno is None:
            raise
        connection.send(Failure(error.strerror or str(error), error.errno, os.fsdecode(error.filename or "")))
