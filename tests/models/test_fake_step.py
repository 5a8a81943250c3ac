"""The training step on a device without memory: shapes, devices, number formats, and the plan's memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "model" / "fake_step.py"


def run(*command: str | Path) -> dict[str, Any]:
    """A process of its own, because a device stays registered."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def small() -> dict[str, Any]:
    return run(Path(__file__).with_name("fake_mistakes.py"))


def test_a_step_computes_on_one_device_and_in_the_compute_dtype(small: dict[str, Any]) -> None:
    assert small["outcomes"]["none"] == ["bfloat16"]
    for case in small["cases"]:
        assert list(case["products"]) == ["bfloat16"]
        assert case["gradients"] == ["torch.float32"]


def test_deliberate_mistakes_are_caught(small: dict[str, Any]) -> None:
    """A weight and two kinds of indices left on the CPU, and a product in fp32."""
    assert small["outcomes"]["linear"] == "DeviceMixUpError: mm got tensors on cpu, fakegpu:0"
    assert small["outcomes"]["index"] == "DeviceMixUpError: index_copy got tensors on cpu, fakegpu:0"
    assert small["outcomes"]["advanced index"] == "DeviceMixUpError: index got tensors on cpu, fakegpu:0"
    assert small["outcomes"]["fp32"] == ["bfloat16", "float32"]


def test_the_plans_memory_is_that_of_a_small_model_too(small: dict[str, Any]) -> None:
    """Bytes between steps are exact but for buffers; the peak within 10 %, with and without checkpointing."""
    for case in small["cases"]:
        assert case["planned"]["at_rest"] == pytest.approx(case["at_rest"], rel=1e-5)
        assert case["planned"]["peak"] == pytest.approx(case["peak"], rel=0.1), case


@pytest.mark.slow
def test_the_full_size_model_trains_on_the_fake_device_as_recorded() -> None:
    """4.1 billion parameters with adapters; FLOPs and bytes are those of the committed result."""
    (found,) = run(SCRIPT, "--method", "LoRA rank 32", "--checkpointing", "on")["cases"]
    recorded = json.loads((ROOT / "benchmarks" / "results" / "fake_step.json").read_text())
    (expected,) = (
        each for each in recorded["cases"] if each["method"] == "LoRA rank 32" and each["checkpointing"] is True
    )
    assert found["trained"] == expected["trained"]
    assert found["flop"] == expected["flop"]
    assert found["peak"] == pytest.approx(expected["peak"], rel=0.01)
