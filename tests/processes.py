"""Several real processes that share a run, as a launcher on one or on several machines would start them."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from warm import Process

HERE = Path(__file__).parent / "train"
"""Folder of the scripts that are started."""

AnyProcess: TypeAlias = "Process | subprocess.Popen[str]"

MODULE = ("-m", "phi3v_train")
TIMEOUT = 240

BLOCK = 2000
"""Ports of a worker of pytest-xdist, below those that the system gives away."""

WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 11  # blocks below 32768
taken = os.getpid() % BLOCK
"""Ports of the block that were given out; it starts anywhere, as sessions of tests may run side by side."""


def free_ports(number: int = 1) -> int:
    """The first of so many ports in a row that nobody listens on now, and that no other test was given before."""
    global taken
    for _ in range(BLOCK // number):
        first = 10_000 + WORKER * BLOCK + taken % (BLOCK - number)
        taken += number
        sockets = []
        try:
            for port in range(first, first + number):
                sockets.append(socket.create_server(("127.0.0.1", port)))
            return first
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
    raise AssertionError("no free ports")


def environment(**variables: str) -> dict[str, str]:
    """Of a child: offline, one thread."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    ours = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return {**kept, **ours, **variables}


def start(
    *arguments: str | Path,
    cwd: Path | None = None,
    stdin: int | None = None,
    new_session: bool = False,
    fresh: bool = False,
    **variables: str,
) -> AnyProcess:
    """Start python with these arguments; `fresh` is an interpreter that has imported nothing, as users start it."""
    env = environment(**variables)
    if not fresh:
        return Process(*arguments, env=env, cwd=cwd, stdin=stdin, new_session=new_session)
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=new_session,
    )


def start_ranks(number: int, *arguments: str | Path, ports: int = 1, fresh: bool = False) -> list[AnyProcess]:
    """Start the processes of a group, with nobody to look after them, as on as many machines."""
    port = free_ports(ports)
    return [
        start(
            *arguments,
            fresh=fresh,
            RANK=str(rank),
            LOCAL_RANK="0",
            WORLD_SIZE=str(number),
            LOCAL_WORLD_SIZE="1",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        for rank in range(number)
    ]


def finish(processes: Sequence[AnyProcess], timeout: float = TIMEOUT) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each; none is left running."""
    try:
        results = []
        for process in processes:
            output, errors = process.communicate(timeout=timeout)
            results.append((process.returncode, output, errors))
        return results
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def run_data(*arguments: object, cwd: Path | None = None, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
    """Run `phi3v-data ARGUMENTS` in a process of its own, with the environment of this one."""
    process = Process(
        "-c", "from phi3v_data.cli.app import main; main()", *map(str, arguments), env=os.environ, cwd=cwd
    )
    ((code, output, errors),) = finish([process], timeout)
    return subprocess.CompletedProcess(arguments, code, output, errors)


def train_together(number: int, runs: Sequence[dict[str, Any]], work: Path) -> None:
    """Train runs one after another, each shared by the same `number` processes."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "runs.json").write_text(json.dumps(list(runs)))
    processes = start_ranks(number, HERE / "many_runs.py", work / "runs.json", ports=len(runs))
    for code, _, errors in finish(processes):
        assert code == 0, errors
