"""Processes that measure and build, or this process if there are none.

Workers start from a fork server, a clean process that has imported what they need: forking this one could copy locks
held by threads of torch or a GPU's context. Results come back through pipes, not shared memory, which containers
often limit to 64 MB. A worker ends when this process does, even by SIGKILL.

This pool differs from `phi3v_data.engine`, which runs one list of tasks and ends: these workers live as long as the
run, and take work piece by piece from two callers: the loader, which decides what comes next only while it reads, and
the evaluation between two steps.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import forkserver, resource_tracker
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from phi3v_data.errors import UserError
from phi3v_train.data.collate import Arrays, BatchShape, batch_shape, collate_arrays
from phi3v_train.data.encode import EncodedSample
from phi3v_train.data.order import SampleRef
from phi3v_train.data.reader import Measure, Reader
from phi3v_train.models.renderer import NO_LABEL

POLL_SECONDS = 5.0
"""Time after which a result that is still missing makes the pool look for dead workers."""

_PRELOAD = (
    "__main__",
    "phi3v_train.data.fork_server",
    "phi3v_train.data.workers",
)
"""Modules that the fork server imports once for all workers, beside those that the reader is made of."""

A = TypeVar("A")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Built: TypeAlias = tuple[Arrays, BatchShape]


@dataclass(frozen=True, slots=True)
class MicroBatchJob:
    """A micro-batch to build from its samples; a `filler` has no labels."""

    refs: tuple[SampleRef, ...]
    pack: bool
    filler: bool = False


class Future(Protocol[T_co]):
    """A result on its way."""

    def result(self) -> T_co:
        """Wait for it."""
        ...


def measure_all(reader: Reader, refs: Sequence[SampleRef]) -> list[Measure]:
    """Measure some samples."""
    return [reader.measure(ref) for ref in refs]


def build(reader: Reader, job: MicroBatchJob) -> Built:
    """Encode and collate a micro-batch."""
    samples = [reader.encode(ref) for ref in job.refs]
    if job.filler:
        samples = [_without_labels(sample) for sample in samples]
    arrays = collate_arrays(samples, reader.encoder.renderer, pack=job.pack)
    return arrays, batch_shape(samples)


def _without_labels(sample: EncodedSample) -> EncodedSample:
    return replace(sample, labels=np.full_like(sample.labels, NO_LABEL), num_supervised=0)


class Workers:
    """A pool of processes that hold `reader`; with `num_workers` 0 work is done when its result is asked for."""

    def __init__(self, reader: Reader, num_workers: int) -> None:
        """
        Args:
            reader: travels to every worker.
            num_workers: processes; 0 for none.
        """
        self.inline = num_workers == 0
        self._reader = reader
        self._num_workers = num_workers
        self._pool: ProcessPoolExecutor | None = None

    def start(self) -> None:
        """Start the processes, if there are to be any and they are not running."""
        if not self.inline:
            pool = self._executor()
            with _deaths_told():
                for _ in range(self._num_workers):
                    pool.submit(os.getpid)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the processes; work not yet started is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def measure(self, refs: Sequence[SampleRef]) -> Future[list[Measure]]:
        """Measure some samples."""
        return self._submit(measure_all, tuple(refs))

    def build(self, job: MicroBatchJob) -> Future[Built]:
        """Encode and collate a micro-batch."""
        return self._submit(build, job)

    def map(self, work: Callable[[Reader, A], T], arguments: Iterable[A], *, ahead: int | None = None) -> Iterator[T]:
        """`work(reader, argument)` for each argument, in order, at most `ahead` (two a worker) under way at once.

        `work` is a function of a module, so that it can be sent to another process; evaluation decodes with it:
        `workers.map(prompts_of, refs)`.

        Raises:
            UserError: of `work`, when its turn comes; or a worker was killed.
        """
        running: deque[Future[T]] = deque()
        for argument in arguments:
            running.append(self._submit(work, argument))
            if len(running) > (0 if self.inline else 2 * self._num_workers if ahead is None else ahead):
                yield running.popleft().result()
        while running:
            yield running.popleft().result()

    def _submit(self, work: Callable[[Reader, Any], T], argument: Any) -> Future[T]:
        if self.inline:
            return _Later(work, self._reader, argument)
        pool = self._executor()
        with _deaths_told():  # a pool of which a worker has died takes no work
            return _Remote(pool.submit(_run, work, argument), pool)

    def _executor(self) -> ProcessPoolExecutor:
        if self._pool is None:
            start_quiet_tracker()
            context = _context(self._reader)
            if context.get_start_method() == "forkserver":
                start_fork_server()
            self._pool = ProcessPoolExecutor(
                self._num_workers, mp_context=context, initializer=_begin, initargs=(self._reader,)
            )
        return self._pool


class _Later(Generic[T]):
    """Work that is done here, when its result is asked for."""

    def __init__(self, work: Callable[[Reader, Any], T], reader: Reader, argument: Any) -> None:
        self._work = work
        self._reader = reader
        self._argument = argument

    def result(self) -> T:
        return self._work(self._reader, self._argument)


class _Remote(Generic[T]):
    """Work that another process does."""

    def __init__(self, future: Any, pool: ProcessPoolExecutor) -> None:
        self._future = future
        self._pool = pool

    def result(self) -> T:
        with _deaths_told():
            while True:
                try:
                    result: T = self._future.result(timeout=POLL_SECONDS)
                    break
                except TimeoutError:
                    if self._future.done():  # the work's own
                        raise
                    end_broken(self._pool)
        return result


@contextmanager
def _deaths_told() -> Iterator[None]:
    try:
        yield
    except (BrokenProcessPool, CancelledError):
        raise UserError(
            "a worker process that decodes images exited unexpectedly: most likely it was killed because memory "
            "ran out (lower --num_workers), or the run was not started under `if __name__ == '__main__':` in a "
            "script"
        ) from None


def end_broken(pool: ProcessPoolExecutor) -> None:
    """Kill the workers of a pool of which one has died.

    The pool does so itself, but not if the dead one was in the middle of handing over a result: the pool then waits for
    the rest of it for as long as any process, this one among them, can write into the same pipe.
    """
    processes = list((pool._processes or {}).values())
    if any(process.exitcode is not None for process in processes):
        for process in processes:
            process.kill()
        pool._result_queue._writer.close()  # type: ignore[attr-defined]  # there is no public way to end the wait


def _context(reader: Reader) -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    renderer = reader.encoder.renderer
    parts = (renderer, renderer.tokenizer, renderer.image_processor)
    context.set_forkserver_preload([*_PRELOAD, *dict.fromkeys(type(part).__module__ for part in parts)])
    return context


def start_quiet_tracker() -> None:
    """Start multiprocessing's resource tracker, which outlives a killed run and cleans up after it, without its warning
    of leaked semaphores: they are those of the workers, whose end a killed run does not wait for.
    """
    kept = list(sys.warnoptions)
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions[:] = kept


def start_fork_server() -> None:
    """Start the fork server with SIGINT blocked, which it inherits: Ctrl-C while it imports is for this process alone.

    It ends when this process does. Workers inherit it too, and ignore SIGINT in any case.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_reader: Reader | None = None


def _begin(reader: Reader) -> None:
    """Set a worker up: its reader, no reaction to Ctrl-C, and an end when the main process ends."""
    global _reader
    _reader = reader
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # Threads inherit the mask: only the one that waits for SIGTERM gets it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        threading.Thread(target=_obey_only, args=(parent.pid,), daemon=True).start()
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _obey_only(parent: int) -> None:
    """End by the SIGTERM of the pool; one that a cluster sends to every process of a job is for the main process."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(1)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _run(work: Callable[[Reader, Any], T], argument: Any) -> T:
    assert _reader is not None
    return work(_reader, argument)
