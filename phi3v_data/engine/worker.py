"""The program of one local worker: takes tasks from a pipe until it closes, and never outlives its parent."""

import ctypes
import mmap
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from phi3v_data.engine.base import Tick, Work
from phi3v_data.errors import UserError

PR_SET_PDEATHSIG = 1
WORKER_VARIABLE = "PHI3V_WORKER"
CELL = 8
"""Bytes of the shared cell in which a worker notes the item it works on."""


@dataclass(frozen=True, slots=True)
class Success:
    """The result of a task."""

    result: Any


@dataclass(frozen=True, slots=True)
class Failure:
    """The exception that ended a task."""

    error: Exception


def main(pipe: int, cells: int, index: int, parent: int) -> None:
    """Serve in a fresh interpreter, until the pipe closes; the work comes through the pipe first."""
    serve(Connection(pipe), mmap.mmap(cells, 0), index, parent, None)


def serve(
    connection: "Connection[Any, Any]", cells: mmap.mmap, index: int, parent: int, work: Work[Any, Any] | None
) -> None:
    """Serve until the pipe closes, then end this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with(parent)

    def tick(item: int) -> None:
        cells[index * CELL : (index + 1) * CELL] = item.to_bytes(CELL, "little", signed=True)

    pipe = _Pipe(connection)
    try:
        try:
            _serve(pipe, pipe.receive() if work is None else work, tick)
        except Exception as error:
            pipe.send(Failure(portable(error)))
    except _PipeClosed:
        pass
    finally:
        sys.stderr.flush()
    os._exit(0)


def _serve(pipe: "_Pipe", work: Work[Any, Any], tick: Tick) -> None:
    with work.open() as run:
        while True:
            result = run(pipe.receive(), tick)
            tick(-1)
            pipe.send(Success(result))


class _PipeClosed(BaseException):
    """The parent has ended, or wants no more."""


class _Pipe:
    """The pipe to the parent; tells its own end from an `EOFError` or `BrokenPipeError` of the work."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection = connection

    def receive(self) -> Any:
        try:
            content = self._connection.recv_bytes()
        except (EOFError, ConnectionError):
            raise _PipeClosed from None
        return pickle.loads(content)

    def send(self, message: Success | Failure) -> None:
        content = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        try:
            self._connection.send_bytes(content)
        except ConnectionError:
            raise _PipeClosed from None


def portable(error: Exception) -> Exception:
    """An exception that the parent can unpickle; one that is a defect brings its traceback along."""
    if not isinstance(error, UserError | OSError):
        error.add_note("".join(traceback.format_exception(error)).rstrip())
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception:  # whatever an exception of others does when it is pickled
        pass
    if isinstance(error, UserError):
        return UserError(str(error))
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror, error.filename)
    return RuntimeError("".join(traceback.format_exception(error)))


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
