"""The DeepSpeed configuration of a run: ours or the user's file, `auto` filled in, contradictions refused.

Values are filled and compared by transformers' own integration, so a file that works with its Trainer works here. The
optimizer and the schedule are this package's own under every parallel strategy; sections that describe them are
compared and then left out.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from phi3v_data.errors import NotFoundError, UserError, how_to_install
from phi3v_data.files import load_json
from phi3v_data.wrong_values import refusal
from phi3v_train.config import OptimConfig, ParallelConfig
from phi3v_train.training.memory import ZERO_BUCKET

STAGES = {"zero2": 2, "zero3": 3}
INSTALL = how_to_install("deepspeed")
OLDEST = (0, 19, 8)
"""In 0.18 gradients that are not finite pass unseen."""

OPTIMIZERS = ("Adam", "AdamW")
SCHEDULES = {"linear": "WarmupDecayLR", "cosine": "WarmupCosineLR", "constant": "WarmupLR"}

OPTIONS = {
    "per_device_train_batch_size": "--batch_size_per_gpu",
    "gradient_accumulation_steps": "--batch_size / (--batch_size_per_gpu x processes)",
    "train_batch_size (calculated)": "--batch_size",
    "max_grad_norm": "--max_grad_norm",
    "learning_rate": "--learning_rate",
    "adam_beta1+adam_beta2": "--adam_beta1 and --adam_beta2",
    "adam_epsilon": "--adam_epsilon",
    "weight_decay": "--wd",
    "fp16|fp16_full_eval": "--dtype fp16",
    "bf16|bf16_full_eval": "--dtype bf16",
    "num_training_steps (calculated)": "the run's number of steps",
    "warmup_steps": "--warmup_steps",
}
"""Name of a setting in transformers -> our name."""

FIXED: dict[str, tuple[Any, str]] = {
    "gradient_allreduce_op": ("mean", "the loss is scaled for a mean over processes"),
    "torch_autocast.enabled": (False, "--dtype sets the number format"),
    "amp.enabled": (False, "--dtype sets the number format"),
    "managed_gradient_accumulation": (True, "the run sets itself where a step ends"),
    "sequence_parallel_size": (1, "every process has samples of its own"),
    "tensor_parallel.autotp_size": ((0, 1), "every process has samples of its own"),
    "hybrid_engine.enabled": (False, "it is made for inference"),
    "zero_optimization.zenflow": (None, "its updates lag behind, so runs could not be repeated"),
    "zero_optimization.offload_optimizer.device": (("none", "cpu"), "checkpoints are read from memory"),
    "zero_optimization.offload_param.device": (("none", "cpu"), "checkpoints are read from memory"),
    "zero_optimization.compute_grad_norm": (True, "a gradient that is not finite must stop the run"),
    "bf16.check_grad_overflow": (True, "a gradient that is not finite must stop the run"),
    "bf16.bf16_master_weights_and_grads": (False, "master weights are kept in fp32"),
    "fp16.fp16_master_weights_and_grads": (False, "master weights are kept in fp32"),
}
"""Keys with one value (or several) that a run works with, and why."""


@dataclass(frozen=True, slots=True)
class RunShape:
    """Values that `auto` stands for."""

    optim: OptimConfig
    dtype: str
    device_type: str
    hidden_size: int
    world_size: int
    accumulation: int
    total_steps: int


def refuse_missing() -> None:
    """See that DeepSpeed is there, without importing it.

    Raises:
        UserError: it or accelerate is missing, or too old.
    """
    if find_spec("deepspeed") is None:
        raise UserError(f"--parallel zero2 and zero3 need the package deepspeed: {INSTALL}")
    if find_spec("accelerate") is None:
        raise UserError(f"--parallel zero2 and zero3 need the package accelerate: {how_to_install('train')}")
    try:
        found = version("deepspeed")
    except PackageNotFoundError:
        raise UserError(f"the installed deepspeed has no metadata: install it again with {INSTALL}") from None
    if tuple(map(int, found.split("+")[0].split(".")[:3])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise UserError(f"--parallel zero2 and zero3 need deepspeed {oldest} or newer, found {found}: {INSTALL} -U")


def import_deepspeed(device_type: str) -> Any:
    """DeepSpeed, set to the device type, quiet, and without anything that it would have to compile.

    Raises:
        UserError: it cannot be imported on this machine.
    """
    import logging
    import warnings

    os.environ["DS_ACCELERATOR"] = device_type
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.")
    try:
        import deepspeed
    except Exception as error:  # its op builders raise whatever a broken CUDA toolkit makes of them
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"deepspeed is installed but cannot be imported ({reason}); {INSTALL} again, or use fsdp"
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    chosen = deepspeed.accelerator.get_accelerator().device_name()
    if chosen != device_type:
        raise UserError(f"DeepSpeed computes on {chosen}, this run on {device_type}: set DS_ACCELERATOR={device_type}")
    # Between CPU processes it would compile a shared-memory all-reduce (a minute, g++ and ninja); gloo does it too.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def resolve_deepspeed(kind: str, file: Path | None, shape: RunShape) -> dict[str, Any]:
    """The configuration that DeepSpeed is started with.

    Args:
        kind: `zero2` or `zero3`.
        file: the user's; None takes `default_config`.
        shape: values that `auto` stands for.

    Raises:
        UserError: a value that contradicts a setting of the run; both are named.
    """
    refuse_missing()
    if shape.dtype == "fp16" and shape.device_type == "cpu":
        raise UserError(f"--parallel {kind}: DeepSpeed has no fp16 on a CPU: use --dtype bf16 or fp32")
    where = f"--deepspeed {file}" if file else "DeepSpeed configuration"
    config = read_file(file) if file else default_config()
    zero = config.setdefault("zero_optimization", {})
    if not isinstance(zero, dict):
        raise UserError(f"{where}: zero_optimization must be an object")
    if zero.setdefault("stage", STAGES[kind]) != STAGES[kind]:
        raise UserError(
            f"{where}: zero_optimization.stage {zero['stage']} contradicts --parallel {kind}: make it "
            f"{STAGES[kind]}, or leave it out"
        )
    config.setdefault("gradient_clipping", "auto")
    config.setdefault("train_micro_batch_size_per_gpu", "auto")
    config.setdefault("gradient_accumulation_steps", "auto")
    config.setdefault("train_batch_size", "auto")
    for name in ("bf16", "fp16"):
        config[name] = {"enabled": "auto", **config.get(name, {})}
    config.setdefault("zero_force_ds_cpu_optimizer", False)
    refuse_sections(where, config, shape.optim)
    refuse_fixed(where, config)
    filled = fill(where, config, shape)
    refuse_autos(where, filled)
    if shape.dtype != "fp32":
        filled["data_types"] = {"grad_accum_dtype": "fp32", **filled.get("data_types", {})}
    refuse_unknown(where, filled, shape.device_type)
    return filled


def plan_deepspeed(parallel: ParallelConfig, shape: RunShape) -> dict[str, Any] | None:
    """The configuration of a run; None if DeepSpeed is not used.

    Raises:
        UserError: see `resolve_deepspeed`.
    """
    if parallel.parallel not in STAGES:
        return None
    return resolve_deepspeed(parallel.parallel, parallel.deepspeed, shape)


def default_config() -> dict[str, Any]:
    """Configuration of a run without `--deepspeed FILE`."""
    return {
        "zero_optimization": {
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "reduce_bucket_size": ZERO_BUCKET,
            "allgather_bucket_size": ZERO_BUCKET,
        }
    }


def read_file(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: the file is missing or is not a JSON object.
    """
    try:
        value = load_json(file)
    except FileNotFoundError:
        raise NotFoundError(f"--deepspeed {file}: the file does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--deepspeed {file}: cannot be read ({error})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"--deepspeed {file}:{error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(value, dict):
        raise UserError(f"--deepspeed {file}: expected a JSON object, found a {type(value).__name__}")
    return value


def refuse_sections(where: str, config: Mapping[str, Any], optim: OptimConfig) -> None:
    """Optimizer and schedule must be those of the run.

    Raises:
        UserError: which is not.
    """
    optimizer = config.get("optimizer", {}).get("type", "AdamW")
    if optimizer not in OPTIMIZERS:
        raise UserError(f"{where}: optimizer.type {optimizer}: a run trains with AdamW; leave the section out")
    schedule = SCHEDULES[optim.lr_scheduler]
    found = config.get("scheduler", {}).get("type", schedule)
    if found != schedule:
        raise UserError(
            f"{where}: scheduler.type {found} contradicts --lr_scheduler {optim.lr_scheduler} ({schedule}): leave the "
            "section out"
        )


def refuse_fixed(where: str, config: Mapping[str, Any]) -> None:
    """Keys that have one good value.

    Raises:
        UserError: which has another.
    """
    for key, (good, why) in FIXED.items():
        found = look_up(config, key)
        if found is not None and found not in (good if isinstance(good, tuple) else (good,)):
            raise UserError(f"{where}: {key} {json.dumps(found)} cannot be used: {why}; leave it out")


def look_up(config: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted path; None if absent."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def fill(where: str, config: dict[str, Any], shape: RunShape) -> dict[str, Any]:
    """Fill in every `auto` and compare every other value, by transformers' rules.

    Raises:
        UserError: a value that contradicts a setting; both are named.
    """
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig, unset_hf_deepspeed_config

    optim = shape.optim
    arguments = SimpleNamespace(
        world_size=shape.world_size,
        per_device_train_batch_size=optim.batch_size_per_gpu,
        gradient_accumulation_steps=shape.accumulation,
        max_grad_norm=optim.max_grad_norm,
        learning_rate=optim.learning_rate,
        adam_beta1=optim.adam_beta1,
        adam_beta2=optim.adam_beta2,
        adam_epsilon=optim.adam_epsilon,
        weight_decay=optim.wd,
        save_on_each_node=False,
        fp16=shape.dtype == "fp16",
        fp16_full_eval=False,
        bf16=shape.dtype == "bf16",
        bf16_full_eval=False,
        get_warmup_steps=lambda steps: optim.warmup_steps,
    )
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=shape.hidden_size))
    mismatches: list[str] = []

    class Comparing(HfTrainerDeepSpeedConfig):  # type: ignore[misc]  # transformers is untyped here
        """Keeps what does not match in our words."""

        def fill_match(self, key: str, value: Any, name: str | None = None, must_match: bool = True) -> None:
            node, leaf = self.find_config_node(key)
            if must_match and node is not None and node.get(leaf, "auto") not in ("auto", value):
                mismatches.append(
                    f"{key} {json.dumps(node[leaf])} contradicts {OPTIONS.get(name or '', name)} {json.dumps(value)}"
                )
                node[leaf] = "auto"
            super().fill_match(key, value, name, must_match)

    try:
        filler = Comparing(config)
        filler.trainer_config_process(arguments)
        filler.trainer_config_finalize(arguments, model, shape.total_steps)
    finally:
        # transformers would load every later model in pieces.
        unset_hf_deepspeed_config()
    if mismatches:
        raise UserError(f'{where}: {"; ".join(mismatches)}: write "auto" there, or leave it out')
    filled: dict[str, Any] = filler.config
    return {key: value for key, value in filled.items() if key not in ("optimizer", "scheduler")}


def refuse_autos(where: str, config: Mapping[str, Any], path: str = "") -> None:
    """No `auto` may be left, which nobody fills.

    Raises:
        UserError: where one is.
    """
    for key, value in config.items():
        if value == "auto":
            raise UserError(f'{where}: {path}{key}: "auto" has no meaning there; give a value or leave it out')
        if isinstance(value, dict):
            refuse_autos(where, value, f"{path}{key}.")


def refuse_unknown(where: str, config: Mapping[str, Any], device_type: str) -> None:
    """DeepSpeed's own check of its main sections, before anything heavy is loaded.

    Raises:
        UserError: the first key that it does not know or value that it does not take.
    """
    from pydantic import ValidationError

    runtime = import_deepspeed(device_type).runtime
    models = {
        "zero_optimization": runtime.zero.config.DeepSpeedZeroConfig,
        "bf16": runtime.precision_config.DeepSpeedBF16Config,
        "fp16": runtime.precision_config.DeepSpeedFP16Config,
    }
    for section, model in models.items():
        try:
            model(**config[section])
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, (section, *first["loc"])))
            raise UserError(f"{where}: {refusal(key, first)}") from None


def summary(config: Mapping[str, Any]) -> str:
    """One line for the plan."""
    zero = config["zero_optimization"]
    shown = ", ".join(f"{key} {json.dumps(value)}" for key, value in zero.items() if key != "stage")
    return f"DeepSpeed, ZeRO stage {zero['stage']}: {shown or 'its defaults'}"
