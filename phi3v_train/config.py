"""`RunConfig`: every setting of a run, in groups; the command line, a YAML file and a recipe all fill this one model.

Field names are the options' names. Names are unique over the groups, so a YAML file may give them grouped or flat.
"""

import re
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, field_serializer, model_validator

from phi3v_data.remote.address import spelled
from phi3v_train.foreign_names import own_names
from phi3v_train.setting_group import Group, spell_out

DEFAULT_MODEL = "microsoft/Phi-3.5-vision-instruct"
DEFAULT_NUM_CROPS = 16
ALL_LINEAR = "all-linear"
OptimName: TypeAlias = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]
LORA_INITS = ("gaussian", "default", "pissa", "olora")


def _as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


IMAGE_OPTIONS = ("num_crops", "max_pixels", "min_pixels", "longest_edge")
"""Options of how images are prepared."""


class ModelConfig(Group):
    """Which model, and how it computes."""

    model_name_or_path: str = Field(DEFAULT_MODEL, description="Model directory, Hub id, `tiny`, or `tiny:FAMILY`.")
    num_crops: int | None = Field(
        None,
        ge=1,
        description="Tile budget of Phi-3-vision, LLaVA, InternVL; else a tuned model's, dataset.json's, the model's.",
    )
    max_pixels: int | None = Field(
        None, ge=1, description="Largest area of an image in pixels, for Qwen models; else the processor's own."
    )
    min_pixels: int | None = Field(
        None, ge=1, description="Smallest area of an image in pixels, for Qwen models; else the processor's own."
    )
    longest_edge: int | None = Field(
        None,
        ge=1,
        description="Longest side of an image in pixels, for Idefics3, SmolVLM; else the processor's own.",
    )
    attn: Literal["auto", "flash", "sdpa", "eager"] = Field("auto", description="Attention implementation.")
    use_flash_attention: bool = Field(False, description="The same as --attn flash.")
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="Compute dtype; auto: bf16 if the GPU supports it, else fp16; fp32 on a CPU."
    )
    bf16: bool = Field(False, description="The same as --dtype bf16.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="Where to run; auto: a CUDA GPU if available. mps: an Apple GPU (untested)."
    )
    gradient_checkpointing: bool = Field(True, description="Recompute activations in the backward pass to save memory.")

    @model_validator(mode="before")
    @classmethod
    def _take_short_forms(cls, value: Any) -> Any:
        return spell_out(value) if isinstance(value, dict) else value

    @property
    def image_options(self) -> dict[str, int]:
        """The options of images that were given, by name; a model family takes some of them."""
        given = {name: getattr(self, name) for name in IMAGE_OPTIONS}
        return {name: value for name, value in given.items() if value is not None}

    @model_validator(mode="after")
    def _can_compute(self) -> Self:
        if self.attn == "flash" and self.dtype in ("fp16", "fp32"):
            raise ValueError(
                f"--attn flash cannot compute in {self.dtype}: use --dtype bf16, or --attn sdpa with {self.dtype}"
            )
        return self


class DataConfig(Group):
    """Which rows, and what of them reaches the model."""

    data_dir: tuple[Path, ...] = Field(
        (),
        description="Conversations directory, or folder of shards, also in a bucket: s3://BUCKET/PREFIX, gs://, hf://; "
        "may be given several times.",
    )
    mix: tuple[float, ...] = Field(
        (), description="Sampling weight of each --data_dir. Default: every row once per epoch."
    )
    train_split: str = Field("train", description="Split to train on.")
    answer_choice: Literal["stored", "random"] = Field(
        "stored", description="Train on `assistant`, or one of `answers`."
    )
    max_length: int | None = Field(None, ge=1, description="Longest sample in tokens; longer ones are refused.")
    truncate: Literal["refuse", "turns"] = Field("refuse", description="Over --max_length: refuse, or cut at a turn.")
    pack: bool = Field(False, description="Several samples in one row, each seeing only itself.")
    num_workers: int = Field(2, ge=0, description="Processes that decode and encode samples.")
    data_cache_gb: float | None = Field(
        None, ge=0, description="Largest size of the local cache of images in a bucket, in GB. Default: 20."
    )

    @field_serializer("data_dir", when_used="json")
    def _spell_addresses(self, value: tuple[Path, ...]) -> list[str]:
        return [spelled(path) for path in value]

    @model_validator(mode="after")
    def _mix_fits(self) -> Self:
        if self.mix and len(self.mix) != len(self.data_dir):
            raise ValueError(
                f"--mix has {len(self.mix)} weights for {len(self.data_dir)} --data_dir: give one weight per directory"
            )
        if any(weight <= 0 for weight in self.mix):
            raise ValueError("--mix weights must be greater than 0: leave a directory out instead of weighting it 0")
        if self.truncate == "turns" and self.max_length is None:
            raise ValueError("--truncate turns needs --max_length, the length to cut to")
        return self


