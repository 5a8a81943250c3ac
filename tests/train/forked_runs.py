"""Training runs of several processes, one run after another, forked from one process that has imported everything.

    python forked_runs.py JOBS.json WORK_DIR

JOBS.json is a list of {"name", "arguments", "processes", "kill": [RANK, OPERATION, N] or null, "before": CODE,
"more": [[ARGUMENT, ...], ...] or null}: `phi3v-train run ARGUMENTS` in so many processes, as torchrun starts them, each
of which runs CODE first; with `kill`, one of them is ended by SIGKILL right before its N-th `os.OPERATION`. With
`more`, each process has arguments of its own, they meet where this process listens, as under our launcher, and none is
ended because of another one. The output of a process is in WORK_DIR/NAME-RANK.out and .err. The exit codes of each job
are printed as JSON.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import peft  # noqa: F401 - loaded once, before the forks
from kills import fork, kill_before
from processes import free_ports

import phi3v_train.models.phi3v.modeling_phi3_v
import phi3v_train.training.session  # noqa: F401 - as above
from phi3v_train.cli.app import main as phi3v_train_main
from phi3v_train.config import ParallelConfig
from phi3v_train.launch import HOSTED, open_meeting


def run_process(job: dict[str, Any], rank: int, port: int, work: Path) -> None:
    """Runs one rank in a forked process."""
    for number, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(work / f"{job['name']}-{rank}.{kind}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    if job["processes"] > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(job["processes"]),
            "LOCAL_WORLD_SIZE": str(job["processes"]),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            **({HOSTED: str(True)} if job.get("more") else {}),
        }
    exec(job["before"], {})
    sys.argv = ["phi3v-train", "run", *job["arguments"], *(job["more"][rank] if job.get("more") else [])]
    phi3v_train_main()


def forked(job: dict[str, Any], rank: int, port: int, work: Path) -> int:
    """Fork one process of a job; its id."""

    def process() -> None:
        code: Any = 0
        if job["kill"] and job["kill"][0] == rank:
            _, operation, number = job["kill"]
            kill_before(number, operation)
        try:
            run_process(job, rank, port, work)
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)

    return fork(process)


def run_job(job: dict[str, Any], work: Path) -> list[int]:
    """Exit codes by rank; minus the signal where one ended the process. The first that fails ends the others."""
    meeting = open_meeting(ParallelConfig()) if job.get("more") else None
    port = meeting.port if meeting is not None else free_ports()
    running = {forked(job, rank, port, work): rank for rank in range(job["processes"])}
    codes = [0] * len(running)
    while running:
        pid, status = os.wait()
        rank = running.pop(pid)
        codes[rank] = os.waitstatus_to_exitcode(status)
        if codes[rank] and meeting is None:
            for other in running:
                os.kill(other, signal.SIGTERM)
    return codes


if __name__ == "__main__":
    if "deepspeed" in sys.argv[3:]:
        import deepspeed  # noqa: F401 - as above
    directory = Path(sys.argv[2])
    print(json.dumps([run_job(job, directory) for job in json.loads(Path(sys.argv[1]).read_text())]))
