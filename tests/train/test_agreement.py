"""Processes that were started differently end before the first step; errors of an exchange are said by who has them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from colour_sets import colour_directory
from processes import HERE, AnyProcess, finish, free_ports, start
from run_dirs import arguments, command, settings_for

from phi3v_data.errors import UserError
from phi3v_train.distributed.agreement import Fact, first_difference
from phi3v_train.distributed.group import SingleProcess, choose_interface, refuse_missing_gpu
from phi3v_train.distributed.rank_errors import last_lines
from phi3v_train.distributed.rank_info import RankInfo
from phi3v_train.launch import FOLLOWED, processes_to_start, wait
from phi3v_train.parse_config import parse_config


class Job(NamedTuple):
    """Options of rank 1 alone, code that every process runs first, options of both."""

    more: tuple[str, ...] = ()
    before: str = ""
    changes: dict[str, Any] | None = None


class Done(NamedTuple):
    """Exit codes by rank, and what each process said on stderr."""

    codes: list[int]
    errors: list[str]


LITTLE_MEMORY = """
import os
import phi3v_train.models.machine as machine
if os.environ["RANK"] == "1":
    machine.available_memory = lambda: 1_000_000
"""

OTHER_PILLOW = """
import os
import phi3v_train.distributed.facts as facts
real = facts.version
if os.environ["RANK"] == "1":
    facts.version = lambda name: "11.0.1" if name == "Pillow" else real(name)
"""

LARGER_WORLD = """
import os
if os.environ["RANK"] == "1":
    os.environ["WORLD_SIZE"] = "4"
"""

DISAGREEMENTS = {
    "settings": Job(("--learning_rate", "0.002", "--seed", "5")),
    "batch size": Job(("--batch_size", "8")),
    "batch size of one machine": Job(("--batch_size", "3")),
    "steps": Job(("--max_steps", "7")),
    "data": Job(("--data_dir", "OTHER")),
    "held-out data": Job(("--data_dir", "OTHER_VAL"), changes={"eval_before": True}),
    "strategy": Job(before=LITTLE_MEMORY),
    "packages": Job(before=OTHER_PILLOW),
    "number of processes": Job(before=LARGER_WORLD, changes={"batch_size": 8}),
}

MISMATCHED = """
import os, torch, torch.distributed as dist
from phi3v_train.training.loop import TrainLoop
size = 4 if os.environ["RANK"] == "1" else 8
TrainLoop.step = lambda *ignored: dist.all_reduce(torch.ones(size))
"""

OUT_OF_MEMORY = """
import os, torch.distributed as dist
from phi3v_train.training.loop import TrainLoop
def fail(*ignored):
    raise dist.DistBackendError('''NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled cuda error, NCCL version 2.27.5
ncclUnhandledCudaError: Call to CUDA function failed.
Last error:
Cuda failure 2 'out of memory'
frame #0: c10::Error::Error(c10::SourceLocation) (0x7f)''')
if os.environ["RANK"] == "1":
    TrainLoop.step = fail
"""

IN_AN_EXCHANGE = """
import os, torch, torch.distributed as dist
from phi3v_data.errors import UserError
from phi3v_train.training.loop import TrainLoop
def fail(*ignored):
    global work
    work = dist.all_reduce(torch.ones(8), async_op=True)
    raise UserError("rank 1 has had enough")
def wait(*ignored):
    dist.recv(torch.ones(8), src=1)
TrainLoop.step = fail if os.environ["RANK"] == "1" else wait
"""

ONLY_TO_RANK_0 = """
from phi3v_train.distributed.agreement import Fact, first_difference
from phi3v_train.distributed.group import DistributedGroup
real = DistributedGroup.all_gather
def all_gather(self, value):
    result = real(self, value)
    assert "'prediction'" not in repr(result), "predictions reach every process"
    return result
