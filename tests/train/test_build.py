"""A run is built, then driven: each can be called by itself."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from colour_sets import colour_directory
from run_dirs import read_lines, settings_for
from safetensors.torch import load_file

from phi3v_train.build import BuiltRun, build_run
from phi3v_train.plan import make_plan
from phi3v_train.run import drive, run
from phi3v_train.settings import resolve
from phi3v_train.start import find_start
from phi3v_train.training.parallel.single import SingleEngine


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("colours"), rows=8)


def built(data_dir: Path, out: Path, stack: ExitStack, **changes: Any) -> BuiltRun:
    plan = make_plan(resolve(settings_for(data_dir, out, **changes)))
    return build_run(plan, find_start(plan), stack, quiet=True)


def test_building_takes_no_step_and_driving_takes_them_all(data_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with ExitStack() as stack:
        ready = built(data_dir, out, stack)
        assert isinstance(ready.engine, SingleEngine)
        assert ready.session.step == 0
        assert not ready.session.has_ended
        assert list(out.iterdir()) == []
        outcome = drive(ready)
    assert (outcome.step, outcome.stopped, outcome.already_complete) == (2, 0, False)
    assert [line["step"] for line in read_lines(out / "metrics.jsonl")] == [1, 2]
    assert (out / "complete.json").is_file()


def test_building_takes_up_the_checkpoint(data_dir: Path, tmp_path: Path) -> None:
    """Weights, counters and the loader's next step are those of the run that was stopped after two of three steps."""
    out = tmp_path / "out"
    run(resolve(settings_for(data_dir, out, max_steps=2, learning_rate=1e-3, lr_scheduler="constant")), quiet=True)
    with ExitStack() as stack:
        ready = built(data_dir, out, stack, max_steps=3, learning_rate=1e-3, lr_scheduler="constant")
        assert (ready.session.step, ready.session.samples) == (2, 8)
        saved = load_file(out / "checkpoint-000002" / "model.safetensors")
        held = dict(ready.engine.trained.model.state_dict())
        assert all(torch.equal(held[name], tensor) for name, tensor in saved.items())
        assert (out / "complete.json").is_file()  # of the shorter run: it is driving that takes the mark away
        assert drive(ready).step == 3
