"""SIGTERM, Ctrl-C and hooks end a run after a step: saved, resumable to the bit, with the right exit code."""

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from colour_sets import colour_directory
from processes import MODULE, AnyProcess, finish, free_ports, start
from run_dirs import arguments, read_lines, settings_for, without_times
from safetensors.torch import load_file

from phi3v_train.evaluation.generate import Generator
from phi3v_train.run import Outcome, run
from phi3v_train.settings import resolve
from phi3v_train.training.checkpoints import list_checkpoints

ENDLESS: dict[str, Any] = {"max_steps": 100000, "save_steps": 100000, "skip_validation": True}
STOPPING = "stopping after this step, with a checkpoint; a second signal ends the run at once"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("colours"), rows=9)


def short(data_dir: Path, output_dir: Path, *hooks: Any, **changes: Any) -> Outcome:
    settings = settings_for(data_dir, output_dir, **{"max_steps": 4, "save_steps": 100, **changes})
    return run(resolve(settings), quiet=True, hooks=hooks)


def weights(output_dir: Path) -> dict[str, bytes]:
    tensors = load_file(output_dir / "model" / "model.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def whole(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps that nothing stopped."""
    output_dir = tmp_path_factory.mktemp("whole") / "out"
    assert short(data_dir, output_dir).step == 4
    return output_dir


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_its_step_and_the_next_start_ends_with_the_same_bits(
    data_dir: Path, whole: Path, tmp_path: Path, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    def send(line: Mapping[str, Any]) -> bool:
        if line["step"] == 1:  # heard of in the second step
            os.kill(os.getpid(), number)
        return False

    out = tmp_path / "out"
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    outcome = short(data_dir, out, send)
    assert (outcome.stopped, outcome.step, outcome.unsaved) == (number, 2, False)
    assert capfd.readouterr().err == f"\n{STOPPING}\n"
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert [each.step for each in list_checkpoints(out)] == [2]
    assert not (out / "model").exists()
    assert not (out / "complete.json").exists()
    assert [line["step"] for line in read_lines(out / "metrics.jsonl")] == [1, 2]
    assert short(data_dir, out).step == 4
    assert without_times(read_lines(out / "metrics.jsonl")) == without_times(read_lines(whole / "metrics.jsonl"))
    assert weights(out) == weights(whole)


def test_a_signal_during_an_evaluation_leaves_it_for_the_next_start(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of the step is written first, and answers that are there are not generated again."""
    calls: list[int] = []
    original = Generator.__call__

    def generate(self: Generator, prompts: Any) -> Any:
        calls.append(len(prompts))
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, prompts)

    monkeypatch.setattr(Generator, "__call__", generate)
    changes: dict[str, Any] = {"eval_steps": 2, "eval_batch_size": 1, "max_new_tokens": 1, "max_steps": 3}
    outcome = short(data_dir, tmp_path / "out", **changes)
    assert (outcome.stopped, outcome.step) == (signal.SIGTERM, 2)
    assert [each.step for each in list_checkpoints(tmp_path / "out")] == [2]
    assert [line["step"] for line in read_lines(tmp_path / "out" / "metrics.jsonl")] == [1]
    assert short(data_dir, tmp_path / "out", **changes).step == 3
    assert len(calls) == 3, "three rows are evaluated at step 2, one answer before the stop and two after"
    lines = read_lines(tmp_path / "out" / "metrics.jsonl")
    assert [(line["step"], "eval_accuracy" in line) for line in lines] == [(1, False), (2, True), (3, False)]


def test_a_signal_before_the_first_step_promises_no_checkpoint(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []
    original = Generator.__call__

    def generate(self: Generator, prompts: Any) -> Any:
        calls.append(len(prompts))
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, prompts)

    monkeypatch.setattr(Generator, "__call__", generate)
    outcome = short(data_dir, tmp_path / "out", eval_before=True, eval_batch_size=1, max_new_tokens=1)
    assert (outcome.stopped, outcome.step) == (signal.SIGTERM, 0)
    assert capfd.readouterr().err.splitlines() == [
        "",
        "stopping; nothing has been trained yet, so the same command starts over; a second signal ends the run at once",
    ]
    assert list_checkpoints(tmp_path / "out") == []


def test_fewer_steps_than_a_run_already_has_are_reported(
    data_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of a run that was stopped, and of one that is complete."""

    def send(line: Mapping[str, Any]) -> bool:
        if line["step"] == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    constant = {"lr_scheduler": "constant", "warmup_steps": 0}
    short(data_dir, tmp_path / "out", send, **constant)
    [checkpoint] = list_checkpoints(tmp_path / "out")
    assert checkpoint.step == 2
    capfd.readouterr()
    warning = (
        f"warning: {tmp_path / 'out'} is already past step 1: nothing is trained, and its model is that of step 2; "
        "--overwrite starts over, another --output_dir keeps it"
    )
    for complete in (False, True):
        outcome = short(data_dir, tmp_path / "out", max_steps=1, **constant)
        assert (outcome.step, outcome.already_complete) == (2, complete)
        assert capfd.readouterr().err.splitlines() == [warning]


def test_a_hook_may_end_a_run_which_is_then_complete(data_dir: Path, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def end(line: Mapping[str, Any]) -> bool:
        seen.append(dict(line))
        return "eval_accuracy" in line

    out = tmp_path / "out"
    changes = {"eval_steps": 2, "eval_after": True, "max_new_tokens": 1}
    outcome = short(data_dir, out, end, **changes)
    assert (outcome.step, outcome.stopped) == (2, 0)
    assert outcome.after is not None
    assert outcome.after["step"] == 2
    assert [line["step"] for line in seen] == [1, 2]
    assert [line["step"] for line in read_lines(out / "metrics.jsonl")] == [1, 2]
    done = json.loads((out / "complete.json").read_text())
    assert (done["step"], done["total_steps"], done["ended"]) == (2, 4, True)
    assert list_checkpoints(out)[-1].state()["ended"] is True
    assert (out / "model" / "model.safetensors").exists()
    assert short(data_dir, out, **changes).already_complete
    (out / "complete.json").unlink()  # as if killed while it wrote the model
    again = short(data_dir, out, **changes)
    assert (again.step, again.already_complete) == (2, False)
    assert (out / "complete.json").exists()
    constant = {"lr_scheduler": "constant", "warmup_steps": 0}
    short(data_dir, tmp_path / "more", lambda line: True, **constant)
    assert short(data_dir, tmp_path / "more", max_steps=5, **constant).step == 5, "more steps are asked for"


class Clock:
    """Of one time only, until something is added to `now`."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """That of a session."""
    made = Clock()
    monkeypatch.setattr("phi3v_train.training.session.time", made)
    return made


def test_save_minutes_saves_by_the_clock(data_dir: Path, tmp_path: Path, clock: Clock) -> None:
    """A clock that gains 70 s with each look at it after a step."""

    def tick(line: Mapping[str, Any]) -> bool:
        clock.now += 70
        saved.append([each.step for each in list_checkpoints(tmp_path / "out")])
        return False

    saved: list[list[int]] = []
    short(data_dir, tmp_path / "out", tick, max_steps=6, save_minutes=2, save_total_limit=5)
    assert saved == [[], [], [3], [3], [3, 5], [3, 5, 6]]


def test_the_plot_is_drawn_once_a_minute_and_when_the_run_ends(
    data_dir: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 25 s, each with a checkpoint, that of step 7 in the second start: the first one is stopped after 6."""
    drawn: list[int] = []

    def draw(metrics: list[dict[str, Any]], path: Path, title: str) -> None:
        drawn.append(metrics[-1]["step"])

    monkeypatch.setattr("phi3v_train.training.session.draw_loss", draw)

    def tick(line: Mapping[str, Any]) -> bool:
        clock.now += 25
        if line["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)  # heard of in the sixth step
        return False

    changes = {"max_steps": 7, "save_steps": 1}
    assert short(data_dir, tmp_path / "out", tick, **changes).stopped == signal.SIGTERM
    assert drawn == [3, 6]
    assert short(data_dir, tmp_path / "out", tick, **changes).step == 7
    assert drawn == [3, 6, 7]


def wait_for_a_step(output_dir: Path, process: AnyProcess) -> None:
    while process.poll() is None:
        try:
            if (output_dir / "metrics.jsonl").stat().st_size:
                return
        except FileNotFoundError:
            pass
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue


@pytest.mark.slow
def test_a_killed_run_with_workers_leaves_no_warning(data_dir: Path, tmp_path: Path) -> None:
    settings = settings_for(data_dir, tmp_path / "out", **{**ENDLESS, "num_workers": 1})
    process = start(*MODULE, "run", *arguments(settings))
    wait_for_a_step(tmp_path / "out", process)
    tracker = [each for each in psutil.Process(process.pid).children() if "resource_tracker" in str(each.cmdline())]
    assert len(tracker) == 1
    process.kill()
    ((code, _, errors),) = finish([process])  # the tracker holds the pipe to its end
    assert code == -signal.SIGKILL
    assert "leaked" not in errors
    assert "Warning" not in errors


SLOW_SAVE = """
import sys
from phi3v_train.training.session import Session
def save(self, line):
    print("saving", flush=True)
    sys.stdin.readline()
Session.save = save
from phi3v_train.cli.app import main
sys.argv = ["phi3v-train", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow), (signal.SIGINT, 130)]
)
def test_a_second_signal_ends_the_run_at_once(data_dir: Path, tmp_path: Path, number: int, code: int) -> None:
    settings = settings_for(data_dir, tmp_path / "out", **ENDLESS)
    process = start("-c", SLOW_SAVE, "run", *arguments(settings), stdin=subprocess.PIPE)
    wait_for_a_step(tmp_path / "out", process)
    process.send_signal(number)
    assert process.stdout is not None
    assert process.stdout.readline() == "saving\n"
    process.send_signal(number)
    assert process.wait(60) == code
    ((_, _, errors),) = finish([process])
    assert "Traceback" not in errors
    assert not list_checkpoints(tmp_path / "out")


@pytest.mark.parametrize(
    ("number", "code", "processes"),
    [
        (signal.SIGTERM, 143, 2),
        pytest.param(signal.SIGINT, 130, 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, 1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_every_process_of_a_job_stops_it_in_order(
    data_dir: Path, tmp_path: Path, number: int, code: int, processes: int
) -> None:
    """As a cluster or a terminal sends it: launcher, ranks, workers and their fork server get it, and the run saves."""
    settings = settings_for(data_dir, tmp_path / "out", **{**ENDLESS, "num_workers": 1, "num_processes": processes})
    process = start(*MODULE, "run", *arguments(settings), new_session=True)
    wait_for_a_step(tmp_path / "out", process)
    os.killpg(process.pid, number)
    ((found, out, errors),) = finish([process])
    (checkpoint,) = list_checkpoints(tmp_path / "out")
    assert found == code, errors
    assert out == ""
    assert errors.count(STOPPING) == 1
    assert errors.endswith(f"The same command resumes from {checkpoint.path}.\n")
    for noise in ("leaked", "Traceback", "worker process", "warning", "error"):
        assert noise not in errors


@pytest.mark.slow
def test_a_signal_to_one_of_several_stops_all_and_two_end_the_launcher_at_once(data_dir: Path, tmp_path: Path) -> None:
    settings = settings_for(data_dir, tmp_path / "out", num_processes=2, **ENDLESS)
    process = start(*MODULE, "run", *arguments(settings))
    wait_for_a_step(tmp_path / "out", process)
    ranks = [each for each in psutil.Process(process.pid).children() if "phi3v_train" in str(each.cmdline())]
    ranks[1].send_signal(signal.SIGTERM)
    ((code, _, errors),) = finish([process])
    assert code == 143, errors
    assert len(list_checkpoints(tmp_path / "out")) == 1
    again = start(*MODULE, "run", *arguments(settings))
    (tmp_path / "out" / "metrics.jsonl").unlink()
    wait_for_a_step(tmp_path / "out", again)
    ranks = [each for each in psutil.Process(again.pid).children() if "phi3v_train" in str(each.cmdline())]
    again.send_signal(signal.SIGINT)
    again.send_signal(signal.SIGTERM)
    ((code, _, errors),) = finish([again])
    assert code in (130, 143)
    assert "The same command" not in errors
    psutil.wait_procs(ranks, 30)
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in ranks)


@pytest.mark.slow
def test_torchruns_processes_stop_in_order_too(data_dir: Path, tmp_path: Path) -> None:
    """They get the signal twice: from the cluster, and from torchrun."""
    settings = settings_for(data_dir, tmp_path / "out", **ENDLESS)
    process = start(
        *("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port", str(free_ports())),
        *(*MODULE, "run", *arguments(settings)),
        new_session=True,
    )
    wait_for_a_step(tmp_path / "out", process)
    os.killpg(process.pid, signal.SIGTERM)
    ((_, _, errors),) = finish([process])
    (checkpoint,) = list_checkpoints(tmp_path / "out")
    assert errors.count(STOPPING) == 1
    assert errors.count(f"The same command resumes from {checkpoint.path}.") == 1
