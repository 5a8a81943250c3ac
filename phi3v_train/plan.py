"""Plan of a run, made before anything heavy is loaded; every mistake that can be seen now is refused now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from phi3v_data.errors import UserError
from phi3v_train.config import RunConfig
from phi3v_train.data.encode import EncodeOptions, Encoder
from phi3v_train.data.lengths import Lengths, check_lengths
from phi3v_train.data.model_settings import ModelNote, model_notes
from phi3v_train.data.order import SampleOrder
from phi3v_train.data.partition import accumulation_steps
from phi3v_train.data.probe import MeasuredRow, Probe, probe_rows
from phi3v_train.data.reader import Reader
from phi3v_train.data.sources import (
    Source,
    choose_eval_split,
    open_source,
    open_sources,
    unique_names,
    use_cache,
)
from phi3v_train.data.untrained import refuse_untrained
from phi3v_train.evaluation.choose_metrics import choose_metrics
from phi3v_train.evaluation.metric import Metric
from phi3v_train.models.directory import ModelFiles
from phi3v_train.models.loading import load_processor
from phi3v_train.models.locate import is_adapter, locate
from phi3v_train.models.machine import Compute, choose_compute
from phi3v_train.models.registry import make_renderer
from phi3v_train.models.renderer import Renderer
from phi3v_train.models.size import ModelSize
from phi3v_train.settings import Settings
from phi3v_train.training.best import LOSS, Criterion, Mode
from phi3v_train.training.memory import Memory, estimate, sample_activations
from phi3v_train.training.parallel.deepspeed_config import RunShape, plan_deepspeed
from phi3v_train.training.parallel.row_source import RowSource, find_rows
from phi3v_train.training.parallel.strategy import ParallelStrategy, choose_strategy


@dataclass(frozen=True)
class Plan:
    """A run before it begins."""

    settings: Settings
    sources: tuple[Source, ...]
    order: SampleOrder
    eval_source: Source | None
    metrics: tuple[Metric, ...]
    files: ModelFiles
    processor: Any
    compute: Compute
    size: ModelSize
    probe: Probe
    lengths: Lengths | None
    world_size: int
    accumulation: int
    total_steps: int
    strategy: ParallelStrategy
    deepspeed: Mapping[str, Any] | None = None
    notes: tuple[ModelNote, ...] = ()
    criterion: Criterion | None = None
    row_source: RowSource | None = None
    """Where FSDP's processes find their rows of the weights; None under another strategy."""

    @property
    def config(self) -> RunConfig:
        """The resolved configuration."""
        return self.settings.config

    @property
    def memory(self) -> Memory:
        """Memory of the device that needs most."""
        return self.strategy.memory

    def most_memory(self) -> tuple[MeasuredRow, int]:
        """The measured row whose activations take most memory, and their bytes; by the estimate of `Memory`."""
        config = self.config

        def activations(row: MeasuredRow) -> int:
            return sample_activations(
                self.size,
                config.method,
                dtype=self.compute.dtype.value,
                tokens=row.measure.cost.tokens,
                tiles=row.measure.cost.tiles,
                labels=row.measure.num_supervised,
                checkpointing=config.model.gradient_checkpointing,
            )

        largest = max(self.probe.rows, key=activations)
        return largest, activations(largest)

    @property
    def rows(self) -> int:
        """Rows of all sources."""
        return sum(len(source) for source in self.sources)

    @property
    def task(self) -> str:
        """Names of the datasets, for titles."""
        return " + ".join(dict.fromkeys(source.name for source in self.sources))

    @property
    def source_names(self) -> tuple[str, ...]:
        """Name of each source, a repeated one with a number."""
        return unique_names(self.sources)

    @property
    def renderer(self) -> Renderer:
        """The encoder of samples."""
        return make_renderer(self.files.family, self.processor)

    def reader(self) -> Reader:
        """Reads training samples."""
        return make_reader(self.config, self.sources, self.renderer)


