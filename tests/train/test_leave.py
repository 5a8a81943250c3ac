"""A process of several ends well even where exchanges are still under way."""

from processes import finish, start_ranks

SCRIPT = """
import torch, torch.distributed as dist
from phi3v_train.cli.app import leave
from phi3v_train.training.parallel.group import make_group
from phi3v_train.training.parallel.place import Place

group = make_group(Place.from_environment(), torch.device("cpu"))
world = dist.group.WORLD  # as a wrapped model does, it outlives the group
works = [dist.all_reduce(torch.ones(500_000), async_op=True) for _ in range(40)]
works[20].wait()
del works
print("done")
leave(SystemExit(0))
"""


def test_exchanges_under_way_do_not_abort_a_process() -> None:
    results = finish(start_ranks(2, "-c", SCRIPT))
    assert [(code, output) for code, output, _ in results] == [(0, "done\n")] * 2, results
