"""Tasks on Ray; the nodes share the file systems that the tasks read and write.

Tasks and results are small: names and numbers of rows, counts and facts; content is read and written where the task
runs. A task whose worker or node dies is run again by Ray, so work must write the same bytes every time. Before the
first task each node, and before its own each worker process, says whether it sees the files and has the same packages.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, islice
from types import FrameType
from typing import Any, Generic, NoReturn, TypeAlias, TypeVar

from phi3v_data.engine.base import NOTHING_SHARED, Shared, Work, WorkerDiedError
from phi3v_data.engine.cores import num_cores
from phi3v_data.engine.ray_watch import RayWatch, servers_of
from phi3v_data.engine.turns import AHEAD, Running, Turns
from phi3v_data.engine.witness import Witness, difference, needed_folder, package_versions, refuse_node, witnesses
from phi3v_data.engine.worker import Failure, Success, portable
from phi3v_data.errors import UserError, how_to_install
from phi3v_data.messages import shown

T = TypeVar("T")
R = TypeVar("R")

MAX_RETRIES = 2
TICK_SECONDS = 0.5
PROBE_SECONDS = 60.0
"""How long nodes may take to answer before the first task; one that is slower is asked by its own first task."""

CONNECT_SECONDS = 20.0
"""How long the head of a cluster may take to accept a connection."""

_LOOPBACK = ("127.0.0.1", "localhost")
"""For Ray, these are the machine's own address."""

_Needs: TypeAlias = tuple[tuple[Witness, ...], tuple[str, ...], str]
"""Arguments of `difference`."""

COUNT_SECONDS = 10.0
"""Time between two counts of what the cluster has, when `workers` is not given."""


@dataclass(slots=True)
class RayEngine:
    """Tasks on a cluster, or on a Ray that is started for them and stopped by `close`.

    Attributes:
        workers: most tasks at once; None: as many as the cluster has resources for.
        address: of a cluster; None: `RAY_ADDRESS`, else a Ray is started. A Ray that the process is connected to
            already is used as it is.
        resources: that each task needs.
    """

    workers: int | None
    address: str | None = None
    resources: Mapping[str, float] = field(default_factory=lambda: {"CPU": 1.0})
    _started: bool = False
    _watch: RayWatch | None = None

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
        """Each task with its result; see `Engine.run`. `ticked` is always called with 0: no items are reported."""
        first = list(islice(tasks := iter(tasks), 1))
        if not first:
            return
        ray = self._connect()
        with witnesses(shared) as wanted, _own_exit_code():
            held = Held(work, (wanted, package_versions(), needed_folder(shared)))
            self._probe(ray, held.needs)
            run: _Run[T, R] = _Run(self, ray, held, chain(first, tasks), ticked or (lambda count: None))
            try:
                yield from run.results(in_order, on_death)
            finally:
                run.stop()

    def close(self) -> None:
        """Leave the cluster, or stop the Ray that was started."""
        if self._started:
            import ray

            if self._watch is not None:
                self._watch.stop()
            with _interrupted_afterwards():
                ray.shutdown()
            self._started = False
            if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is _exit_by:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def slots(self, nodes: Sequence[Mapping[str, Any]]) -> int:
        """Tasks that nodes have resources for."""
        needed = [(name, amount) for name, amount in self.resources.items() if amount]
        return sum(
            min(int(node["Resources"].get(name, 0) / amount + 1e-9) for name, amount in needed)
            for node in nodes
            if node["Alive"]
        )

    def _connect(self) -> Any:
        os.environ.setdefault("RAY_task_oom_retries", str(MAX_RETRIES))  # Ray's own default is without end, in silence
        try:
            import ray
        except ImportError:
            raise UserError(f"--engine ray needs the package ray: {how_to_install('ray')}") from None
        if self.workers == 0:
            raise UserError("--engine ray needs at least one worker")
        if not ray.is_initialized():
            address = self.address or os.environ.get("RAY_ADDRESS") or "local"
            options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "address": address}
            if address == "local":
                options |= {"num_cpus": self.workers or num_cores(), "include_dashboard": False}
            try:
                _check_listens(address)
                with _interrupted_afterwards(), _kept_sigterm():
                    ray.init(**options)
            except (ConnectionError, RuntimeError, ValueError) as error:
                reason = str(error).strip().partition("\n")[0]
                raise UserError(
                    f"cannot connect to the Ray cluster {shown(address, 60)} ({shown(reason, 100)}): give the address "
                    "of a running one with --ray_address, or auto on one of its machines, and set RAY_AUTH_MODE=token "
                    "if it asks for a token"
                ) from error
            self._started = True
            _silence(ray)
            if not address.startswith("ray://"):  # such a process reaches the head by another one only
                self._watch = RayWatch(servers_of(ray))
        return ray

    def _probe(self, ray: Any, needs: _Needs) -> None:
        """Ask each node that can take tasks whether it sees the files and has the packages."""
        nodes = [node for node in ray.nodes() if node["Alive"]]
        able = [node for node in nodes if self.slots([node])]
        if not able:
            words = ", ".join(f"{name}={amount:g}" for name, amount in self.resources.items())
            raise UserError(
                f"none of the {len(nodes)} nodes of the Ray cluster has {shown(words, 100)}, which a task needs; "
                "start one that has, or lower --ray_resources"
            )
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ask = ray.remote(num_cpus=0, max_retries=0)(difference)
        asked = {
            ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                *needs
            ): node["NodeManagerAddress"]
            for node in able
        }
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=PROBE_SECONDS)
        bad = [(asked[answer], why) for answer in ready if (why := _answer(ray, answer))]
        if bad:
            raise refuse_node(*bad[0], more=len(bad) - 1)


