"""`--optim adamw_8bit`: steps, memory, plan, and checkpoints that resume to the same bits."""

import copy
import math
import sys
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from colour_sets import colour_directory
from run_dirs import arguments, read_lines, settings_for, without_times
from safetensors.torch import load_file
from torch import nn

from phi3v_data.errors import UserError
from phi3v_train.cli.app import main
from phi3v_train.config import MethodConfig, OptimConfig, OptimName
from phi3v_train.distributed.facts import package_facts
from phi3v_train.fits import fit_table
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.parse_config import parse_config
from phi3v_train.plan import make_plan
from phi3v_train.run import run
from phi3v_train.settings import resolve
from phi3v_train.training.eight_bit import restore_8bit
from phi3v_train.training.memory import estimate
from phi3v_train.training.optimizer import make_optimizer, set_rates
from phi3v_train.training.saving import read_optimizer

CONFIG = OptimConfig(optim="adamw_8bit", learning_rate=1e-2, wd=0.5, adam_beta1=0.8, adam_epsilon=1e-3)


def named_parameters() -> list[tuple[str, nn.Parameter]]:
    """A matrix of 8,192 elements and a bias of 10, the same each time, with gradients."""
    generator = torch.Generator().manual_seed(0)
    named = [
        ("a.weight", nn.Parameter(torch.randn(64, 128, generator=generator))),
        ("a.bias", nn.Parameter(torch.ones(10))),
    ]
    for _, parameter in named:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return named


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("colours"), rows=10)


def test_the_first_step_is_adamws() -> None:
    """It is taken before moments are rounded: w - lr (wd w + g / (|g| + eps)), decay on the matrix alone."""
    named = named_parameters()
    before = [parameter.detach().clone() for _, parameter in named]
    optimizer = make_optimizer(named, CONFIG, PHI3V)
    set_rates(optimizer, 0.5)
    optimizer.step()
    for (_, parameter), old, decay in zip(named, before, (0.5, 0.0), strict=True):
        gradient = parameter.grad
        assert gradient is not None
        expected = old * (1 - 0.005 * decay) - 0.005 * gradient / (gradient.abs() + 1e-3)
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-6)


def test_later_steps_are_those_of_torch() -> None:
    """Exactly where moments stay in fp32, nearly in 8 bits; beta1 0.8 and beta2 0.95 show from the second step on."""
    named, others = named_parameters(), named_parameters()
    optimizer = make_optimizer(named, CONFIG.model_copy(update={"wd": 0.0}), PHI3V)
    other = torch.optim.AdamW([each for _, each in others], lr=1e-2, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.0)
    for each, by in ((named, optimizer), (others, other)):
        steps(each, by, 4)
    (matrix, bias), (same_matrix, same_bias) = ([each.detach() for _, each in group] for group in (named, others))
    torch.testing.assert_close(bias, same_bias, rtol=0, atol=1e-6)
    assert 0 < (matrix - same_matrix).abs().mean() < 1e-3
    assert (matrix - same_matrix).abs().mean() < 0.1 * (matrix - named_parameters()[0][1]).abs().mean()


def test_the_paged_optimizer_is_paged() -> None:
    for optim, is_paged in (("adamw_8bit", False), ("paged_adamw_8bit", True)):
        optimizer: Any = make_optimizer(named_parameters(), OptimConfig.model_validate({"optim": optim}), PHI3V)
        assert optimizer.is_paged is is_paged


def test_bytes_of_the_moments() -> None:
    """8,192 elements: two bytes each and two fp32 scales per 256 of them; few elements stay in fp32."""
    named = named_parameters()
    optimizer = make_optimizer(named, CONFIG, PHI3V)
    optimizer.step()
    (matrix, bias) = (optimizer.state[parameter] for _, parameter in named)
    assert matrix["state1"].dtype == matrix["state2"].dtype == torch.uint8
    held = sum(matrix[key].nbytes for key in ("state1", "state2", "absmax1", "absmax2"))
    assert held == 16384 + 2 * 32 * 4
    assert bias["state1"].dtype == bias["state2"].dtype == torch.float32
    size = PHI3V.size({})
    for optim, expected in (("adamw", 8), ("adamw_8bit", held / 8192), ("paged_adamw_8bit", held / 8192)):
        memory = estimate(size, MethodConfig(), dtype="bf16", tokens=100, tiles=1, optim=optim)
        assert memory.moments == math.ceil(memory.trained * expected)


