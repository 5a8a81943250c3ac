"""A process of several ends well even where exchanges are still under way."""

import os
import socket
import subprocess
import sys

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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={
                **os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            },
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert [out for out, _ in said] == ["done\n", "done\n"]