DistributedGroup.all_gather = all_gather
"""

ERRORS = {
    "mismatched": Job(before=MISMATCHED),
    "out of memory": Job(before=OUT_OF_MEMORY),
    "in an exchange": Job(before=IN_AN_EXCHANGE),
    "predictions": Job(before=ONLY_TO_RANK_0, changes={"eval_before": True, "max_new_tokens": 2, "max_steps": 1}),
}
JOBS = DISAGREEMENTS | ERRORS


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("colours"), rows=9)


def other(data_dir: Path, directory: Path, split: str) -> str:
    """A copy of a set with one other answer."""
    shutil.copytree(data_dir, directory)
    file = directory / f"colours_{split}.jsonl"
    file.write_text(file.read_text().replace('"assistant": "red"', '"assistant": "green"', 1))
    return str(directory)


@pytest.fixture(scope="module")
def done(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """Every job, in forks of one process; nobody ends the second rank when the first has ended."""
    work = tmp_path_factory.mktemp("jobs")
    others = {
        "OTHER": other(data_dir, work / "other", "train"),
        "OTHER_VAL": other(data_dir, work / "other_val", "val"),
    }
    jobs = []
    for number, job in enumerate(JOBS.values()):
        settings = settings_for(data_dir, work / f"out{number}", **{"max_steps": 4, **(job.changes or {})})
        del settings["data_dir"]
        here = ["--data_dir", str(data_dir)]
        more = [others.get(each, each) for each in job.more]
        jobs.append(
            {
                "name": f"job{number}",
                "arguments": [*arguments(settings), "--skip_validation"],
                "processes": 2,
                "kill": None,
                "before": job.before,
                "more": [here, more if "--data_dir" in more else [*here, *more]],
            }
        )
    (work / "jobs.json").write_text(json.dumps(jobs))
    process = start(HERE / "forked_runs.py", work / "jobs.json", work, TORCH_CPP_LOG_LEVEL="ERROR")
    ((code, output, errors),) = finish([process], timeout=300)
    assert code == 0, errors
    codes = json.loads(output.splitlines()[-1])
    return {
        name: Done(codes[number], [(work / f"job{number}-{rank}.err").read_text() for rank in range(2)])
        for number, name in enumerate(JOBS)
    }


def errors_in(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error: ")]


SAME = "give all machines the same command, data and packages"
SAID = {
    "settings": ["--learning_rate is 0.002 on rank 1, 0.001 on rank 0; --seed is 5 on rank 1, 0 on rank 0", SAME],
    "batch size": ["--batch_size is 8 on rank 1, 4 on rank 0", SAME],
    "batch size of one machine": ["--batch_size 3 does not divide into --batch_size_per_gpu 2 on 2 processes"],
    "steps": ["--max_steps is 7 on rank 1, 4 on rank 0; number of steps is 7 on rank 1, 4 on rank 0", SAME],
    "data": ["training data is train 9 rows (content ", ") at num_crops 1 on rank 1, train 9 rows (content ", SAME],
    "held-out data": ["evaluation data is val 3 rows (content ", SAME],
    "strategy": ["--parallel is fsdp (", " do not fit in 0.0 GB) on rank 1, ddp (", SAME],
    "packages": ["package Pillow is 11.0.1 on rank 1, ", SAME],
    "number of processes": ["rank 1 belongs to a run of 4 processes, rank 0 to one of 2", "--nnodes and --num_proc"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DISAGREEMENTS)
def test_processes_that_were_started_differently_end_before_the_first_step(done: dict[str, Done], name: str) -> None:
    """With exit code 2 on every rank, each of which stands for a machine here and says why."""
    codes, errors = done[name]
    assert codes == [2, 2], errors
    for text in errors:
        assert "Traceback" not in text
        (line,) = errors_in(text)
        position = 0
        for part in SAID[name]:
            position = line.index(part, position) + len(part)
        assert len(line) <= 300


@pytest.mark.parametrize(("number", "expected"), [(1, ""), (3, ""), (4, "; 1 more differ"), (6, "; 3 more differ")])
def test_three_differences_are_named_and_the_rest_counted(number: int, expected: str) -> None:
    mine = {f"--option{index}": Fact("0") for index in range(6)}
    theirs = mine | {f"--option{index}": Fact("1") for index in range(number)}
    named = "; ".join(f"--option{index} is 1 on rank 2, 0 on rank 0" for index in range(min(number, 3)))
    assert first_difference({0: mine, 1: mine, 2: theirs}) == (
        f"{named}{expected}: give all machines the same command, data and packages"
    )
    assert first_difference({0: mine, 1: mine}) == ""


@pytest.mark.slow
def test_processes_in_different_exchanges_say_so(done: dict[str, Done]) -> None:
    """gloo ends the one that receives too much, with its error; the other one points there."""
    codes, errors = done["mismatched"]
    assert codes == [FOLLOWED, -signal.SIGABRT], errors
    assert errors_in(errors[0]) == ["error: rank 0: rank 1 of this run has exited; its last lines may say why"]
    assert "Is there a distributed collective mismatch" in errors[1]


def test_a_mismatch_that_is_an_error_is_shown_with_advice() -> None:
    error = RuntimeError("Detected mismatch between collectives on ranks. Rank 0 is running collective: ALLREDUCE")
    assert (
        last_lines(error) == f"RuntimeError: {error}; the processes were not in the same exchange; please report this"
    )


@pytest.mark.slow
def test_an_error_of_nccl_is_shown_where_nobody_has_died(done: dict[str, Done]) -> None:
    codes, errors = done["out of memory"]
    assert codes == [FOLLOWED, 1]
    assert errors_in(errors[0]) == []
    (line,) = errors_in(errors[1])
    assert line == (
        "error: rank 1: DistBackendError: ncclUnhandledCudaError: Call to CUDA function failed. Last error: Cuda "
        "failure 2 'out of memory'; lower --batch_size_per_gpu, or see which other program uses the GPU"
    )


@pytest.mark.slow
def test_a_rank_with_an_error_ends_the_one_that_waits_for_it(done: dict[str, Done]) -> None:
    """Silently: the error has been said."""
    codes, errors = done["in an exchange"]
    assert codes == [FOLLOWED, 1]
    assert [errors_in(text) for text in errors] == [[], ["error: rank 1: rank 1 has had enough"]]


@pytest.mark.slow
def test_predictions_are_gathered_to_rank_0_only(done: dict[str, Done]) -> None:
    codes, errors = done["predictions"]
    assert codes == [0, 0], errors


def start_pair(code: str) -> list[AnyProcess]:
    """Two processes of one machine that run the same code."""
    port = str(free_ports())
    return [
        start("-c", code, stdin=subprocess.PIPE, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
              LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        for rank in range(2)
    ]  # fmt: skip


LEFT = """
import datetime, sys, torch, torch.distributed as dist
import phi3v_train.distributed.group as module
from phi3v_train.cli.app import leave
from phi3v_train.distributed.rank_info import RankInfo

