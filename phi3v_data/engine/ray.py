"""Tasks on Ray; the nodes share the file systems that the tasks read and write.

A task that a lost node takes with it is run again by Ray, so work must write the same bytes every time.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from phi3v_data.engine.base import Work, WorkerDiedError
from phi3v_data.errors import UserError, how_to_install

T = TypeVar("T")
R = TypeVar("R")

MAX_RETRIES = 2
TICK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class RayEngine:
    """At most `workers` tasks at once on the cluster of `RAY_ADDRESS`, else on a Ray started for this run."""

    workers: int

    def run(
        self,
        work: Work[T, R],
        tasks: Iterable[T],
        *,
        in_order: bool = True,
        on_death: Callable[[WorkerDiedError], R] | None = None,
        ticked: Callable[[int], None] | None = None,
    ) -> Generator[tuple[T, R], None, None]:
        """Each task with its result; see `Engine.run`. `ticked` is always called with 0: no items are reported."""
        try:
            import ray
        except ImportError:
            raise UserError(f"--engine ray needs the package ray: {how_to_install('ray')}") from None
        if self.workers == 0:
            raise UserError("--engine ray needs at least one worker")
        started = not ray.is_initialized()
        if started:
            ray.init(**_init_options(self.workers))
        try:
            yield from self._results(ray, work, iter(tasks), in_order, on_death, ticked or (lambda count: None))
        finally:
            if started:
                ray.shutdown()

    def _results(
        self,
        ray: Any,
        work: Work[T, R],
        tasks: Iterator[T],
        in_order: bool,
        on_death: Callable[[WorkerDiedError], R] | None,
        ticked: Callable[[int], None],
    ) -> Generator[tuple[T, R], None, None]:
        remote = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(run_task)
        shared = ray.put(work)
        running = deque((remote.remote(shared, task), task) for task in islice(tasks, self.workers))
        while running:
            ticked(0)
            waited_for = [running[0][0]] if in_order else [reference for reference, _ in running]
            ready, _ = ray.wait(waited_for, num_returns=1, timeout=TICK_SECONDS)
            for reference, task in [pair for pair in running if pair[0] in ready]:
                result = _take(ray, reference, task, on_death)
                running = deque(pair for pair in running if pair[0] != reference)
                running.extend((remote.remote(shared, following), following) for following in islice(tasks, 1))
                yield task, result


def run_task(work: Work[T, R], task: T) -> R:
    """Run one task, as a local worker would."""
    with work.open() as run:
        return run(task, lambda item: None)


def _take(ray: Any, reference: Any, task: T, on_death: Callable[[WorkerDiedError], R] | None) -> R:
    try:
        result: R = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError | OSError):
            raise error.cause from None
        raise
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        death = WorkerDiedError(f"of Ray died ({type(error).__name__})", task, None)
        if on_death is None:
            raise death from error
        return on_death(death)
    return result


def _init_options(workers: int) -> dict[str, Any]:
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if os.environ.get("RAY_ADDRESS"):
        return common
    return common | {"num_cpus": workers, "include_dashboard": False}
