"""`RunConfig`: every setting of a run, in groups; the command line, a YAML file and a recipe all fill this one model.

Field names are the options' names. Names are unique over the groups, so a YAML file may give them grouped or flat.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

DEFAULT_MODEL = "microsoft/Phi-3.5-vision-instruct"
DEFAULT_NUM_CROPS = 16


class Group(BaseModel):
    """Base of the groups: frozen, closed, JSON and YAML alike."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Group):
    """Which model, and how it computes."""

    model_name_or_path: str = Field(DEFAULT_MODEL, description="Model directory, Hub id, or `tiny`.")
    num_crops: int | None = Field(None, ge=1, le=16, description="Tile budget; else dataset.json's, else 16.")
    attn: Literal["auto", "flash", "sdpa", "eager"] = Field("auto", description="Attention implementation.")
    use_flash_attention: bool = Field(False, description="The same as --attn flash.")
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="Compute dtype; auto: what the device has."
    )
    bf16: bool = Field(False, description="The same as --dtype bf16.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to run; auto: a GPU if there is one.")
    gradient_checkpointing: bool = Field(True, description="Recompute activations in the backward pass to save memory.")


class DataConfig(Group):
    """Which rows, and what of them reaches the model."""

    data_dir: tuple[Path, ...] = Field((), description="Conversations directory; may be given several times.")
    mix: tuple[float, ...] = Field((), description="Sampling weight of each --data_dir; none: every row once an epoch.")
    train_split: str = Field("train", description="Split to train on.")
    answer_choice: Literal["stored", "random"] = Field(
        "stored", description="Train on `assistant`, or one of `answers`."
    )
    max_length: int | None = Field(None, ge=1, description="Longest sample in tokens; longer ones are refused.")
    truncate: Literal["refuse", "turns"] = Field("refuse", description="Over --max_length: refuse, or cut at a turn.")
    pack: bool = Field(False, description="Several samples in one row, each seeing only itself.")
    num_workers: int = Field(2, ge=0, description="Processes that decode and encode samples.")


class MethodConfig(Group):
    """What is trained."""

    use_lora: bool = Field(False, description="Train low-rank adapters instead of the weights.")
    use_qlora: bool = Field(False, description="LoRA over a base in 4 bits (nf4).")
    freeze_vision_model: bool = Field(False, description="Leave the vision tower and projector as they are.")
    freeze_language_model: bool = Field(False, description="Leave the decoder as it is.")
    lora_rank: int = Field(64, ge=1)
    lora_alpha_ratio: float = Field(2.0, gt=0, description="LoRA alpha = rank x ratio.")
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    use_dora: bool = Field(False, description="Weight-decomposed LoRA.")
    use_rslora: bool = Field(False, description="Rank-stabilised LoRA: alpha / sqrt(rank).")
    lora_init: str = Field("gaussian", description="PEFT's init_lora_weights.")


class OptimConfig(Group):
    """How the weights move. AdamW, as in the reference sample: betas 0.9/0.95, eps 1e-7, clip 1.0."""

    batch_size: int = Field(16, ge=1, description="Samples a step over all devices.")
    batch_size_per_gpu: int = Field(1, ge=1, description="Samples a forward pass on one device.")
    num_train_epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1, description="Stop after so many steps; wins over --num_train_epochs.")
    learning_rate: float = Field(4e-5, gt=0)
    vision_learning_rate: float | None = Field(None, gt=0, description="Of the vision tower; none: --learning_rate.")
    projector_learning_rate: float | None = Field(None, gt=0, description="Of the projector; none: --learning_rate.")
    wd: float = Field(0.01, ge=0, description="Weight decay.")
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    adam_epsilon: float = Field(1e-7, gt=0)
    max_grad_norm: float = Field(1.0, ge=0, description="Clip the gradient's norm; 0: never.")
    lr_scheduler: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = Field(50, ge=0)
    seed: int = Field(0, ge=0)


class EvalConfig(Group):
    """What is measured, and when."""

    eval_split: str | None = Field(None, description="none: val, then dev, dev_seen, test, the first there is.")
    eval_steps: int | None = Field(None, ge=1, description="Evaluate every N steps too.")
    eval_before: bool = Field(True, description="Evaluate before training.")
    eval_after: bool = Field(True, description="Evaluate after training.")
    eval_limit: int | None = Field(None, ge=1, description="At most so many rows.")
    eval_batch_size: int = Field(8, ge=1)
    eval_turns: Literal["last", "first", "all"] = "last"
    max_new_tokens: int = Field(64, ge=1)
    metric: tuple[str, ...] = Field((), description="Metric name or file.py:function; none: dataset.json's.")


class OutputConfig(Group):
    """What is kept, and where."""

    output_dir: Path = Path("output")
    save_steps: int | None = Field(None, ge=1, description="Checkpoint every N steps; none: once an epoch.")
    save_total_limit: int = Field(2, ge=1, description="Complete checkpoints kept.")
    logging_steps: int = Field(1, ge=1)
    resume: str = Field("auto", description="auto: newest complete checkpoint; never; or a checkpoint's path.")
    overwrite: bool = Field(False, description="Start over in an --output_dir that holds a run.")
    report_to: tuple[Literal["tensorboard", "wandb", "trackio", "none"], ...] = ("tensorboard",)
    no_tqdm: bool = Field(False, description="No progress line.")


class ParallelConfig(Group):
    """How the work is spread."""

    parallel: Literal["auto", "ddp", "fsdp", "zero2", "zero3"] = "auto"
    num_processes: int | None = Field(None, ge=1, description="Processes on this machine; none: one a GPU.")


class RunConfig(Group):
    """A run. `RunConfig.model_validate({"learning_rate": 1e-5, ...})` takes names without their group."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    method: MethodConfig = MethodConfig()
    optim: OptimConfig = OptimConfig()
    eval: EvalConfig = EvalConfig()
    output: OutputConfig = OutputConfig()
    parallel: ParallelConfig = ParallelConfig()

    GROUPS: ClassVar[dict[str, type[Group]]] = {
        "model": ModelConfig,
        "data": DataConfig,
        "method": MethodConfig,
        "optim": OptimConfig,
        "eval": EvalConfig,
        "output": OutputConfig,
        "parallel": ParallelConfig,
    }

    @model_validator(mode="before")
    @classmethod
    def _take_flat_names(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        grouped: dict[str, Any] = {}
        home = {name: group for group, model in cls.GROUPS.items() for name in model.model_fields}
        for key, item in value.items():
            if key in home and not (key in cls.GROUPS and isinstance(item, dict | Group)):
                grouped[home[key]] = {**_as_dict(grouped.get(home[key])), key: item}
            elif key in cls.GROUPS and isinstance(item, dict):
                grouped[key] = {**item, **_as_dict(grouped.get(key))}
            else:
                grouped[key] = item
        return grouped


def _as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