def make_plan(settings: Settings, *, world_size: int = 1, weights: bool = True) -> Plan:
    """Open the data, find the model, choose how to compute.

    Args:
        settings: the resolved settings.
        world_size: processes that will share the work.
        weights: the model's weights must be there too; a plan that is only looked at does without.

    Raises:
        UserError: anything that would stop the run later and can be seen now.
    """
    config = settings.config
    refuse_unavailable(config)
    accumulation = accumulation_steps(config.optim.batch_size, config.optim.batch_size_per_gpu, world_size)
    use_cache(config.data.data_cache_gb)
    sources = open_sources(config.data.data_dir, config.data.train_split)
    refuse_untrained(sources)
    order = SampleOrder(
        tuple(len(source) for source in sources), config.optim.batch_size, config.optim.seed, config.data.mix
    )
    total = config.optim.max_steps or order.total_steps(config.optim.num_train_epochs)
    eval_source = open_eval_source(config, sources)
    scored = [eval_source] if eval_source is not None else sources
    choice = choose_metrics(config.eval.metric, next((each.manifest for each in scored if each.manifest), None))
    criterion = choose_criterion(config, eval_source, choice.metrics) if config.eval.compares else None
    files = locate_base(config.model.model_name_or_path, weights=weights)
    family = files.family
    if config.data.pack:
        family.refuse_packing()
    budget = family.image_budget(config.model.image_options)
    sources = tuple(source.with_option(budget).with_model(files) for source in sources)
    largest = max(sources, key=lambda source: source.num_crops or 0)
    budget = largest.num_crops
    if budget is not None and family.budget is not None:
        settings = settings.with_num_crops(budget, largest.num_crops_from)
    config = settings.config
    if eval_source is not None:
        # The budget of the run, which is written into the model, so that a later evaluation takes the same.
        eval_source = eval_source.with_model(files).with_option(budget)
    compute = choose_compute(config.model)
    if weights:
        refuse_unavailable_optimizer(config, compute)
    processor = load_processor(files, budget=budget, options=config.model.image_options)
    read = [*sources, *([eval_source] if eval_source is not None else [])]
    size = family.size(files.config())
    renderer = make_renderer(family, processor)
    reader = make_reader(config, sources, renderer)
    lengths = check_lengths(reader) if config.data.max_length is not None else None
    probe = probe_rows(reader)
    origins = [(source, settings.budget_origin(source.num_crops_from)) for source in read]
    notes = model_notes(files, processor, origins, compute=compute, longest=probe.max_tokens)
    family.mark_tuned(processor, budget)
    strategy = choose_strategy(
        config,
        world_size,
        compute.memory // share_of_device(config, compute, world_size),
        lambda kind: estimate(
            size,
            config.method,
            dtype=compute.dtype.value,
            tokens=probe.max_tokens,
            tiles=probe.max_tiles,
            labels=probe.max_labels,
            batch_size=config.optim.batch_size_per_gpu,
            checkpointing=config.model.gradient_checkpointing,
            parallel=kind,
            world_size=world_size,
            optim=config.optim.optim,
        ),
    )
    if family.no_sharding and strategy.name.value not in ("single", "ddp"):
        raise UserError(f"--parallel {strategy.name.value}: {family.no_sharding}; give --parallel ddp")
    shape = RunShape(
        config.optim, compute.dtype.value, compute.device.value, size.decoder.hidden, world_size, accumulation, total
    )
    row_source = find_rows(files, config.method) if strategy.name.value == "fsdp" else None
    return Plan(
        settings, sources, order, eval_source, choice.metrics, files, processor, compute, size, probe, lengths,
        world_size, accumulation, total, strategy, plan_deepspeed(config.parallel, shape), tuple(notes), criterion,
        row_source,
    )  # fmt: skip


def locate_base(name: str, *, weights: bool) -> ModelFiles:
    """Find the model to train; see `locate`.

    Raises:
        UserError: it is not there, or it is an adapter.
    """
    if is_adapter(Path(name)):
        raise UserError(
            f"--model_name_or_path {name}: is an adapter; merge it first (phi3v-train merge DIR OUT) and train "
            "the merged model"
        )
    return locate(name, weights=weights)


