"""A process of several ends well: its group is gone, or exchanges are still under way."""

from pathlib import Path

import pytest
import torch.distributed as dist
from processes import finish, start_ranks

from phi3v_train.distributed.rank_errors import is_of_exchange

SCRIPT = """
import torch, torch.distributed as dist
from phi3v_train.cli.app import leave
from phi3v_train.distributed.group import make_group
from phi3v_train.distributed.rank_info import RankInfo

group = make_group(RankInfo.from_environment(), torch.device("cpu"))
world = dist.group.WORLD  # as a wrapped model does, it outlives the group
works = [dist.all_reduce(torch.ones(500_000), async_op=True) for _ in range(40)]
works[20].wait()
del works
print("done")
leave(SystemExit(0))
"""

CLOSED = """
from pathlib import Path
import torch, torch.distributed as dist
from phi3v_train.distributed.group import make_group
from phi3v_train.distributed.rank_info import RankInfo

def count():
    return sum("gloo" in path.read_text() for path in Path("/proc/self/task").glob("*/comm"))

group = make_group(RankInfo.from_environment(), torch.device("cpu"))
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
model(torch.ones(2, 4)).sum().backward()
before = count()
del model
group.close()
print(before > 0, count())
"""


def test_exchanges_under_way_do_not_abort_a_process() -> None:
    results = finish(start_ranks(2, "-c", SCRIPT, fresh=True))
    assert [(code, output) for code, output, _ in results] == [(0, "done\n")] * 2, results


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted as Linux shows them")
def test_no_thread_of_a_closed_group_lives_on() -> None:
    """One that does aborts a process that has done all its work, now and then."""
    results = finish(start_ranks(2, "-c", CLOSED))
    assert [(code, output) for code, output, _ in results] == [(0, "True 0\n")] * 2, results


@pytest.mark.parametrize(("error", "expected"), [
    (RuntimeError("gloo: Connection closed by peer"), True),
    (RuntimeError("NCCL error: unhandled system error"), True),
    (RuntimeError("shape '[2]' is invalid for input of size 3"), False),
    (ValueError("NCCL"), False),
    (dist.DistNetworkError("any"), True),
])  # fmt: skip
def test_an_error_of_an_exchange_is_known_by_its_words(error: Exception, expected: bool) -> None:
    assert is_of_exchange(error) is expected
