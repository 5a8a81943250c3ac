"""Parts as Ray tasks; the nodes share the file system of DIR and of the source.

A task that a lost node takes with it is run again by Ray: parts write the same bytes every time.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from phi3v_data.engine.base import Job, PartCounts, load_converter, run_part
from phi3v_data.errors import UserError, how_to_install
from phi3v_data.lock import shared_lock
from phi3v_data.messages import counted
from phi3v_data.writing.journal import Journal
from phi3v_data.writing.plan import Part, read_items

MAX_RETRIES = 2
WAIT_SECONDS = 0.5


@dataclass(slots=True)
class RayEngine:
    """At most `workers` tasks at once on the cluster of `RAY_ADDRESS`, else on a Ray started for this run."""

    workers: int

    def run(self, job: Job, parts: Sequence[Part], report: Callable[[int], None]) -> None:
        """Run all parts."""
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
            self._drive(ray, job, parts, report)
        finally:
            if started:
                ray.shutdown()

    def _drive(self, ray: Any, job: Job, parts: Sequence[Part], report: Callable[[int], None]) -> None:
        task = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(run_ray_part)
        shared = ray.put(job)
        waiting = iter(parts)
        running = {task.remote(shared, part): part for part in islice(waiting, self.workers)}
        done = 0
        while running:
            ready, _ = ray.wait(list(running), num_returns=1, timeout=WAIT_SECONDS)
            for result in ready:
                part = running.pop(result)
                _take(ray, job, part, result)
                done += part.count
                running |= {task.remote(shared, following): following for following in islice(waiting, 1)}
            report(done)


def run_ray_part(job: Job, part: Part) -> PartCounts:
    """One task: the same work as a local worker's."""
    with shared_lock(Journal(job.out_dir).workers_lock):
        converter, options = load_converter(job)
        return run_part(job, converter, options, part, lambda item: None)


def _take(ray: Any, job: Job, part: Part, result: Any) -> None:
    try:
        ray.get(result)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError | OSError):
            raise error.cause from None
        raise
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        first = next(iter(read_items(job.plan_folder, part)))
        raise UserError(
            f"a Ray worker died while it converted {counted(part.count, 'item')} from {first.key} on "
            f"({type(error).__name__}); what was finished is kept: run the same command to go on"
        ) from error


def _init_options(workers: int) -> dict[str, Any]:
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if os.environ.get("RAY_ADDRESS"):
        return common
    return common | {"num_cpus": workers, "include_dashboard": False}