dist.destroy_process_group = lambda: print("destroyed, which on GPUs waits for exchanges that nobody joins")
module.TIMEOUT = datetime.timedelta(seconds=60)
place = RankInfo.from_environment()
try:
    with module.make_group(place, torch.device("cpu")) as group:
        rank = place.rank
        print(group.all_gather(rank), group.gather_to_main(rank), group.broadcast(rank), group.sum([1, 0.5]))
        if place.is_main:
            dist.recv(torch.ones(8), src=1)
        raise ValueError("an error of rank 1")
except (RuntimeError, ValueError) as error:
    print(str(error).split("] ")[-1].split(" [")[0], flush=True)
sys.stdin.readline()
leave(SystemExit(0))
"""


def test_a_group_is_aborted_after_an_error_while_another_rank_waits_in_an_exchange() -> None:
    """The one with the error lives on here, and the other one still ends at once, not after its time is over."""
    first, second = start_pair(LEFT)
    assert first.stdout is not None
    lines = [first.stdout.readline(), first.stdout.readline()]
    assert lines == ["[0, 1] [0, 1] 0 [2.0, 1.0]\n", "Connection closed by peer\n"]
    assert second.poll() is None
    results = finish([first, second])
    assert [code for code, _, _ in results] == [0, 0], results
    assert results[1][1] == "[0, 1] [] 0 [2.0, 1.0]\nan error of rank 1\n"


SLOW = """
import datetime, time, torch, torch.distributed as dist
import phi3v_train.distributed.group as module
from phi3v_train.distributed.rank_info import RankInfo

