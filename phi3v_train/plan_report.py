"""The plan of a run for people, as lines, and for programs, as JSON."""

from collections.abc import Iterator
from dataclasses import asdict
from math import ceil
from typing import Any

from phi3v_data.messages import counted, shown
from phi3v_train.config import EvalConfig, OptimName
from phi3v_train.data.probe import MeasuredRow
from phi3v_train.data.sources import budget_shown
from phi3v_train.plan import Plan
from phi3v_train.training.best import Criterion
from phi3v_train.training.memory import GB, Memory, fits, loading_bytes
from phi3v_train.training.parallel.deepspeed_config import summary

LISTED_LONGEST = 10
"""The longest samples in the plan's JSON; its text names the longest one."""

SHOWN_DEFAULTS = ("learning_rate", "batch_size", "batch_size_per_gpu", "num_train_epochs", "num_crops", "warmup_steps")
"""Settings that the plan shows even where nothing set them."""


def plan_lines(plan: Plan, *, run_state: str) -> Iterator[tuple[str, str]]:
    """The plan as (what, text) lines; `run_state` is whether the run starts, resumes or is complete."""
    config, probe, memory = plan.config, plan.probe, plan.memory
    tokens = plan.renderer.tokens
    yield "run", f"{config.output.output_dir}: {run_state}"
    for index, source in enumerate(plan.sources):
        named = f"{plan.source_names[index]}: " if len(plan.sources) > 1 else ""
        value, origin = budget_shown(source, tokens)
        budget = (
            f", {tokens.budget_option} {value} ({plan.settings.budget_origin(origin)})" if value is not None else ""
        )
        mixed = f", weight {config.data.mix[index]:g}" if config.data.mix else ""
        yield (
            "data",
            f"{named}{source.given} {source.split.name}: {len(source):,} rows{budget}{mixed}",
        )
    if plan.eval_source is not None:
        limit = config.eval.eval_limit
        rows = min(len(plan.eval_source), limit or len(plan.eval_source))
        metrics = ", ".join(metric.name for metric in plan.metrics)
        yield "eval", f"{plan.eval_source.given} {plan.eval_source.split.name}: {rows:,} rows, {metrics}"
    elif config.eval.is_wanted:
        yield "eval", "none: no split val, dev, dev_seen or test with answers, and no --eval_split"
    else:
        yield "eval", "none: switched off by --no_eval_before and --no_eval_after"
    if plan.criterion is not None:
        yield "best", best_text(plan.criterion, config.eval)
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
        f"{probe.mean_tokens:,.0f} per sample, longest {probe.max_tokens:,} ({measured_text(plan)}); "
        f"about {probe.mean_tokens * plan.order.epoch_samples / 1e6:,.3g} M per epoch",
    )
    [longest] = probe.longest(1)
    largest, activations = plan.most_memory()
    if longest != largest:
        yield "longest", row_text(plan, longest)
    yield "largest", f"{row_text(plan, largest)}: the most memory, about {activations / GB:,.2g} GB of activations"
    if plan.lengths is not None and plan.lengths.num_too_long:
        yield (
            "length",
            f"{plan.lengths.num_too_long:,} of {plan.lengths.num_measured:,} samples measured are over --max_length "
            f"{config.data.max_length} (longest {plan.lengths.longest:,}): cut at a turn's border",
        )
    share = 100 * memory.trained / plan.size.total  # over 100 % for adapters of a high rank on a tiny model
    whose = "the base model's" if config.method.use_lora else "the model's"
    yield "model", f"{plan.files.name}: {plan.size.total / 1e6:,.4g} M parameters"
    yield "method", f"{config.method.name}: {memory.trained / 1e6:,.4g} M trained, {share:.3g} % of {whose} parameters"
    yield "compute", f"{plan.compute.device}, {plan.compute.dtype}, attention {plan.compute.attn}"
    if plan.deepspeed is not None:
        yield "zero", summary(plan.deepspeed)
    if plan.world_size > 1:
        yield "parallel", f"{plan.strategy.name}; {plan.world_size} processes"
        yield "host", loading_text(plan)
    on_cpu = plan.compute.device.value == "cpu"
    yield "memory", memory_text(memory, plan.strategy.available, config.optim.optim, on_cpu=on_cpu)
    for note in plan.notes:
        yield "warning" if note.is_warning else "note", note.text
    if warning := warmup_warning(config.optim.warmup_steps, plan.total_steps):
        yield "warning", warning
    unused = {"num_train_epochs"} if config.optim.max_steps is not None else set()
    if tokens.max_budget is None or tokens.budget_option != "num_crops":
        unused.add("num_crops")
    for name, value in config.flat().items():
        shown_default = name in SHOWN_DEFAULTS and name not in unused and value is not None
        if name in plan.settings.origins or shown_default:
            yield "setting", f"{name} {format_value(value)} ({plan.settings.origin(name)})"


