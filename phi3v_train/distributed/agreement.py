"""Before anything is computed, all processes compare settings, data and package versions.

Processes that were started with different ones would train a wrong model together, or wait for each other forever. They
compare through the store where they meet, before any collective call: a process that expects another world size could
not even join the group.

    phi3v/agreement/world    the number of processes that rank 0 expects
    phi3v/agreement/facts/R  what rank R was started with
    phi3v/agreement/verdict  AGREED, or the error that every process exits with
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from phi3v_data.errors import COULD_NOT_RUN, UserError
from phi3v_train.config import ParallelConfig
from phi3v_train.distributed.rank_info import RankInfo, master
from phi3v_train.launch import PORT

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

PREFIX = "phi3v/agreement"
WORLD, VERDICT, SAID, READ = f"{PREFIX}/world", f"{PREFIX}/verdict", f"{PREFIX}/said", f"{PREFIX}/read"
AGREED = "agreed"
POLL = 0.05
SHOWN_DIFFERENCES = 3
LONGEST_VALUE = 60
LEAVING = 10.0
"""Seconds in which all processes should have read why they exit."""

CONNECTING = timedelta(seconds=5)


class Fact(NamedTuple):
    """A value that all processes must agree on, and the reason for it if that helps."""

    value: str
    reason: str = ""

    def __str__(self) -> str:
        text = self.value if len(self.value) <= LONGEST_VALUE else self.value[: LONGEST_VALUE - 3] + "..."
        return f"{text} ({self.reason})" if self.reason else text


Facts = Mapping[str, Fact]


def agree(store: "Store", rank_info: RankInfo, facts: Facts, patience: timedelta) -> None:
    """Return when every process has the same facts; otherwise exit with code 2, in all processes.

    The sentence names the rank, the fact and both values; it is printed once per machine.

    Args:
        store: where the processes meet.
        rank_info: which process this is.
        facts: what it was started with, by name.
        patience: how long to wait for the others.

    Raises:
        UserError: some have not connected in time.
        RuntimeError: the store is gone.
    """
    if rank_info.is_main:
        store.set(WORLD, str(rank_info.world_size))
        verdict = judge(store, rank_info, facts, patience)
    else:
        store.wait([WORLD], patience)
        expected = int(store.get(WORLD))
        if expected != rank_info.world_size:
            refuse(
                store,
                f"rank {rank_info.rank} belongs to a run of {rank_info.world_size} processes, rank 0 to one of "
                f"{expected}: give all machines the same --nnodes and --num_processes",
            )
        store.set(f"{PREFIX}/facts/{rank_info.rank}", json.dumps(facts))
        store.wait([VERDICT], patience)
        verdict = store.get(VERDICT).decode()
    if verdict != AGREED:
        leave(store, rank_info, verdict)


def judge(store: "Store", rank_info: RankInfo, facts: Facts, patience: timedelta) -> str:
    """Rank 0: wait for the others' facts and publish the verdict, unless one of them has refused already."""
    keys = {rank: f"{PREFIX}/facts/{rank}" for rank in range(1, rank_info.world_size)}
    deadline = time.monotonic() + patience.total_seconds()
    while not store.check([VERDICT]) and not store.check(list(keys.values())):
        if time.monotonic() > deadline:
            missing = ", ".join(str(rank) for rank, key in keys.items() if not store.check([key]))
            raise UserError(f"ranks {missing} have not connected within {patience.total_seconds() / 60:.0f} minutes")
        time.sleep(POLL)
    if not store.check([VERDICT]):
        theirs = {rank: read_facts(store, key) for rank, key in keys.items()}
        refuse(store, first_difference({0: facts, **theirs}) or AGREED)
    return store.get(VERDICT).decode()


def read_facts(store: "Store", key: str) -> dict[str, Fact]:
    """The facts of another process."""
    return {name: Fact(*fact) for name, fact in json.loads(store.get(key)).items()}


def first_difference(facts: Mapping[int, Facts]) -> str:
    """A sentence on the first rank whose facts differ from rank 0's; empty if none do."""
    mine = facts[0]
    for rank, theirs in facts.items():
        names = [name for name in dict.fromkeys([*mine, *theirs]) if value_of(mine, name) != value_of(theirs, name)]
        if names:
            shown = [
                f"{name} is {theirs.get(name, 'missing')} on rank {rank}, {mine.get(name, 'missing')} on rank 0"
                for name in names[:SHOWN_DIFFERENCES]
            ]
            more = f"; {len(names) - len(shown)} more differ" if len(names) > len(shown) else ""
            return f"{'; '.join(shown)}{more}: give all machines the same command, data and packages"
    return ""


def value_of(facts: Facts, name: str) -> str | None:
    """The value that is compared; None if the process has no such fact."""
    return facts[name].value if name in facts else None


def refuse(store: "Store", sentence: str) -> None:
    """Publish a verdict, unless there is one."""
    store.compare_set(VERDICT, "", sentence)


def leave(store: "Store", rank_info: RankInfo, verdict: str) -> NoReturn:
    """Exit this process; the first one on a machine prints why.

    The store ends with the first launcher or process that holds it, so each waits until all have read the verdict.
    """
    machine = os.environ.get("GROUP_RANK", f"rank {rank_info.rank}")
    deadline = time.monotonic() + LEAVING
    try:
        if store.add(f"{SAID}/{machine}", 1) == 1:
            print(f"error: {verdict}", file=sys.stderr, flush=True)
        count = store.add(READ, 1)
        while count < rank_info.world_size and time.monotonic() < deadline:
            time.sleep(POLL)
            count = store.add(READ, 0)
    except RuntimeError:
        pass  # the others have left already
    raise SystemExit(COULD_NOT_RUN)


@contextmanager
def broadcast_refusals(parallel: ParallelConfig) -> Iterator[None]:
    """Around what may refuse to start here: the processes of other machines, which wait, exit with the reason as well.

    Rank 0 and the launcher of machine 0 need not publish it: when they exit, the others find the store closed.
    """
    try:
        yield
    except UserError as error:
        rank_info = RankInfo.from_environment()
        if rank_info.world_size > 1 and not rank_info.is_main:
            publish_verdict(*master(), f"rank {rank_info.rank}: {error}")
        elif "RANK" not in os.environ and parallel.node_rank > 0 and parallel.master_addr is not None:
            publish_verdict(
                parallel.master_addr, parallel.master_port or PORT, f"machine {parallel.node_rank}: {error}"
            )
        raise


def publish_verdict(address: str, port: int, sentence: str) -> None:
    """Publish a verdict in the store of a run; does nothing if no process waits there yet."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not in its __all__

    try:
        store: Store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=CONNECTING)
        refuse(store, sentence)
    except RuntimeError:
        return
