"""Values that DeepSpeed is started with, from a file and the settings of a run."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from run_dirs import settings_for

from phi3v_data.errors import UserError
from phi3v_train.settings import resolve
from phi3v_train.training.parallel.deepspeed_config import RunShape, resolve_deepspeed

pytestmark = pytest.mark.skipif(
    find_spec("deepspeed") is None,
    reason="deepspeed is not installed: pip install -c constraints.txt -e '.[deepspeed]' in a clone of phi3v",
)


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def filled(tmp_path: Path, file: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    optim = resolve(
        settings_for(tmp_path, tmp_path / "out", max_grad_norm=0.25, batch_size=12, batch_size_per_gpu=2)
    ).config.optim
    shape = RunShape(optim, "bf16", "cpu", hidden_size=64, world_size=2, accumulation=3, total_steps=10)
    path = None
    if file is not None:
        path = tmp_path / "ds.json"
        path.write_text(json.dumps(file))
    return resolve_deepspeed("zero2", path, replace(shape, **changes))


@pytest.mark.parametrize("file", [None, {}, {"gradient_clipping": "auto", "train_batch_size": 12}])
def test_what_a_file_leaves_out_follows_from_the_run(tmp_path: Path, file: dict[str, Any] | None) -> None:
    config = filled(tmp_path, file)
    assert config["gradient_clipping"] == 0.25
    assert config["train_micro_batch_size_per_gpu"] == 2
    assert config["gradient_accumulation_steps"] == 3
    assert config["train_batch_size"] == 12
    assert config["zero_optimization"]["stage"] == 2
    assert (config["bf16"]["enabled"], config["fp16"]["enabled"]) == (True, False)
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}


def test_formats_of_numbers(tmp_path: Path) -> None:
    config = filled(tmp_path, dtype="fp32")
    assert (config["bf16"]["enabled"], config["fp16"]["enabled"]) == (False, False)
    assert "data_types" not in config


def test_the_schedule_of_a_file_is_that_of_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scheduler\.type OneCycle contradicts --lr_scheduler linear"):
        filled(tmp_path, {"scheduler": {"type": "OneCycle"}})
    with pytest.raises(UserError, match=r"gradient_clipping 1\.0 contradicts --max_grad_norm 0.25"):
        filled(tmp_path, {"gradient_clipping": 1.0})