class MethodConfig(Group):
    """Which weights are trained, and how."""

    use_lora: bool = Field(False, description="Train low-rank adapters instead of the weights.")
    use_qlora: bool = Field(False, description="LoRA over a base in 4 bits (nf4).")
    freeze_vision_model: bool = Field(False, description="Leave the vision tower and projector as they are.")
    freeze_language_model: bool = Field(False, description="Leave the decoder as it is.")
    lora_rank: int = Field(64, ge=1, description="Rank of the adapters.")
    lora_alpha_ratio: float = Field(2.0, gt=0, description="LoRA alpha = rank x ratio.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the adapters.")
    use_dora: bool = Field(False, description="Weight-decomposed LoRA.")
    use_rslora: bool = Field(False, description="Rank-stabilised LoRA: alpha / sqrt(rank).")
    lora_targets: str | None = Field(
        None,
        description="Layers with adapters: NAME,... (qkv_proj,o_proj), a regular expression over full names, or "
        "all-linear (all but the head). Default: all and the head.",
    )
    lora_init: str = Field("gaussian", description="gaussian, default (A uniform, B 0), pissa or olora.")

    @model_validator(mode="before")
    @classmethod
    def _take_short_forms(cls, value: Any) -> Any:
        return {**value, "use_lora": True} if isinstance(value, dict) and value.get("use_qlora") is True else value

    @model_validator(mode="after")
    def _can_train(self) -> Self:
        if self.freeze_vision_model and self.freeze_language_model:
            raise ValueError("--freeze_vision_model and --freeze_language_model together leave nothing to train")
        if self.lora_init.startswith("pissa_niter"):
            raise ValueError(
                f"--lora_init {self.lora_init}: its adapters do not reload to the same model, because the fast SVD is "
                "random; use --lora_init pissa"
            )
        if self.lora_init not in LORA_INITS:
            raise ValueError(f"--lora_init {self.lora_init}: must be one of {', '.join(LORA_INITS)}")
        if self.use_qlora and self.lora_init in ("pissa", "olora"):
            raise ValueError(
                f"--lora_init {self.lora_init} changes the base weights, which --use_qlora keeps in 4 bits"
            )
        if self.lora_targets is not None:
            if not self.use_lora:
                raise ValueError(f"--lora_targets {self.lora_targets} is for LoRA: add --use_lora or --use_qlora")
            try:
                re.compile(self.lora_targets)
            except re.error as error:
                raise ValueError(f"--lora_targets {self.lora_targets}: not a regular expression ({error})") from None
        if (self.use_dora or self.use_rslora) and not self.use_lora:
            raise ValueError("--use_dora and --use_rslora are variants of LoRA: add --use_lora")
        return self

    @property
    def name(self) -> str:
        """Name of the method in plans, cards and recipes."""
        frozen = (
            ", vision frozen" if self.freeze_vision_model else ", language frozen" if self.freeze_language_model else ""
        )
        if not self.use_lora:
            return f"full{frozen}"
        kind = "QLoRA" if self.use_qlora else "DoRA" if self.use_dora else "LoRA"
        return f"{kind} rank {self.lora_rank}{frozen}"