module.TIMEOUT = datetime.timedelta(seconds=8)
place = RankInfo.from_environment()
with module.make_group(place, torch.device("cpu")) as group:
    if place.is_main:
        time.sleep(11)  # saves
    group.barrier()
    dist.all_reduce(torch.ones(4))
"""


@pytest.mark.slow
def test_a_slow_rank_is_waited_for_longer_than_a_collective_call_may_take() -> None:
    results = finish(start_pair(SLOW))
    assert [code for code, _, _ in results] == [0, 0], results


def test_gloo_uses_the_interface_that_leads_to_the_main_process(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {name for _, name in socket.if_nameindex()}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # of documentation, by the default route
        except OSError:
            pytest.skip("this machine has no network")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    for name, value in {"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "192.0.2.1"}.items():
        monkeypatch.setenv(name, value)
    choose_interface()
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    choose_interface()
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    monkeypatch.setenv("MASTER_ADDR", "192.0.2.1")
    choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] in names - {"lo"}
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match=r"--num_processes 3: this machine has 2 GPUs, .*give at most 2, or"):
        processes_to_start(parse_config({"num_processes": 3}))
    assert processes_to_start(parse_config({"num_processes": 2})) == 2
    assert processes_to_start(parse_config({})) == 2
    assert processes_to_start(parse_config({"num_processes": 3, "device": "cpu"})) == 3
    refuse_missing_gpu(RankInfo(5, 1, 8), 2)
    with pytest.raises(UserError, match="rank 6: process 3 of this machine, which has 2 GPUs"):
        refuse_missing_gpu(RankInfo(6, 2, 8), 2)


def test_a_taken_port_is_named_on_one_machine_too(data_dir: Path, tmp_path: Path) -> None:
    options = arguments(settings_for(data_dir, tmp_path / "out"))
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = command("run", *options, "--num_processes", "2", "--master_port", port)
        rank = start(
            *("-m", "phi3v_train", "run", *options, "--skip_validation"),
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
        )  # fmt: skip
        ((code, _, errors),) = finish([rank])
    assert result.returncode == 2
    assert result.stderr == (
        f"error: --master_port {port} cannot be opened on this machine (is another run using it?); give another one\n"
    )
    assert code == 2
    assert f"error: port {port} is taken on this machine" in errors


def test_a_barrier_is_an_exchange_of_all_processes() -> None:
    exchanged = []

    class Recording(SingleProcess):
        def all_gather(self, value: Any) -> list[Any]:
            exchanged.append(value)
            return super().all_gather(value)

    Recording().barrier()
    assert exchanged == [None]


class Ending:
    """Like a process that exits with `code` when it is asked for the `polls`-th time."""

    def __init__(self, code: int, polls: int) -> None:
        self.code, self.polls = code, polls

    def poll(self) -> int | None:
        self.polls -= 1
        return self.code if self.polls <= 0 else None


@pytest.mark.parametrize("code", [1, 2])
def test_the_process_that_knows_the_cause_is_waited_for(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A process that lost the connection to the others may exit before the one with the error."""
    processes: Any = [Ending(FOLLOWED, 1), Ending(code, 4)]
    assert wait(processes) == code
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("code", "alone", "message"),
    [
        ("import os; os.kill(os.getpid(), 7)", True, "rank 4 was killed by SIGBUS, as when /dev/shm is full"),
        ("import os; os.abort()", True, "rank 4 was killed by SIGABRT after the error in its last lines"),
        (f"raise SystemExit({FOLLOWED})", True, "rank 4 lost the connection to the others"),
        (f"raise SystemExit({FOLLOWED})", False, ""),
    ],
)
def test_the_launcher_says_why_a_run_ends(
    code: str, alone: bool, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where another machine has the cause, its launcher says so."""
    assert signal.SIGBUS == 7
    assert wait([subprocess.Popen([sys.executable, "-c", code])], 4, alone=alone) == 1
    said = capsys.readouterr().err
    assert message in said if message else said == ""
