"""Tasks on the processes of this machine.

Workers are started afresh, so that no thread, lock or open decoder of the caller is copied, and the caller's script is
not run again. With `forked` they are copies of the caller instead, for work that needs what the caller holds in memory;
they are then to call nothing but code that is safe after a fork. Each worker tells through shared memory which item it
works on, so a crash can be named.
"""

import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from phi3v_data.engine.base import NOTHING_SHARED, Shared, Work, WorkerDiedError
from phi3v_data.engine.turns import AHEAD, Running, Turns
from phi3v_data.engine.worker import CELL, WORKER_VARIABLE, Failure, serve

T = TypeVar("T")
R = TypeVar("R")

CAN_FORK = sys.platform == "linux"
"""Whether workers can be forked; elsewhere the libraries of the system may break in a copy."""

TICK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """`workers` processes; 0 runs the tasks in this process, one after the other.

    Fewer tasks than `few` are run in this process, too: to start workers would take longer.
    """

    workers: int
    forked: bool = False
    few: int = 0

    def run(
        self,
        work: Work[T, R],
        tasks: Iterable[T],
        *,
        in_order: bool = True,
        on_death: Callable[[WorkerDiedError], R] | None = None,
        ticked: Callable[[int], None] | None = None,
        shared: Shared = NOTHING_SHARED,
    ) -> Generator[tuple[T, R], None, None]:
        """Each task with its result; see `Engine.run`."""
        ticked = ticked or (lambda count: None)
        first = list(islice(tasks := iter(tasks), self.few))
        tasks = chain(first, tasks)
        if self.workers == 0 or len(first) < self.few:
            with work.open() as run:
                for task in tasks:
                    yield task, run(task, ticked)
            return
        pool = _Pool(self, work, tasks, ticked)
        try:
            yield from pool.results(in_order, on_death)
        finally:
            pool.stop()


@dataclass(slots=True)
class _Worker(Generic[T]):
    process: "_Interpreter | _Fork"
    pipe: "Connection[Any, Any]"
    index: int
    running: Running[T] | None = None


class _Pool(Generic[T, R]):
    """One run of a pool of workers."""

    def __init__(
        self, engine: LocalEngine, work: Work[T, R], tasks: Iterator[T], ticked: Callable[[int], None]
    ) -> None:
        self._engine = engine
        self._work = work
        self._tasks = tasks
        self._ticked = ticked
        self._workers: list[_Worker[T]] = []
        self._turns: Turns[T, R] = Turns()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - `stop` closes it
        self._file.truncate(engine.workers * CELL)
        self._cells = mmap.mmap(self._file.fileno(), engine.workers * CELL)

    def results(self, in_order: bool, on_death: Callable[[WorkerDiedError], R] | None) -> Iterator[tuple[T, R]]:
        """Give tasks to workers, and take their results."""
        self._fill()
        while self._turns.under_way:
            self._receive()
            for running in self._turns.finished(in_order):
                self._fill()
                yield running.task, self._turns.result(running, on_death)

    def _fill(self) -> None:
        """Give each free worker a task, as long as there are tasks and room for their results."""
        while len(self._turns.under_way) < AHEAD * self._engine.workers:
            worker = next((each for each in self._workers if each.running is None), None)
            if worker is None and len(self._workers) == self._engine.workers:
                return
            try:
                task = next(self._tasks)
            except StopIteration:
                return
            running = self._turns.add(task)
            if worker is None:
                free = set(range(self._engine.workers)) - {each.index for each in self._workers}
                worker = self._start(min(free))
            self._set_cell(worker.index, -1)
            worker.running = running
            self._send(worker, task)

    def _start(self, index: int) -> _Worker[T]:
        ours, theirs = Pipe()
        try:
            if self._engine.forked:
                process: _Interpreter | _Fork = _Fork(theirs, self._cells, index, self._work)
            else:
                process = _Interpreter(theirs, self._file.fileno(), index)
        finally:
            theirs.close()
        worker: _Worker[T] = _Worker(process, ours, index)
        self._workers.append(worker)
        if not self._engine.forked:
            self._send(worker, self._work)
        return worker

    def _send(self, worker: _Worker[T], message: object) -> None:
        with suppress(ConnectionError):  # it died: `_receive` sees the end of its pipe
            worker.pipe.send(message)

    def _receive(self) -> None:
        """Take the outcomes that have come in, waiting for a while if there are none."""
        busy = {worker.pipe: worker for worker in self._workers if worker.running is not None}
        self._ticked(sum(max(0, self._cell(worker.index)) for worker in busy.values()))
        for ready in wait(list(busy), TICK_SECONDS):
            worker = busy[ready]  # type: ignore[index]  # `wait` gives back what it was given
            assert worker.running is not None
            try:
                worker.running.outcome = worker.pipe.recv()
            except (EOFError, ConnectionError):
                worker.running.outcome = Failure(self._death(worker, worker.running.task))
            worker.running = None
        self._fill()

    def _death(self, worker: _Worker[T], task: T) -> WorkerDiedError:
        """How a worker ended, and at which item; the worker is taken off the list."""
        code = worker.process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            how = f"was killed by {name}" + (" (the system does so when memory runs out)" if name == "SIGKILL" else "")
        else:
            how = f"ended with exit code {code}"
        item = self._cell(worker.index)
        worker.pipe.close()
        self._workers.remove(worker)
        return WorkerDiedError(how, task, None if item < 0 else item)

    def _cell(self, index: int) -> int:
        return int.from_bytes(self._cells[index * CELL : (index + 1) * CELL], "little", signed=True)

    def _set_cell(self, index: int, value: int) -> None:
        self._cells[index * CELL : (index + 1) * CELL] = value.to_bytes(CELL, "little", signed=True)

    def stop(self) -> None:
        """End all workers at once; whatever they were at does not count."""
        for worker in self._workers:
            worker.pipe.close()
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
        self._cells.close()
        self._file.close()


class _Interpreter:
    """A worker in an interpreter of its own."""

    def __init__(self, pipe: "Connection[Any, Any]", cells: int, index: int) -> None:
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from phi3v_data.engine.worker import main; "
            f"main({pipe.fileno()}, {cells}, {index}, {os.getpid()})"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what a converter prints must not mix with results
            pass_fds=(pipe.fileno(), cells),
            env={**os.environ, WORKER_VARIABLE: "1"},
        )

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        return self._process.wait()


class _Fork:
    """A worker that is a copy of this process."""

    def __init__(self, pipe: "Connection[Any, Any]", cells: mmap.mmap, index: int, work: Work[Any, Any]) -> None:
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=serve, args=(pipe, cells, index, os.getpid(), work), daemon=True)
        self._process.start()

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        self._process.join()
        code = self._process.exitcode
        assert code is not None
        return code