class OptimConfig(Group):
    """The optimizer and its schedule. AdamW as in the Phi-3.5-vision sample: betas 0.9/0.95, eps 1e-7, clip 1.0."""

    batch_size: int = Field(16, ge=1, description="Samples per step over all devices.")
    batch_size_per_gpu: int = Field(1, ge=1, description="Samples per forward pass on one device.")
    num_train_epochs: float = Field(1.0, gt=0, description="Passes over the data.")
    max_steps: int | None = Field(None, ge=1, description="Stop after so many steps; wins over --num_train_epochs.")
    optim: OptimName = Field(
        "adamw",
        description="AdamW with moments in 32 bits, in 8 bits (bitsandbytes), or in 8 bits and paged to the CPU.",
    )
    learning_rate: float = Field(4e-5, gt=0, description="Highest learning rate.")
    vision_learning_rate: float | None = Field(
        None, gt=0, description="Learning rate of the vision tower. Default: --learning_rate."
    )
    projector_learning_rate: float | None = Field(
        None, gt=0, description="Learning rate of the projector. Default: --learning_rate."
    )
    wd: float = Field(0.01, ge=0, description="Weight decay.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: decay of the first moment.")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="AdamW: decay of the second moment.")
    adam_epsilon: float = Field(1e-7, gt=0, description="AdamW: added to the denominator.")
    max_grad_norm: float = Field(1.0, ge=0, description="Clip the gradient's norm; 0: never.")
    lr_scheduler: Literal["linear", "cosine", "constant"] = Field("linear", description="Learning rate after warm-up.")
    warmup_steps: int = Field(50, ge=0, description="Steps over which the learning rate rises.")
    seed: int = Field(0, ge=0, description="Seed of the order, dropout, adapters and random answers.")

    @property
    def is_8bit(self) -> bool:
        """Whether bitsandbytes keeps the moments in 8 bits."""
        return self.optim != "adamw"


class EvalConfig(Group):
    """Evaluation: metrics, and when."""

    eval_split: str | None = Field(
        None, description="Split to evaluate. Default: the first of val, dev, dev_seen, test."
    )
    eval_steps: int | None = Field(None, ge=1, description="Also evaluate every N steps.")
    eval_before: bool = Field(True, description="Evaluate before training.")
    eval_after: bool = Field(True, description="Evaluate after training.")
    eval_limit: int | None = Field(None, ge=1, description="Evaluate at most N rows.")
    eval_batch_size: int = Field(8, ge=1, description="Samples evaluated at once on one device.")
    eval_turns: Literal["last", "first", "all"] = Field("last", description="Which answers are generated.")
    max_new_tokens: int = Field(64, ge=1, description="Longest generated answer in tokens.")
    metric: tuple[str, ...] = Field((), description="Metric name or FILE.py:FUNCTION. Default: dataset.json's.")
    early_stopping_patience: int = Field(
        0, ge=0, description="End the run after N evaluations (--eval_steps) without an improvement; 0: never."
    )
    early_stopping_min_delta: float = Field(
        0.0, ge=0, description="With --early_stopping_patience: an improvement must be greater than X."
    )
    keep_best: bool = Field(
        False, description="Keep the checkpoint of the best evaluation; the finished model has its weights."
    )
    best_metric: str | None = Field(
        None,
        description="What --early_stopping_patience and --keep_best compare: loss, or a metric of the run. "
        "Default: the first metric.",
    )
    best_mode: Literal["auto", "max", "min"] = Field(
        "auto", description="Whether the highest or the lowest value is best; auto: min for loss, else max."
    )

    @model_validator(mode="after")
    def _best_is_evaluated(self) -> Self:
        users = [f"--early_stopping_patience {self.early_stopping_patience}"] if self.early_stopping_patience else []
        users += ["--keep_best"] if self.keep_best else []
        if users and self.eval_steps is None:
            raise ValueError(f"{users[0]} needs evaluations during training: give --eval_steps N")
        unused = "early_stopping_patience" not in self.model_fields_set  # given as 0, a run that ended early resumes
        if unused and self.early_stopping_min_delta:
            raise ValueError("--early_stopping_min_delta is for --early_stopping_patience N: add it")
        given = [f"--best_metric {self.best_metric}"] if self.best_metric is not None else []
        given += [f"--best_mode {self.best_mode}"] if self.best_mode != "auto" else []
        if unused and given and not users:
            raise ValueError(f"{given[0]} is for --early_stopping_patience N and --keep_best: add one of them")
        return self

    @property
    def compares(self) -> bool:
        """Whether the run compares its evaluations, to end early or to keep the best one."""
        return self.keep_best or self.early_stopping_patience > 0

    @property
    def is_wanted(self) -> bool:
        """Whether a run evaluates at all."""
        return self.eval_before or self.eval_after or self.eval_steps is not None