def share_of_device(config: RunConfig, compute: Compute, world_size: int) -> int:
    """Processes that share a device: one a GPU; on a CPU all those of this machine, its memory being one."""
    if compute.device.value == "cuda":
        return 1
    return max(1, world_size // config.parallel.nnodes)


def make_reader(config: RunConfig, sources: Sequence[Source], renderer: Renderer) -> Reader:
    """Reads training samples as the configuration says."""
    data = config.data
    options = EncodeOptions(data.answer_choice, config.optim.seed, data.max_length, data.truncate)
    return Reader(sources, Encoder(renderer, options))


def refuse_unavailable(config: RunConfig) -> None:
    """Kinds of sharing that do not exist here, packages that are missing, kernels that an Apple GPU does not have."""
    from phi3v_train.training.methods import refuse_unfit

    if config.model.device == "mps":
        refuse_on_mps(config)
    refuse_unfit(config.method, config.optim)


def refuse_on_mps(config: RunConfig) -> None:
    """Refuse what an Apple GPU cannot compute, whether or not there is one.

    Raises:
        UserError: weights or moments of bitsandbytes.
    """
    option = "--use_qlora" if config.method.use_qlora else f"--optim {config.optim.optim}"
    if config.method.use_qlora or config.optim.is_8bit:
        instead = "--use_lora" if config.method.use_qlora else "--optim adamw"
        raise UserError(f"{option} needs kernels of bitsandbytes, which are not used with --device mps: give {instead}")


def refuse_unavailable_optimizer(config: RunConfig, compute: Compute) -> None:
    """An `--optim` that cannot run on the chosen device; a plan that is only looked at may be for another machine."""
    from phi3v_train.training.eight_bit import refuse_device

    refuse_device(config.optim.optim, compute.device.value)


def open_eval_source(config: RunConfig, sources: Sequence[Source]) -> Source | None:
    """The split to evaluate on, of the first directory that has it; None if none is requested or there is none.

    Raises:
        UserError: `--eval_split` names one that no directory has.
    """
    if not config.eval.is_wanted:
        return None
    wanted = config.eval.eval_split
    for index, source in enumerate(sources):
        try:
            split = choose_eval_split(source.directory, wanted)
        except UserError:
            if index + 1 < len(sources):
                continue
            raise
        if split is not None:
            return replace(open_source(source.directory, split, labelled=True), given=source.given)
    return None


def choose_criterion(config: RunConfig, source: Source | None, metrics: Sequence[Metric]) -> Criterion:
    """How the run compares its evaluations: by `--best_metric`, else by the first metric.

    Raises:
        UserError: there is no split to evaluate, or the run does not compute that metric.
    """
    settings = config.eval
    option = "--keep_best" if settings.keep_best else f"--early_stopping_patience {settings.early_stopping_patience}"
    if source is None:
        raise UserError(
            f"{option} needs a split to evaluate, and no --data_dir has a split val, dev, dev_seen or test with "
            "answers: name one with --eval_split, or make one with `phi3v-data split`"
        )
    names = [metric.name for metric in metrics]
    wanted = settings.best_metric or names[0]
    name = wanted.removeprefix("eval_").rpartition(":")[2]
    if name not in (*names, LOSS):
        raise UserError(
            f"--best_metric {wanted}: this run computes {', '.join(names)} and {LOSS}; give one of them, or add "
            f"--metric {wanted}"
        )
    auto: Mode = "min" if name == LOSS else "max"
    return Criterion(
        metric=name,
        mode=auto if settings.best_mode == "auto" else settings.best_mode,
        split=source.split.name,
        num_samples=min(len(source), settings.eval_limit or len(source)),
        eval_turns=settings.eval_turns,
        max_new_tokens=settings.max_new_tokens,
    )
