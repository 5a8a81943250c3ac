"""Parts on the processes of this machine.

Workers are started afresh (no fork), so that no thread, lock or open decoder of the caller is copied, and the caller's
script is not run again. Each tells through shared memory which item it works on; so a crash can be named.
"""

import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from phi3v_data.draft import Converter, Options
from phi3v_data.engine.base import Job, PartCounts, run_part
from phi3v_data.engine.worker import CELL, WORKER_VARIABLE, Failure
from phi3v_data.errors import UserError
from phi3v_data.writing.plan import Part, read_items

REPORT_SECONDS = 0.1


@dataclass(slots=True)
class _Worker:
    process: "subprocess.Popen[bytes]"
    pipe: "Connection[Any, Any]"
    index: int
    part: Part | None = None


@dataclass(slots=True)
class LocalEngine:
    """`workers` processes; 0 converts in this process, for debugging and for classes that no worker could import."""

    workers: int
    cls: type[Converter[Any]]
    options: Options

    def run(self, job: Job, parts: Sequence[Part], report: Callable[[int], None]) -> None:
        """Run all parts."""
        if self.workers == 0:
            self._run_here(job, parts, report)
        elif parts:
            _Pool(job, parts, report).run(min(self.workers, len(parts)))

    def _run_here(self, job: Job, parts: Sequence[Part], report: Callable[[int], None]) -> None:
        converter = self.cls()
        done = 0
        for part in parts:
            run_part(job, converter, self.options, part, partial(_add, report, done))
            done += part.count
            report(done)


def _add(report: Callable[[int], None], done: int, item: int) -> None:
    report(done + item)


class _Pool:
    """One run of a pool of workers."""

    def __init__(self, job: Job, parts: Sequence[Part], report: Callable[[int], None]) -> None:
        self._job = job
        self._waiting = iter(parts)
        self._left = len(parts)
        self._report = report
        self._done = 0
        self._workers: list[_Worker] = []

    def run(self, count: int) -> None:
        with tempfile.TemporaryFile() as file:
            file.truncate(count * CELL)
            with mmap.mmap(file.fileno(), count * CELL) as self._cells:
                try:
                    for index in range(count):
                        self._set_cell(index, -1)
                        self._workers.append(self._start(index, file.fileno()))
                    self._serve()
                finally:
                    self._stop()

    def _start(self, index: int, cells: int) -> _Worker:
        ours, theirs = Pipe()
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from phi3v_data.engine.worker import main; "
            f"main({theirs.fileno()}, {cells}, {index}, {os.getpid()})"
        )
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=2,  # a converter's print must not mix with results
                pass_fds=(theirs.fileno(), cells),
                env={**os.environ, WORKER_VARIABLE: "1"},
            )
        finally:
            theirs.close()
        worker = _Worker(process, ours, index)
        self._send(worker, self._job)
        self._give(worker)
        return worker

    def _give(self, worker: _Worker) -> None:
        worker.part = next(self._waiting, None)
        if worker.part is not None:
            self._send(worker, worker.part)

    def _send(self, worker: _Worker, message: object) -> None:
        try:
            worker.pipe.send(message)
        except (BrokenPipeError, ConnectionResetError):
            self._fail(worker)

    def _serve(self) -> None:
        while self._left:
            busy = {worker.pipe: worker for worker in self._workers if worker.part is not None}
            for ready in wait(list(busy), REPORT_SECONDS):
                worker = busy[ready]  # type: ignore[index]  # `wait` gives back what it was given
                try:
                    message: PartCounts | Failure = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    self._fail(worker)
                if isinstance(message, Failure):
                    if message.errno:
                        raise OSError(message.errno, message.message, message.filename or None)
                    raise UserError(message.message)
                assert worker.part is not None
                self._left -= 1
                self._done += worker.part.count
                self._set_cell(worker.index, -1)
                self._give(worker)
            self._report(self._done + sum(max(0, self._cell(worker.index)) for worker in busy.values()))

    def _fail(self, worker: _Worker) -> None:
        """Say which item a dead worker was busy with."""
        code = worker.process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            how = f"was killed by {name}" + (" (the system does so when memory runs out)" if name == "SIGKILL" else "")
        else:
            how = f"ended with exit code {code}"
        place = self._cell(worker.index)
        if worker.part is None or place < 0:
            raise UserError(f"a worker {how} before it converted anything")
        item = next(islice(read_items(self._job.plan_folder, worker.part), place, None))
        raise UserError(
            f"a worker {how} while it converted {item.key}; what was finished is kept: run the same command to go on, "
            "with fewer --workers if memory ran out"
        )

    def _cell(self, index: int) -> int:
        return int.from_bytes(self._cells[index * CELL : (index + 1) * CELL], "little", signed=True)

    def _set_cell(self, index: int, value: int) -> None:
        self._cells[index * CELL : (index + 1) * CELL] = value.to_bytes(CELL, "little", signed=True)

    def _stop(self) -> None:
        """End all workers at once; whatever they were at is written aside and does not count."""
        for worker in self._workers:
            worker.pipe.close()
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
