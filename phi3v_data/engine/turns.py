"""Tasks that an engine has begun, and the order in which their results are yielded."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from phi3v_data.engine.base import WorkerDiedError
from phi3v_data.engine.worker import Failure, Success

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 2
"""Tasks per worker that are under way, or whose results wait for their turn."""


@dataclass(slots=True, eq=False)
class Running(Generic[T]):
    """A task that a worker has, or that waits for one; `outcome` is there once it has ended."""

    task: T
    outcome: Success | Failure | None = None


@dataclass(slots=True)
class Turns(Generic[T, R]):
    """The tasks under way, in the order in which they were given."""

    under_way: deque[Running[T]] = field(default_factory=deque)

    def add(self, task: T) -> Running[T]:
        """One more task."""
        running = Running(task)
        self.under_way.append(running)
        return running

    def finished(self, in_order: bool) -> Iterator[Running[T]]:
        """Take off the tasks that have ended and whose results can be given."""
        for running in list(self.under_way):
            if running.outcome is not None:
                self.under_way.remove(running)
                yield running
            elif in_order:
                return

    @staticmethod
    def result(running: Running[T], on_death: Callable[[WorkerDiedError], R] | None) -> R:
        """The result of a task that has ended.

        Raises:
            WorkerDiedError: its worker died, and there is no `on_death`.
            Exception: whatever the work raised.
        """
        if isinstance(running.outcome, Success):
            result: R = running.outcome.result
            return result
        assert running.outcome is not None
        error = running.outcome.error
        if isinstance(error, WorkerDiedError) and on_death is not None:
            return on_death(error)
        raise error
