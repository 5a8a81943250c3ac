"""Facts that all processes of a run, or of an evaluation, must agree on; see `agreement`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from phi3v_train.config import RunConfig
from phi3v_train.data.identity import describe_data
from phi3v_train.distributed.agreement import Fact, Facts
from phi3v_train.models.machine import Compute

OF_EACH_MACHINE = frozenset(
    {
        "attn",
        "bf16",
        "data_dir",
        "deepspeed",
        "device",
        "dtype",
        "logging_steps",
        "master_addr",
        "master_port",
        "metric",
        "model_name_or_path",
        "nnodes",
        "no_tqdm",
        "node_rank",
        "num_processes",
        "num_workers",
        "output_dir",
        "parallel",
        "report_to",
        "resume",
        "use_flash_attention",
    }
)
"""Settings that a machine may give differently: where files are, what only rank 0 does, and settings of which the
result is compared instead.
"""

PACKAGES = ("phi3v", "torch", "transformers", "numpy", "Pillow", "simplejpeg", "safetensors")
"""Packages that take part in every run."""


def setting_facts(config: RunConfig) -> Iterator[tuple[str, Fact]]:
    """Every setting that must be the same on all machines."""
    for name, value in config.flat().items():
        if name not in OF_EACH_MACHINE:
            yield f"--{name}", Fact(json.dumps(value).strip('"'))


def compute_facts(compute: Compute) -> Iterator[tuple[str, Fact]]:
    """How each machine computes; `auto` may have chosen differently."""
    for name, chosen in (("--device", compute.device), ("--dtype", compute.dtype), ("--attn", compute.attn)):
        yield name, Fact(chosen.value, chosen.reason)


def data_facts(name: str, data: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Fact]]:
    """Split, rows, tile budget and content of each source."""
    for number, each in enumerate(data, 1):
        which = f" {number}" if len(data) > 1 else ""
        budget = f" at num_crops {each['num_crops']}" if each["num_crops"] is not None else ""
        yield f"{name}{which}", Fact(describe_data([each]) + budget)


def package_facts(config: RunConfig) -> Iterator[tuple[str, Fact]]:
    """Versions of the packages that take part."""
    method = config.method
    used = {
        "peft": method.use_lora,
        "bitsandbytes": method.use_qlora or config.optim.is_8bit,
        "deepspeed": config.parallel.parallel in ("zero2", "zero3"),
    }
    for name in (*PACKAGES, *(name for name, is_used in used.items() if is_used)):
        try:
            yield f"package {name}", Fact(version(name))
        except PackageNotFoundError:
            yield f"package {name}", Fact("missing")


def run_facts(
    config: RunConfig,
    compute: Compute,
    *,
    model: str,
    data: Sequence[Mapping[str, Any]],
    eval_data: Sequence[Mapping[str, Any]],
    total_steps: int,
    parallel: Fact,
    deepspeed: Mapping[str, Any] | None,
) -> Facts:
    """Facts that all processes of a run must agree on.

    Args:
        config: the run's settings.
        compute: how this machine computes.
        model: identity of the model that is trained.
        data: identity of each training source; see `data_identity`.
        eval_data: the same of the split that is evaluated.
        total_steps: of the run.
        parallel: the parallel strategy and why it was chosen.
        deepspeed: the resolved DeepSpeed configuration.
    """
    return {
        **dict(setting_facts(config)),
        **dict(compute_facts(compute)),
        "--parallel": parallel,
        "--model_name_or_path": Fact(model),
        **dict(data_facts("training data", data)),
        **dict(data_facts("evaluation data", eval_data)),
        "number of steps": Fact(str(total_steps)),
        "DeepSpeed configuration": Fact(json.dumps(deepspeed, sort_keys=True)),
        **dict(package_facts(config)),
    }