def best_text(criterion: Criterion, config: EvalConfig) -> str:
    """Decisions by the evaluations during training."""
    extreme = "highest" if criterion.mode == "max" else "lowest"
    parts = [f"{extreme} {criterion.words()}, every {counted(config.eval_steps or 0, 'step')}"]
    if config.keep_best:
        parts.append("its checkpoint is kept and becomes the model")
    if config.early_stopping_patience:
        more = f" by more than {config.early_stopping_min_delta:g}" if config.early_stopping_min_delta else ""
        evaluations = counted(config.early_stopping_patience, "evaluation")
        parts.append(f"the run ends after {evaluations} without an improvement{more}")
    return "; ".join(parts)


def measured_text(plan: Plan) -> str:
    """How many rows were measured, and which, if not all were."""
    measured, total = len(plan.probe.rows), sum(map(len, plan.sources))
    if measured == total:
        return f"of {counted(measured, 'row')} measured"
    return (
        f"of {measured:,} rows measured out of {total:,}, those with the longest lines among them: a short line with "
        "large images may be longer"
    )


def row_text(plan: Plan, row: MeasuredRow) -> str:
    """A measured row for people: `2,319 tokens, 3 images: DIR/FILE:LINE (row 7, id 'train-0000000007')`."""
    measure = row.measure
    return (
        f"{counted(measure.cost.tokens, 'token')}, {counted(measure.num_images, 'image')}: "
        f"{plan.reader().location(row.ref)} (row {row.ref.row}, id {shown(measure.provenance.id)})"
    )


def row_json(plan: Plan, row: MeasuredRow) -> dict[str, Any]:
    """A measured row for programs."""
    source, measure = plan.sources[row.ref.source], row.measure
    file, line = source.split.location(row.ref.row)
    return {
        "data_dir": str(source.directory),
        "file": file,
        "line": line,
        "row": row.ref.row,
        "id": measure.provenance.id,
        "tokens": measure.cost.tokens,
        "images": measure.num_images,
        "tiles": measure.cost.tiles,
    }


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


CPU_NOTE = "; a run on a CPU also holds its libraries and copies, 0.4 to 1.6 GB where it was measured"
"""Ten runs of the tiny model and of one with 30 M parameters, full, LoRA, and with the vision tower frozen, in fp32 and
bf16: between their largest resident size and the estimate. No formula came near all of them."""


def memory_text(memory: Memory, available: int, optim: OptimName, *, on_cpu: bool) -> str:
    """The estimate against what there is."""
    verdict = "" if not available else f" of {available / GB:,.1f} GB"
    if available and not fits(memory, available):
        verdict += ": does not fit"
    moments = f"{memory.moments / GB:,.2f}{MOMENTS_NOTE[optim]}"
    text = (
        f"{memory.total / GB:,.2f} GB{verdict} (weights {memory.weights / GB:,.2f}, gradients "
        f"{memory.gradients / GB:,.2f}, moments {moments}, activations {memory.activations / GB:,.2f})"
    )
    return f"at least {text}{CPU_NOTE}" if on_cpu else f"about {text}"


def loading_text(plan: Plan) -> str:
    """Host memory that the processes of a machine take while they load the model."""
    each = loading_bytes(plan.size, plan.config.method, dtype=plan.compute.dtype.value)
    number = ceil(plan.world_size / plan.config.parallel.nnodes)
    own = f"about {each / plan.world_size / GB:,.2f} GB"
    together = f"{number * each / GB:,.2f} GB for {counted(number, 'process', 'processes')} of a machine"
    whole = f"about {each / GB:,.2f} GB, {together}"
    rows = plan.row_source
    if rows is not None and rows.directory is not None:
        return f"each process reads its rows of the weights only: {own}"
    if rows is not None and not rows.reason:
        return (
            f"each process reads its rows of the weights only, {own}, if the names in their files, which are not here, "
            f"are known; else it loads the whole model first: {whole}"
        )
    why = f" ({rows.reason})" if rows is not None else f" ({WHOLE[plan.strategy.name.value]})"
    return f"each process loads the whole model into the machine's memory first{why}: {whole}"


WHOLE = {
    "ddp": "ddp keeps a whole copy in each",
    "zero2": "zero2 keeps a whole copy of what computes in each",
    "zero3": "zero3 shards a model that is loaded",
}
"""Why a parallel strategy other than FSDP loads the whole model in each process."""


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
    largest, activations = plan.most_memory()
    return {
        "format": 1,
        "run": run_state,
        "output_dir": str(plan.config.output.output_dir),
        "sources": [
            {
                "name": name,
                "data_dir": source.given,
                "split": source.split.name,
                "rows": len(source),
                "num_crops": source.num_crops,
                "num_crops_from": plan.settings.budget_origin(source.num_crops_from),
            }
            for name, source in zip(plan.source_names, plan.sources, strict=True)
        ],
        "eval_split": plan.eval_source.split.name if plan.eval_source else None,
        "best": asdict(plan.criterion) if plan.criterion else None,
        "total_steps": plan.total_steps,
        "epoch_steps": plan.order.epoch_steps,
        "accumulation": plan.accumulation,
        "world_size": plan.world_size,
        "tokens": {"mean": plan.probe.mean_tokens, "max": plan.probe.max_tokens, "measured": len(plan.probe.rows)},
        "longest": [row_json(plan, row) for row in plan.probe.longest(LISTED_LONGEST)],
        "largest": {**row_json(plan, largest), "activations": activations},
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