def steps(named: list[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer, count: int) -> None:
    for number in range(count):
        for _, parameter in named:
            parameter.grad = (parameter.detach() + number).sin()
        optimizer.step()


def test_a_restored_state_continues_with_the_same_bits() -> None:
    """bitsandbytes' own buffers are filled (paged ones are allocated by it alone), and scales and step come along."""
    named = named_parameters()
    optimizer = make_optimizer(named, CONFIG, PHI3V)
    steps(named, optimizer, 3)
    saved = {parameter: copy.deepcopy(optimizer.state[parameter]) for _, parameter in named}
    twins = [(name, nn.Parameter(parameter.detach().clone())) for name, parameter in named]
    other: Any = make_optimizer(twins, CONFIG, PHI3V)
    allocated = []
    allocate = other.get_state_buffer

    def recorded(*args: Any, **kwargs: Any) -> torch.Tensor:
        allocated.append(allocate(*args, **kwargs))
        return allocated[-1]

    other.get_state_buffer = recorded
    restore_8bit(other, {twin: saved[parameter] for (_, twin), (_, parameter) in zip(twins, named, strict=True)})
    moments = [other.state[twin][key] for _, twin in twins for key in ("state1", "state2")]
    assert {id(each) for each in moments} == {id(each) for each in allocated}
    for each, optim in ((named, optimizer), (twins, other)):
        steps(each, optim, 3)
    for (_, parameter), (_, twin) in zip(named, twins, strict=True):
        assert other.state[twin]["step"] == 6
        assert torch.equal(parameter, twin)


def test_moments_of_another_layout_are_refused() -> None:
    """As a version with other blocks would have left them; they would be copied into the wrong scales."""
    named = named_parameters()
    optimizer = make_optimizer(named, CONFIG, PHI3V)
    optimizer.step()
    parameter = named[0][1]
    saved = {**optimizer.state[parameter], "absmax1": torch.zeros(4)}
    with pytest.raises(UserError, match=r"8-bit moments are absmax1 float32 4, .* keeps absmax1 float32 32, .*install"):
        restore_8bit(make_optimizer(named, CONFIG, PHI3V), {parameter: saved})


def test_a_resumed_run_ends_with_the_same_bits(data_dir: Path, tmp_path: Path) -> None:
    constant = {"optim": "adamw_8bit", "lr_scheduler": "constant", "warmup_steps": 0, "save_steps": 2}

    def train(name: str, max_steps: int) -> Path:
        settings = settings_for(data_dir, tmp_path / name, max_steps=max_steps, **constant)
        assert run(resolve(settings), quiet=True).step == max_steps
        return tmp_path / name

    train("stopped", 2)
    stopped, whole = train("stopped", 4), train("whole", 4)
    lines = [without_times(read_lines(each / "metrics.jsonl")) for each in (stopped, whole)]
    assert lines[0] == lines[1]
    ends = [load_file(each / "checkpoint-000004" / "model.safetensors") for each in (stopped, whole)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0].keys() | ends[1].keys())
    moments = [read_optimizer(each / "checkpoint-000004" / "optimizer.pt")["moments"] for each in (stopped, whole)]
    assert moments[0].keys() == moments[1].keys()
    name = "model.layers.1.mlp.down_proj.weight"
    assert {key: getattr(value, "dtype", value) for key, value in moments[0][name].items()} == {
        "step": 4, "state1": torch.uint8, "state2": torch.uint8, "qmap1": torch.float32, "qmap2": torch.float32,
        "absmax1": torch.float32, "absmax2": torch.float32,
    }  # fmt: skip
    for name, state in moments[0].items():
        for key, value in state.items():
            same = moments[1][name][key]
            assert torch.equal(value, same) if isinstance(value, torch.Tensor) else value == same, (name, key)


@pytest.mark.parametrize(
    ("optim", "words"),
    [
        ("adamw", "moments 0.01, activations"),
        ("adamw_8bit", "moments 0.00 in 8 bits, activations"),
        ("paged_adamw_8bit", "moments 0.00 in 8 bits, paged to CPU memory where the GPU is full, activations"),
    ],
)
def test_the_plan_counts_the_moments(
    data_dir: Path, tmp_path: Path, optim: OptimName, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of paged moments on a machine without a GPU: the plan may be for another one."""
    settings = settings_for(data_dir, tmp_path / "out", optim=optim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["phi3v-train", "plan", *arguments(settings)])
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code in (0, None)
    assert words in " ".join(capsys.readouterr().err.split())


def test_the_table_of_methods_counts_them_too(data_dir: Path, tmp_path: Path) -> None:
    plan = make_plan(resolve(settings_for(data_dir, tmp_path / "out", optim="adamw_8bit")))
    (full,) = (row for row in fit_table(plan, 10**9) if row.method == "full")
    assert full.bytes == plan.memory.total


def test_all_machines_need_the_same_bitsandbytes() -> None:
    facts = dict(package_facts(parse_config({"optim": "adamw_8bit"})))
    assert facts["package bitsandbytes"].value == bnb.__version__
    assert "package bitsandbytes" not in dict(package_facts(parse_config({})))
