"""Micro-batches are prepared and pinned beside the training step, which copies them without waiting."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from colour_sets import colour_directory
from run_dirs import settings_for

from phi3v_data.errors import UserError
from phi3v_train.build import make_loader
from phi3v_train.device import SYNC_DEBUG, change_tensors, to_device, watch_syncs
from phi3v_train.loss import Sources
from phi3v_train.models.phi3v.prepared import Prepared
from phi3v_train.plan import Plan, make_plan
from phi3v_train.run import run as train
from phi3v_train.settings import resolve
from phi3v_train.training import loop as loop_module
from phi3v_train.training.parallel import ddp

CUDA = torch.device("cuda", 0)


def planned(tmp_path: Path, **changes: Any) -> Plan:
    return make_plan(resolve(settings_for(colour_directory(tmp_path, rows=8), tmp_path / "out", **changes)))


def tensors_of(inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    change_tensors(inputs, lambda tensor: found.append(tensor) or tensor)
    return found


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[torch.Tensor, str]]:
    """Tensors that were pinned, with the name of the thread that did it; pinning itself needs a GPU."""
    found: dict[int, tuple[torch.Tensor, str]] = {}

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        found[id(copy)] = (copy, threading.current_thread().name)
        return copy

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    return found


@pytest.mark.parametrize(("num_workers", "thread"), [(1, "prepare_0"), (0, "MainThread")])
def test_all_tensors_of_a_micro_batch_are_prepared_and_pinned_by_the_loader(
    tmp_path: Path, pinned: dict[int, tuple[torch.Tensor, str]], num_workers: int, thread: str
) -> None:
    """By a thread beside the step where workers decode; without workers everything is done when it is asked for."""
    plan = planned(tmp_path, batch_size=4, batch_size_per_gpu=2, num_workers=num_workers)
    with make_loader(plan, 0, 1, pin_memory=True) as loader:
        micros = [micro for step in loader.steps(0, 2) for micro in step]
    assert len(micros) == 4
    for micro in micros:
        assert isinstance(micro.inputs["prepared"], Prepared)
        assert "labels" not in micro.inputs
        tensors = tensors_of(micro.inputs)
        assert len(tensors) >= 5
        for tensor in (*tensors, micro.token_sources):
            assert pinned[id(tensor)][1] == thread
    assert {name for _, name in pinned.values()} == {thread}


def test_a_sample_that_cannot_be_read_is_told_through_the_thread(tmp_path: Path) -> None:
    plan = planned(tmp_path, batch_size=4, batch_size_per_gpu=2, num_workers=1)
    with make_loader(plan, 0, 1, pin_memory=False) as loader:
        steps = loader.steps(0, 2)
        for image in (tmp_path / "images").rglob("*.*"):
            image.write_bytes(b"")
        with pytest.raises(UserError, match="train"):
            [micro for step in steps for micro in step]


class Copies:
    """Stands for a tensor; notes how it is copied."""

    def __init__(self) -> None:
        self.calls: list[tuple[torch.device, bool]] = []

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "Copies":
        self.calls.append((device, non_blocking))
        return self

    def map(self, change: Any) -> "Copies":
        return change(self)


@pytest.mark.parametrize(("device", "non_blocking"), [(CUDA, True), (torch.device("cpu"), False)])
def test_copies_to_a_gpu_do_not_wait(device: torch.device, non_blocking: bool) -> None:
    class Micro:
        token_sources: Any = Copies()

    inputs = Copies()
    to_device({"input": inputs}, device)
    micro: Any = Micro()
    sources: Any = Sources.of(micro, ("a", "b"), device).of_tokens
    assert inputs.calls == [(device, non_blocking)]
    assert sources.calls == [(device, non_blocking)]


def test_ddp_copies_no_inputs_to_a_gpu_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `device_ids` it would move all of them, those that belong on the host among them."""
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(ddp, "DistributedDataParallel", lambda module, **options: given.append(options))

    class Engine(ddp.DDPEngine):
        def __init__(self) -> None:
            self.loss_module = torch.nn.Linear(1, 1)  # type: ignore[assignment]
            self.group: Any = type("Group", (), {"device": CUDA})()

    Engine().wrap()
    assert given == [{"gradient_as_bucket_view": True}]


def test_torch_is_told_to_refuse_synchronisation_while_a_step_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = ["default"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with watch_syncs(CUDA):
        assert modes == ["default"]
    for mode in ("error", "warn"):
        monkeypatch.setenv(SYNC_DEBUG, mode)
        modes[:] = ["default"]
        with pytest.raises(ZeroDivisionError), watch_syncs(CUDA):
            modes.append(str(1 // 0))
        assert modes == ["default", mode, "default"]
    modes[:] = ["default"]
    with watch_syncs(torch.device("cpu")):
        assert modes == ["default"]
    monkeypatch.setenv(SYNC_DEBUG, "yes")
    with pytest.raises(UserError, match="PHI3V_SYNC_DEBUG='yes': expected error or warn"), watch_syncs(CUDA):
        pass


def test_a_run_is_watched_from_its_third_step_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first two, libraries set themselves up: DDP exchanges the order of its buckets in the second one."""
    log: list[str] = []

    class Watch:
        def __enter__(self) -> None:
            log.append("watched")

        def __exit__(self, *error: object) -> None:
            log.append("end")

    def copy(inputs: Any, device: torch.device) -> Any:
        log.append("copy")
        return inputs

    monkeypatch.setattr(loop_module, "watch_syncs", lambda device: Watch())
    monkeypatch.setattr(loop_module, "to_device", copy)
    directory = colour_directory(tmp_path / "data", rows=4)
    options = settings_for(directory, tmp_path / "out", batch_size=2, batch_size_per_gpu=2, max_steps=4, warmup_steps=0)
    train(resolve(options), quiet=True)
    assert log == ["copy", "copy", "watched", "copy", "end", "watched", "copy", "end"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("changes", [{}, {"pack": True}, {"use_lora": True, "gradient_checkpointing": True}])
def test_a_training_step_on_a_gpu_never_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setenv(SYNC_DEBUG, "error")
    directory = colour_directory(tmp_path / "data", rows=8)
    options = settings_for(
        directory, tmp_path / "out", batch_size=2, batch_size_per_gpu=2, max_steps=4, warmup_steps=0, num_workers=1
    )
    outcome = train(resolve({**options, "device": "cuda", "dtype": "bf16", **changes}), quiet=True)
    assert outcome.step == 4
    with pytest.raises(RuntimeError, match="synchronizing"), watch_syncs(CUDA):
        torch.ones(1, device=CUDA).item()
