"""Starting processes here and on several machines, and what is said when one of them cannot go on."""

import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from colour_sets import colour_directory
from processes import HERE, MODULE, finish, free_ports, start, start_ranks
from run_dirs import arguments, command, read_lines, settings_for, without_times

from phi3v_train.run import run as train
from phi3v_train.settings import resolve

ENDLESS: dict[str, Any] = {"max_steps": 100000, "save_steps": 2, "batch_size_per_gpu": 2}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("colours"), rows=9)


def machines(data_dir: Path, output_dir: Path, strategy: str, *more: str, **changes: Any) -> Any:
    """The same run started on two "machines" of one process each, which meet on this one."""
    options = arguments(settings_for(data_dir, output_dir, parallel=strategy, **changes))
    port = str(free_ports())
    return [
        start(
            *(*MODULE, "run", *options, "--skip_validation", "--num_processes", "1", "--nnodes", "2"),
            *("--node_rank", str(rank), "--master_addr", "127.0.0.1", "--master_port", port, *more),
        )
        for rank in range(2)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "messages"),
    [
        (
            ("--learning_rate", "0.5"),
            ("--learning_rate is 0.5 on rank 1, 0.001 on rank 0", "--learning_rate is 0.5 on rank 1, 0.001 on rank 0"),
        ),
        (("--batch_size", "3"), ("machine 1: --batch_size 3 does not divide", "--batch_size 3 does not divide")),
    ],
)
def test_machines_that_were_started_differently_end(
    data_dir: Path, tmp_path: Path, more: tuple[str, ...], messages: tuple[str, str]
) -> None:
    port = str(free_ports())
    options = arguments(settings_for(data_dir, tmp_path / "out", max_steps=4))
    results = finish(
        [
            start(
                *(*MODULE, "run", *options, "--skip_validation", "--num_processes", "1", "--nnodes", "2"),
                *("--node_rank", str(rank), "--master_addr", "127.0.0.1", "--master_port", port, *more * rank),
            )
            for rank in range(2)
        ]
    )
    for (code, _, errors), message in zip(results, messages, strict=True):
        assert code == 2, errors
        assert errors.count("error: ") == 1, errors
        assert message in errors


