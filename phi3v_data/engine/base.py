"""Interface of engines: a list of picklable tasks, all run by the same piece of work, on whatever processes there are.

    work.open() -> run           once in each process: loads what all tasks need
    run(task, tick) -> result    for each task; `tick(n)` says that the task has come to its item n

A worker has one task at a time and is given the next when its result has been taken, so neither tasks nor results pile
up. A worker that dies is reported with its task and the item it was at. When the caller stops taking results (an error,
Ctrl-C, SIGTERM), all workers are ended at once.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypedDict, TypeVar

from phi3v_data.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

EngineName: TypeAlias = Literal["local", "ray"]

ENGINE_HELP = "Where the work runs: on this machine, or as tasks of a Ray cluster."
ADDRESS_HELP = "Ray cluster, or auto on one of its machines. Default: $RAY_ADDRESS, else a Ray of this machine's own."
RESOURCES_HELP = "Resources of one task on Ray, such as CPU=2,memory=4GB,fast_disk=1. Default: CPU=1."


class EngineSettings(TypedDict, total=False):
    """Keyword arguments of each function whose work can run on Ray, apart from `workers`.

    engine: `local` or `ray`. ray_address: a cluster. ray_resources: of one task, `CPU=2,memory=4GB`.
    """

    engine: EngineName
    ray_address: str | None
    ray_resources: str | None


Tick: TypeAlias = Callable[[int], None]
"""Called with the index of an item in its task, before work on the item begins."""


class Work(Protocol[T_contra, R_co]):
    """The work done on each task; pickled once per worker, unless workers are forked."""

    def open(self) -> AbstractContextManager[Callable[[T_contra, Tick], R_co]]:
        """Load what tasks need, once in each process; returns a context manager that gives what runs a task."""
        ...


@dataclass(frozen=True, slots=True)
class FunctionWork(Generic[T, R]):
    """Work that is one function: `function(task)`. To be pickled, it must be a function of a module or a `partial`."""

    function: Callable[[T], R]

    @contextmanager
    def open(self) -> Iterator[Callable[[T, Tick], R]]:
        """Nothing is loaded."""
        yield lambda task, tick: self.function(task)


@dataclass(frozen=True, slots=True)
class Shared:
    """Files that tasks need wherever they run: `read` are files or folders, `written` folders in which tasks write."""

    read: tuple[Path, ...] = ()
    written: tuple[Path, ...] = ()


NOTHING_SHARED = Shared()


class WorkerDiedError(UserError):
    """A worker ended without giving a result.

    Attributes:
        how: `was killed by SIGSEGV`, `ended with exit code 3`.
        task: what it was given.
        index: the item of the task that it was at; None if no item was begun, or the engine cannot tell.
    """

    def __init__(self, how: str, task: Any, index: int | None) -> None:
        super().__init__(f"a worker {how}; run the same command again, with fewer --workers if memory ran out")
        self.how = how
        self.task = task
        self.index = index


class Engine(Protocol):
    """Runs tasks."""

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
        """Each task with its result.

        Args:
            work: what is done to each.
            tasks: asked for one at a time, when a worker is free for it.
            in_order: give results in the order of tasks; else as they come.
            on_death: gives the result of a task whose worker died, in whose place a new one is started; left out, the
                death is raised.
            ticked: called now and then with the number of items that the running tasks have come to.
            shared: what a worker on another machine must see as this one does.

        Raises:
            UserError: a machine does not see it.
            WorkerDiedError: a worker died, if there is no `on_death`.
            Exception: whatever the work raises.
        """
        ...
