"""Plan of a run, made before anything heavy is loaded; every mistake that can be seen now is refused now."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from phi3v_data.errors import UserError
from phi3v_data.messages import counted
from phi3v_train.config import OptimName, RunConfig
from phi3v_train.data.encode import EncodeOptions, Encoder
from phi3v_train.data.lengths import Lengths, check_lengths
from phi3v_train.data.model_settings import ModelNote, model_notes
from phi3v_train.data.order import SampleOrder, SampleRef
from phi3v_train.data.partition import accumulation_steps
from phi3v_train.data.reader import Measure, Reader
from phi3v_train.data.sources import Source, choose_eval_split, open_source, open_sources, unique_names
from phi3v_train.evaluation.choose_metrics import choose_metrics
from phi3v_train.evaluation.metric import Metric
from phi3v_train.models.loading import ModelFiles, is_adapter, load_processor, locate
from phi3v_train.models.machine import Compute, choose_compute
from phi3v_train.models.renderer import Renderer
from phi3v_train.models.size import ModelSize
from phi3v_train.settings import Settings
from phi3v_train.training.memory import GB, Memory, estimate, fits
from phi3v_train.training.parallel.deepspeed_config import RunShape, plan_deepspeed, summary
from phi3v_train.training.parallel.strategy import ParallelStrategy, choose_strategy

PROBED_ROWS = 64
"""Rows measured for the plan's token counts."""

SHOWN_DEFAULTS = ("learning_rate", "batch_size", "batch_size_per_gpu", "num_train_epochs", "num_crops", "warmup_steps")
"""Settings that the plan shows even where nothing set them."""