class _Run(Generic[T, R]):
    """One run of tasks."""

    def __init__(
        self,
        engine: RayEngine,
        ray: Any,
        held: "Held",
        tasks: Iterator[T],
        ticked: Callable[[int], None],
    ) -> None:
        self._engine = engine
        self._ray = ray
        self._tasks = tasks
        self._ticked = ticked
        self._turns: Turns[T, R] = Turns()
        self._running: dict[Any, Running[T]] = {}
        self._limit, self._counted = 0, 0.0
        self._held = ray.put(held)
        self._remote = ray.remote(**_options(engine.resources))(run_task)

    def results(self, in_order: bool, on_death: Callable[[WorkerDiedError], R] | None) -> Iterator[tuple[T, R]]:
        """Submit tasks, and take their results."""
        self._fill()
        while self._turns.under_way:
            self._ticked(0)
            self._receive()
            for running in self._turns.finished(in_order):
                self._fill()
                yield running.task, self._turns.result(running, on_death)

    def stop(self) -> None:
        """End what is running; whatever it was at does not count."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()

    def _fill(self) -> None:
        """Submit tasks as long as there are some, and room for them and for their results."""
        limit = self._most()
        while len(self._running) < limit and len(self._turns.under_way) < AHEAD * limit:
            task = next(self._tasks, self)
            if task is self:
                return
            running = self._turns.add(task)  # type: ignore[arg-type]  # it is a task, as it is not the mark of the end
            self._running[self._remote.remote(self._held, task)] = running

    def _most(self) -> int:
        """Tasks that may be submitted at once: with the whole cluster, some wait on it, so that no node is idle."""
        if self._engine.workers is not None:
            return self._engine.workers
        if time.monotonic() - self._counted >= COUNT_SECONDS or not self._limit:
            self._counted = time.monotonic()
            self._limit = max(1, AHEAD * self._engine.slots(self._ray.nodes()))
        return self._limit

    def _receive(self) -> None:
        """Take the outcomes that have come in, waiting for a while if there are none."""
        ready, others = self._ray.wait(list(self._running), num_returns=1, timeout=TICK_SECONDS)
        if ready and others:
            ready += self._ray.wait(others, num_returns=len(others), timeout=0)[0]
        for reference in ready:
            running = self._running.pop(reference)
            running.outcome = _outcome(self._ray, reference, running.task)
        self._fill()


@dataclass(frozen=True, slots=True)
class Held:
    """The work of a run, and what each machine must see for it; pickled once."""

    work: Any
    needs: _Needs


def run_task(held: Held, task: Any) -> Success | Failure:
    """Run one task, as a local worker would."""
    try:
        if why := _checked(held.needs):
            raise refuse_node(_own_address(), why)
        with held.work.open() as run:
            return Success(run(task, _no_tick))
    except Exception as error:
        return Failure(portable(error))


@lru_cache(maxsize=4)
def _checked(needs: _Needs) -> str:
    """As `difference`, once in each process."""
    return difference(*needs)


@contextmanager
def _interrupted_afterwards() -> Iterator[None]:
    """Let Ctrl-C take effect at the end of the block: within Ray's start and stop it can be a segmentation fault."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: signals.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if signals:
        raise KeyboardInterrupt


@contextmanager
def _kept_sigterm() -> Iterator[None]:
    """Let SIGTERM do after the block what it did before; Ray's own handler prints a stack and exits with 15.

    By default it ends the process, here as an exception, so that the Ray that was started ends too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, _exit_by if before in (None, signal.SIG_DFL) else before)


def _exit_by(number: int, frame: FrameType | None) -> NoReturn:
    _exits.append(128 + number)
    sys.exit(128 + number)


_exits: list[int] = []


@contextmanager
def _own_exit_code() -> Iterator[None]:
    """Exit with the code of `_exit_by`, where Ray has made a 1 of it."""
    try:
        yield
    except SystemExit:
        if _exits:
            sys.exit(_exits[0])
        raise


def _check_listens(address: str) -> None:
    """Raise ConnectionError if nothing accepts connections at a `HOST:PORT`: Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return  # local, auto, ray://
    reason: Exception | None = None
    for name in [_own_address(), host] if host in _LOOPBACK else [host.strip("[]")]:
        try:
            socket.create_connection((name, int(port)), timeout=CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            reason = error
        else:
            return
    raise ConnectionError(f"nothing answers there: {reason}")


def _silence(ray: Any) -> None:
    """Keep Ray from printing on stdout, where the results of a command are, that a worker died: an error says so."""
    ray._private.worker.print_to_stdstream = lambda *args, **options: None


def _no_tick(item: int) -> None:
    """Items are not reported."""


def _own_address() -> str:
    import ray

    return str(ray.util.get_node_ip_address())


def _options(resources: Mapping[str, float]) -> dict[str, Any]:
    """The resources as Ray takes them."""
    own = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    options: dict[str, Any] = {own[name]: amount for name, amount in resources.items() if name in own}
    more = {name: amount for name, amount in resources.items() if name not in own}
    return options | {"resources": more, "max_retries": MAX_RETRIES}


def _answer(ray: Any, reference: Any) -> str:
    """Why a node cannot take tasks; empty if it can, or has gone."""
    try:
        return str(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        return _unloaded(error)
    except ray.exceptions.RayError:
        return ""


def _outcome(ray: Any, reference: Any, task: Any) -> Success | Failure:
    try:
        outcome: Success | Failure = ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # our code could not be loaded there
        return Failure(UserError(f"a Ray node {_unloaded(error)}"))
    except ray.exceptions.RayError as error:
        return Failure(WorkerDiedError(f"of Ray died ({type(error).__name__})", task, None))
    return outcome


def _unloaded(error: Any) -> str:
    return f"cannot load phi3v ({shown(str(error.cause), 120)}); install the same packages on all nodes"
