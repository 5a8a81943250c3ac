"""The engine by itself: order, bounds, deaths, errors and the end of its workers."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from engine_tasks import process_id, square_or_die, wait_for_ever

from phi3v_data.engine.base import FunctionWork, Tick, WorkerDiedError
from phi3v_data.engine.local import LocalEngine

SQUARES = FunctionWork(square_or_die)


@pytest.mark.parametrize("engine", [LocalEngine(0), LocalEngine(2), LocalEngine(2, forked=True)])
def test_results_come_in_the_order_of_tasks_that_are_asked_for_when_there_is_room(engine: LocalEngine) -> None:
    asked = []

    def tasks() -> Iterator[int]:
        for number in range(10, 40):
            asked.append(number)
            yield number

    results = engine.run(SQUARES, tasks())
    assert next(results) == (10, 100)
    assert len(asked) <= 5  # two for each worker, and one in the place of what was just given
    assert list(results) == [(number, number * number) for number in range(11, 40)]


class Ticking:
    """Work that says which items of its task it has come to."""

    @contextmanager
    def open(self) -> Iterator[Callable[[int, Tick], int]]:
        def run(task: int, tick: Tick) -> int:
            for item in range(task):
                tick(item)
            return task

        yield run


def test_in_this_process_each_item_is_told_to_the_caller() -> None:
    told: list[int] = []
    assert list(LocalEngine(0).run(Ticking(), [2, 3], ticked=told.append)) == [(2, 2), (3, 3)]
    assert told == [0, 1, 0, 1, 2]


@pytest.mark.parametrize("forked", [False, True])
def test_a_worker_that_dies_costs_its_task_alone(forked: bool) -> None:
    def died(death: WorkerDiedError) -> int:
        assert (death.how, death.index) == ("was killed by SIGSEGV", None)
        return -death.task

    results = LocalEngine(2, forked).run(SQUARES, [1, 2, 3, 4], on_death=died)
    assert list(results) == [(1, 1), (2, 4), (3, -3), (4, 16)]
    with pytest.raises(WorkerDiedError, match="a worker was killed by SIGSEGV; run the same command again"):
        list(LocalEngine(1, forked).run(SQUARES, [3]))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_task_is_raised_where_results_are_taken(workers: int) -> None:
    results = LocalEngine(workers).run(SQUARES, [4, 5, 6])
    assert next(results) == (4, 16)
    with pytest.raises(ValueError, match="five is too much") as error:
        next(results)
    assert any("engine_tasks.py" in note for note in getattr(error.value, "__notes__", [])) == (workers > 0)


def test_forked_workers_have_what_the_caller_holds() -> None:
    held = {"a": 1, "b": 2}
    assert list(LocalEngine(2, forked=True).run(FunctionWork(held.__getitem__), "ba")) == [("b", 2), ("a", 1)]


def test_workers_end_when_no_more_results_are_taken(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    results = LocalEngine(2).run(FunctionWork(wait_for_ever), ["1", str(tmp_path / "pipe"), "2", "3"], in_order=False)
    next(results)
    workers = [each for each in psutil.Process().children() if "phi3v_data.engine.worker" in " ".join(each.cmdline())]
    assert len(workers) == 2
    results.close()
    assert not any(each.is_running() for each in workers)


def test_tasks_are_spread_over_processes() -> None:
    pids = {pid for _, pid in LocalEngine(2).run(FunctionWork(process_id), range(6))}
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2