@dataclass(frozen=True)
class Probe:
    """Sizes of some samples: what they cost to compute."""

    measures: tuple[Measure, ...]

    @property
    def mean_tokens(self) -> float:
        """Mean length."""
        return fmean(measure.cost.tokens for measure in self.measures)

    @property
    def max_tokens(self) -> int:
        """Longest."""
        return max(measure.cost.tokens for measure in self.measures)

    @property
    def max_tiles(self) -> int:
        """Most tiles."""
        return max(measure.cost.tiles for measure in self.measures)

    @property
    def max_labels(self) -> int:
        """Most supervised tokens."""
        return max(measure.num_supervised for measure in self.measures)


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

    @property
    def config(self) -> RunConfig:
        """The resolved configuration."""
        return self.settings.config

    @property
    def memory(self) -> Memory:
        """Memory of the device that needs most."""
        return self.strategy.memory

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
        return self.files.family.renderer(self.processor)

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
    sources = open_sources(config.data.data_dir, config.data.train_split, num_crops=config.model.num_crops)
    order = SampleOrder(
        tuple(len(source) for source in sources), config.optim.batch_size, config.optim.seed, config.data.mix
    )
    total = config.optim.max_steps or order.total_steps(config.optim.num_train_epochs)
    eval_source = open_eval_source(config, sources)
    scored = [eval_source] if eval_source is not None else sources
    choice = choose_metrics(config.eval.metric, next((each.manifest for each in scored if each.manifest), None))
    files = locate_base(config.model.model_name_or_path, weights=weights)
    family = files.family
    if config.data.pack:
        family.refuse_packing()
    sources = tuple(source.with_model(files) for source in sources)
    largest = max(sources, key=lambda source: source.num_crops or 0)
    if largest.num_crops is not None:
        settings = settings.with_num_crops(largest.num_crops, largest.num_crops_from)
    config = settings.config
    if eval_source is not None:
        # The budget of the run, which is written into the model, so that a later evaluation takes the same.
        eval_source = eval_source.with_model(files).with_option(config.model.num_crops)
    compute = choose_compute(config.model)
    if weights:
        refuse_unavailable_optimizer(config, compute)
    processor = load_processor(files, num_crops=config.model.num_crops)
    read = [*sources, *([eval_source] if eval_source is not None else [])]
    size = family.size(files.config())
    renderer = family.renderer(processor)
    reader = make_reader(config, sources, renderer)
    lengths = check_lengths(reader) if config.data.max_length is not None else None
    probe = probe_rows(reader)
    origins = [(source, crops_origin(settings, source)) for source in read]
    notes = model_notes(files, processor, origins, compute=compute, longest=probe.max_tokens)
    family.mark_tuned(processor, config.model.num_crops)
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
    shape = RunShape(
        config.optim, compute.dtype.value, compute.device.value, size.decoder.hidden, world_size, accumulation, total
    )
    return Plan(
        settings, sources, order, eval_source, choice.metrics, files, processor, compute, size, probe, lengths,
        world_size, accumulation, total, strategy, plan_deepspeed(config.parallel, shape), tuple(notes),
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
    """Kinds of sharing that do not exist here, packages that are missing."""
    from phi3v_train.training.methods import refuse_unfit

    refuse_unfit(config.method, config.optim)


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
            return open_source(source.directory, split, num_crops=config.model.num_crops, labelled=True)
    return None


def probe_rows(reader: Reader) -> Probe:
    """Measure up to 64 rows, spread evenly over every source.

    Raises:
        UserError: one of them cannot be encoded.
    """
    share = max(1, PROBED_ROWS // len(reader.sources))
    refs = []
    for number, source in enumerate(reader.sources):
        count = min(share, len(source))
        refs += [SampleRef(number, index * len(source) // count, 0) for index in range(count)]
    return Probe(tuple(reader.measure(ref) for ref in refs))


def crops_origin(settings: Settings, source: Source) -> str:
    """Origin of a source's tile budget: option, a file, a recipe, its dataset.json, the model, or the default."""
    return settings.origin("num_crops") if source.num_crops_from == "option" else source.num_crops_from


def plan_lines(plan: Plan, *, run_state: str) -> Iterator[tuple[str, str]]:
    """The plan as (what, text) lines; `run_state` is whether the run starts, resumes or is complete."""
    config, probe, memory = plan.config, plan.probe, plan.memory
    yield "run", f"{config.output.output_dir}: {run_state}"
    for index, source in enumerate(plan.sources):
        named = f"{plan.source_names[index]}: " if len(plan.sources) > 1 else ""
        origin = crops_origin(plan.settings, source)
        budget = f", num_crops {source.num_crops} ({origin})" if source.num_crops is not None else ""
        mixed = f", weight {config.data.mix[index]:g}" if config.data.mix else ""
        yield (
            "data",
            f"{named}{source.directory} {source.split.name}: {len(source):,} rows{budget}{mixed}",
        )
    if plan.eval_source is not None:
        limit = config.eval.eval_limit
        rows = min(len(plan.eval_source), limit or len(plan.eval_source))
        metrics = ", ".join(metric.name for metric in plan.metrics)
        yield "eval", f"{plan.eval_source.directory} {plan.eval_source.split.name}: {rows:,} rows, {metrics}"
    elif config.eval.is_wanted:
        yield "eval", "none: no split val, dev, dev_seen or test with answers, and no --eval_split"
    else:
        yield "eval", "none: switched off by --no_eval_before and --no_eval_after"
    processes = f" x {plan.world_size} processes" if plan.world_size > 1 else ""
    epochs = plan.total_steps / plan.order.epoch_steps
    samples = f"{plan.order.epoch_samples:,} samples"
    batch = (
        f"{config.optim.batch_size} ({config.optim.batch_size_per_gpu} x {plan.accumulation} accumulated{processes})"
    )
    if config.optim.max_steps is None:
        yield "steps", f"{plan.total_steps:,} = {samples} x {epochs:.3g} epochs / {batch}"
    else:
        yield "steps", f"{plan.total_steps:,} (--max_steps) of {batch} samples: {epochs:.3g} epochs of {samples}"
    yield (
        "tokens",
        f"{probe.mean_tokens:,.0f} a sample, longest {probe.max_tokens:,} (of {len(probe.measures)} rows measured); "
        f"about {probe.mean_tokens * plan.order.epoch_samples / 1e6:,.3g} M an epoch",
    )
    if plan.lengths is not None and plan.lengths.num_too_long:
        yield (
            "length",
            f"{plan.lengths.num_too_long:,} of {plan.lengths.num_measured:,} samples measured are over --max_length "
            f"{config.data.max_length} (longest {plan.lengths.longest:,}): cut at a turn's border",
        )
    share = 100 * memory.trained / plan.size.total
    yield "model", f"{plan.files.name}: {plan.size.total / 1e6:,.4g} M parameters"
    yield "method", f"{config.method.name}: {memory.trained / 1e6:,.4g} M trained ({share:.3g} %)"
    yield "compute", f"{plan.compute.device}, {plan.compute.dtype}, attention {plan.compute.attn}"
    if plan.deepspeed is not None:
        yield "zero", summary(plan.deepspeed)
    if plan.world_size > 1:
        yield "parallel", f"{plan.strategy.name}; {plan.world_size} processes"
    yield "memory", memory_text(memory, plan.strategy.available, config.optim.optim)
    for note in plan.notes:
        yield "warning" if note.is_warning else "note", note.text
    if warning := warmup_warning(config.optim.warmup_steps, plan.total_steps):
        yield "warning", warning
    unused = "num_train_epochs" if config.optim.max_steps is not None else ""
    for name, value in config.flat().items():
        if name in plan.settings.origins or (name in SHOWN_DEFAULTS and name != unused):
            yield "setting", f"{name} {format_value(value)} ({plan.settings.origin(name)})"


def warmup_warning(warmup_steps: int, total_steps: int) -> str:
    """Warning that the warm-up takes more than half of the run; empty if it does not."""
    if warmup_steps * 2 <= total_steps:
        return ""
    steps = counted(total_steps, "step")
    if warmup_steps < total_steps:
        return f"--warmup_steps {warmup_steps} takes more than half of the {steps}; lower it"
    return (
        f"--warmup_steps {warmup_steps} is not over when the run ends after {steps}: the learning rate never reaches "
        "its highest value; lower --warmup_steps"
    )


MOMENTS_NOTE: dict[OptimName, str] = {
    "adamw": "",
    "adamw_8bit": " in 8 bits",
    "paged_adamw_8bit": " in 8 bits, paged to CPU memory where the GPU is full",
}


def memory_text(memory: Memory, available: int, optim: OptimName) -> str:
    """The estimate against what there is."""
    verdict = "" if not available else f" of {available / GB:,.1f} GB"
    if available and not fits(memory, available):
        verdict += ": does not fit"
    moments = f"{memory.moments / GB:,.2f}{MOMENTS_NOTE[optim]}"
    return (
        f"about {memory.total / GB:,.2f} GB{verdict} (weights {memory.weights / GB:,.2f}, gradients "
        f"{memory.gradients / GB:,.2f}, moments {moments}, activations {memory.activations / GB:,.2f})"
    )


def format_value(value: Any) -> str:
    """A setting's value for people."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        return f"{value:g}"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def plan_json(plan: Plan, *, run_state: str) -> dict[str, Any]:
    """The plan as one JSON document."""
    memory = plan.memory
    return {
        "format": 1,
        "run": run_state,
        "output_dir": str(plan.config.output.output_dir),
        "sources": [
            {
                "name": name,
                "data_dir": str(source.directory),
                "split": source.split.name,
                "rows": len(source),
                "num_crops": source.num_crops,
                "num_crops_from": crops_origin(plan.settings, source),
            }
            for name, source in zip(plan.source_names, plan.sources, strict=True)
        ],
        "eval_split": plan.eval_source.split.name if plan.eval_source else None,
        "total_steps": plan.total_steps,
        "epoch_steps": plan.order.epoch_steps,
        "accumulation": plan.accumulation,
        "world_size": plan.world_size,
        "tokens": {"mean": plan.probe.mean_tokens, "max": plan.probe.max_tokens, "measured": len(plan.probe.measures)},
        "parameters": {"total": plan.size.total, "trained": memory.trained},
        "method": plan.config.method.name,
        "compute": {
            name: {"value": chosen.value, "reason": chosen.reason}
            for name, chosen in (
                ("device", plan.compute.device), ("dtype", plan.compute.dtype), ("attn", plan.compute.attn)
            )
        },
        "parallel": {"value": plan.strategy.name.value, "reason": plan.strategy.name.reason},
        "memory": {
            "weights": memory.weights,
            "gradients": memory.gradients,
            "moments": memory.moments,
            "activations": memory.activations,
            "total": memory.total,
            "available": plan.strategy.available,
        },
        "deepspeed": plan.deepspeed,
        "notes": [note.text for note in plan.notes],
        "settings": {
            name: {"value": value, "from": plan.settings.origin(name)} for name, value in plan.config.flat().items()
        },
    }  # fmt: skip
