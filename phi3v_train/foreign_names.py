"""Other trainers' names of the settings of a run: an alias where the meaning is the same, else what to give instead."""

from collections.abc import Mapping
from typing import Any

ALIASES = {
    "lr": "learning_rate",
    "weight_decay": "wd",
    "per_device_train_batch_size": "batch_size_per_gpu",
    "lora_r": "lora_rank",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "output": "output_dir",
    "out_dir": "output_dir",
    "model": "model_name_or_path",
    "model_id": "model_name_or_path",
    "optimizer": "optim",
    "lr_scheduler_type": "lr_scheduler",
    "scheduler": "lr_scheduler",
    "target_modules": "lora_targets",
    "lora_target_modules": "lora_targets",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "cutoff_len": "max_length",
    "per_device_eval_batch_size": "eval_batch_size",
    "nproc_per_node": "num_processes",
    "resume_from_checkpoint": "resume",
    "steps": "max_steps",
    "early_stopping_threshold": "early_stopping_min_delta",
    "load_best_model_at_end": "keep_best",
    "metric_for_best_model": "best_metric",
}

_ACCUMULATION = (
    "accumulation follows from the batch sizes: give --batch_size, which is --batch_size_per_gpu x accumulation "
    "steps x processes"
)
_DATA = "give --data_dir, a conversations directory: phi3v-data convert makes one"

ADVICE = {
    "gradient_accumulation_steps": _ACCUMULATION,
    "grad_accum": _ACCUMULATION,
    "dataset": _DATA,
    "dataset_name": _DATA,
    "train_file": _DATA,
    "fp16": "give --dtype fp16",
    "load_in_4bit": "give --use_qlora",
    "use_wandb": "give --report_to wandb",
    "wandb": "give --report_to wandb",
    "greater_is_better": (
        "give --best_mode max (true) or min (false); without it the lowest loss is best, of other metrics the highest "
        "value"
    ),
    "lora_alpha": "give --lora_alpha_ratio, which is alpha / --lora_rank (alpha 128 with rank 64: 2)",
    "save_best_only": (
        "give --keep_best, which keeps the best checkpoint beside the newest ones (--save_total_limit), from which a "
        "stopped run resumes"
    ),
    "warmup_ratio": "give --warmup_steps, which is the ratio x the number of steps that `phi3v-train plan` shows",
}
"""Names for which no setting of a run has the same value."""


def refusal(name: str) -> str:
    """Why a name is not a setting, and what to give instead; of a name in `ADVICE`."""
    return f"{name!r} is not a setting of a run: {ADVICE[name]}"


def own_name(name: str) -> str:
    """Our name of a setting, whoever's it is.

    Raises:
        ValueError: there is no setting with that value; the message says what to give instead.
    """
    if name in ADVICE:
        raise ValueError(refusal(name))
    return ALIASES.get(name, name)


def own_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values under our names.

    Raises:
        ValueError: a setting has two values under two names, or see `own_name`.
    """
    result: dict[str, Any] = {}
    for name, value in values.items():
        own = own_name(name)
        if own in result and result[own] != value:
            raise ValueError(f"{own} is given twice, as {name!r} too, with different values: give it once")
        result[own] = value
    return result