def wait_for_checkpoint(output_dir: Path, process: Any) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and not list(output_dir.glob("checkpoint-*/COMPLETE.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def rank_of(launcher: Any) -> Any:
    """The one process that a launcher started."""
    import psutil

    (rank,) = (child for child in psutil.Process(launcher.pid).children() if "phi3v_train" in " ".join(child.cmdline()))
    return rank


@pytest.mark.slow
def test_two_machines_are_one_run(data_dir: Path, tmp_path: Path) -> None:
    changes = {"learning_rate": 1e-4, "max_steps": 3, "batch_size_per_gpu": 1}
    train(resolve(settings_for(data_dir, tmp_path / "one", **changes)), quiet=True)
    (first, out, errors), (second, other_out, other_errors) = finish(
        machines(data_dir, tmp_path / "two", "ddp", **changes)
    )
    assert (first, second) == (0, 0), errors + other_errors
    assert errors.count("compute  cpu") == 1
    assert "complete after 3 steps" in out
    assert (other_out, other_errors) == ("", "")
    lines = [without_times(read_lines(tmp_path / name / "metrics.jsonl")) for name in ("one", "two")]
    for one, two in zip(*lines, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_death_on_one_machine_ends_the_others(data_dir: Path, tmp_path: Path, strategy: str, victim: int) -> None:
    launchers = machines(data_dir, tmp_path / "out", strategy, **ENDLESS)
    wait_for_checkpoint(tmp_path / "out", launchers[0])
    rank_of(launchers[victim]).send_signal(signal.SIGKILL)
    results = finish(launchers, timeout=60)
    for code, _, errors in results:
        assert code == 1
        assert f"The same command resumes from {tmp_path / 'out' / 'checkpoint-'}" in errors
        assert errors.count("error: ") == 1, errors
        assert "Traceback" not in errors
    assert f"rank {victim} was killed by SIGKILL" in results[victim][2]


def torchrun(*options: str) -> Any:
    return start("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", *MODULE, "run", *options)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_death_under_torchrun(data_dir: Path, tmp_path: Path, victim: int) -> None:
    import psutil

    options = arguments(settings_for(data_dir, tmp_path / "out", parallel="fsdp", **ENDLESS))
    launcher = torchrun(*options, "--skip_validation")
    wait_for_checkpoint(tmp_path / "out", launcher)
    ranks = {int(child.environ()["RANK"]): child for child in psutil.Process(launcher.pid).children()}
    ranks[victim].send_signal(signal.SIGKILL)
    ((code, _, errors),) = finish([launcher], timeout=60)
    assert code == 1
    assert errors.count("error: rank") == 1, errors
    assert errors.count(f"The same command resumes from {tmp_path / 'out' / 'checkpoint-'}") == 1, errors


@pytest.mark.slow
def test_a_death_in_a_collective(data_dir: Path, tmp_path: Path) -> None:
    """Nobody looks after these two: the one that waits for the other hears of its death by itself."""
    options = arguments(settings_for(data_dir, tmp_path / "out", parallel="fsdp", **{**ENDLESS, "max_steps": 4}))
    begin = time.monotonic()
    results = finish(start_ranks(2, HERE / "killed_rank.py", "0", "replace", "4", "run", *options, "--skip_validation"))
    assert time.monotonic() - begin < 120
    assert [results[0][0], results[1][0]] == [-9, 3], results[1][2]
    assert results[1][2].count("error: rank 1: ") == 1, results[1][2]


@pytest.mark.slow
def test_an_error_in_one_rank_under_torchrun_is_reported_once(tmp_path: Path) -> None:
    data_dir = colour_directory(tmp_path / "data", rows=80)
    image = data_dir / "images" / "train4.png"
    image.write_bytes(image.read_bytes()[:60])
    options = arguments(settings_for(data_dir, tmp_path / "out", batch_size=80, batch_size_per_gpu=10))
    ((code, _, errors),) = finish([torchrun(*options, "--skip_validation")])
    assert code == 1
    assert errors.count("train-0000000004") == 1, errors
    assert errors.count("The same command starts over") == 1, errors


SLOW_CHECK = """
import sys
import phi3v_train.run as run
run.check_data = lambda config, progress: sys.stdin.readline() and {}
from phi3v_train.cli.app import main
sys.argv = ["phi3v-train", *sys.argv[1:]]
main()
"""

IMPATIENT = """
import datetime, sys
import phi3v_train.distributed.group as group
group.MEETING, group.NOTICE = datetime.timedelta(seconds=2), datetime.timedelta(seconds=3)
from phi3v_train.cli.app import main
sys.argv = ["phi3v-train", *sys.argv[1:]]
main()
"""


@pytest.mark.slow
def test_other_machines_wait_while_the_first_one_checks_the_data(data_dir: Path, tmp_path: Path) -> None:
    """Longer than they look for it: the check here ends when the other process has said that it waits."""
    options = arguments(settings_for(data_dir, tmp_path / "out", max_steps=2, batch_size_per_gpu=1))
    port = str(free_ports())
    first = start(
        "-c", SLOW_CHECK, "run", *options, "--num_processes", "1",
        "--nnodes", "2", "--node_rank", "0", "--master_addr", "127.0.0.1", "--master_port", port,
        stdin=subprocess.PIPE,
    )  # fmt: skip
    other = start(
        "-c", IMPATIENT, "run", *options, TORCHELASTIC_USE_AGENT_STORE="True",
        RANK="1", LOCAL_RANK="0", WORLD_SIZE="2", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
    )  # fmt: skip
    assert first.stdin is not None
    assert other.stderr is not None
    said = other.stderr.readline()
    assert said == f"waiting for the other processes at 127.0.0.1:{port}, at most 30 minutes\n"
    first.stdin.write("sound\n")
    first.stdin.flush()
    results = finish([first, other])
    assert [code for code, _, _ in results] == [0, 0], results


def test_a_port_that_is_taken_is_named(data_dir: Path, tmp_path: Path) -> None:
    options = arguments(settings_for(data_dir, tmp_path / "out"))
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = command(
            "run", *options, "--num_processes", "1", "--nnodes", "2", "--master_addr", "127.0.0.1",
            "--master_port", port,
        )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1, result.stderr
    assert f"--master_port {port} cannot be opened on this machine" in result.stderr


UNREACHABLE = """
import datetime, sys
import phi3v_train.distributed.group as group
group.MEETING = datetime.timedelta(seconds=2)
from phi3v_train.cli.app import main
sys.argv = ["phi3v-train", *sys.argv[1:]]
main()
"""


def test_a_master_that_cannot_be_reached_is_named(data_dir: Path, tmp_path: Path) -> None:
    port = str(free_ports())
    options = arguments(settings_for(data_dir, tmp_path / "out"))
    process = start(
        "-c", UNREACHABLE, "run", *options, "--skip_validation",
        RANK="1", LOCAL_RANK="0", WORLD_SIZE="2", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
    )  # fmt: skip
    ((code, _, errors),) = finish([process])
    assert code == 2
    assert f"rank 1 cannot connect to the other processes at 127.0.0.1:{port}" in errors
    assert "--master_addr" in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--parallel", "fsdp"), "--parallel fsdp: there is one process to share the work; give --num_processes N"),
        (("--parallel", "ddp"), "--parallel ddp: there is one process"),
        (("--parallel", "fsdp", "--num_processes", "2", "--use_qlora"), "4-bit weights cannot be sharded"),
        (("--nnodes", "2"), "--nnodes 2: give --master_addr"),
        (("--node_rank", "1"), "--node_rank 1 of --nnodes 1: give --nnodes"),
        (("--nnodes", "2", "--node_rank", "2", "--master_addr", "x"), "the machines are numbered 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(
    data_dir: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    settings = settings_for(data_dir, tmp_path / "out")
    result = command("run", *arguments(settings), "--skip_validation", *options)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


FALLBACK = """
import sys
import torch.distributed.fsdp
from torch import nn
torch.distributed.fsdp.fully_shard = lambda module, **options: module
from phi3v_train.cli.app import main
sys.argv = ["phi3v-train", *sys.argv[1:]]
main()
"""


def test_weights_that_are_not_divided_are_an_error(data_dir: Path, tmp_path: Path) -> None:
    """As where a version of torch would quietly do something else."""
    options = arguments(settings_for(data_dir, tmp_path / "out", parallel="fsdp"))
    results = finish(start_ranks(2, "-c", FALLBACK, "run", *options, "--skip_validation"))
    assert {code for code, _, _ in results} <= {2, 3}, results
    assert 2 in {code for code, _, _ in results}
    both = "".join(errors for _, _, errors in results)
    assert both.count("--parallel fsdp: ") == 1, both
    assert "is not sharded" in both