class OutputConfig(Group):
    """Output: checkpoints, logs, and where they are written."""

    output_dir: Path = Field(Path("output"), description="The run's folder.")
    save_steps: int | None = Field(None, ge=1, description="Checkpoint every N steps. Default: once per epoch.")
    save_minutes: float | None = Field(None, gt=0, description="Also save when the last checkpoint is N minutes old.")
    save_total_limit: int = Field(2, ge=1, description="Number of complete checkpoints kept.")
    logging_steps: int = Field(1, ge=1, description="A line in metrics.jsonl every N steps.")
    resume: str = Field("auto", description="auto: newest complete checkpoint; never; or a checkpoint's path.")
    overwrite: bool = Field(False, description="Start over in an --output_dir that contains a run.")
    report_to: tuple[Literal["tensorboard", "wandb", "trackio", "none"], ...] = Field(
        ("tensorboard",), description="Trackers that get the curves too; may be given several times."
    )
    no_tqdm: bool = Field(False, description="No progress line.")


class ParallelConfig(Group):
    """Processes, machines and the parallel strategy."""

    parallel: Literal["auto", "ddp", "fsdp", "zero2", "zero3"] = Field(
        "auto", description="Parallel strategy; auto: ddp if its memory fits, else fsdp; unused with one process."
    )
    num_processes: int | None = Field(None, ge=1, description="Processes on each machine. Default: one per GPU.")
    nnodes: int = Field(1, ge=1, description="Machines; each gets the same command with its own --node_rank.")
    node_rank: int = Field(0, ge=0, description="Number of this machine, from 0.")
    master_addr: str | None = Field(None, description="Address of machine 0, the same on each.")
    master_port: int | None = Field(
        None, ge=1, le=65535, description="Port of machine 0. Default: 29500; on one machine, a free one."
    )
    deepspeed: Path | None = Field(None, description="DeepSpeed configuration (JSON) for --parallel zero2 and zero3.")

    @model_validator(mode="after")
    def _deepspeed_is_used(self) -> Self:
        if self.deepspeed is not None and self.parallel not in ("zero2", "zero3"):
            raise ValueError(f"--deepspeed {self.deepspeed} is for --parallel zero2 or zero3: add one of them")
        return self


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
        home = home_groups()
        for key, given in own_names(value).items():
            item = own_names(given) if key in cls.GROUPS and isinstance(given, dict) else given
            if key in home and not (key in cls.GROUPS and isinstance(item, dict | Group)):
                grouped[home[key]] = {**_as_dict(grouped.get(home[key])), key: item}
            elif key in cls.GROUPS and isinstance(item, dict):
                grouped[key] = {**item, **_as_dict(grouped.get(key))}
            else:
                grouped[key] = item
        return grouped

    @model_validator(mode="after")
    def _moments_can_be_sharded(self) -> Self:
        if self.optim.is_8bit and self.parallel.parallel in ("fsdp", "zero2", "zero3"):
            raise ValueError(
                f"--optim {self.optim.optim} cannot be used with --parallel {self.parallel.parallel}, which shards "
                "the moments among processes: use --parallel ddp, or --optim adamw"
            )
        return self

    def flat(self) -> dict[str, Any]:
        """Every setting under its option's name, as JSON values."""
        dumped = self.model_dump(mode="json")
        return {name: item for group in dumped.values() for name, item in group.items()}


def home_groups() -> dict[str, str]:
    """Name of each setting -> its group."""
    return {name: group for group, model in RunConfig.GROUPS.items() for name in model.model_fields}
