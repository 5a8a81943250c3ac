"""One optimizer step, right for any split of the global batch over processes and micro-batches.

The loss of a step is the sum of cross-entropy over its supervised tokens, divided by their number in the whole global
batch. That number is known before the first forward pass, so every micro-batch is divided by it at once, and gradients
are only ever added: over micro-batches and over processes, by the engine.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from phi3v_data.errors import UserError
from phi3v_data.messages import join_words
from phi3v_train.config import RunConfig
from phi3v_train.data.loader import MicroBatch, StepBatch, StepPlan
from phi3v_train.data.sources import TOTAL
from phi3v_train.device import is_out_of_memory, to_device, watch_syncs
from phi3v_train.loss import Losses, Sources
from phi3v_train.training.optimizer import rate_factor
from phi3v_train.training.parallel.engine import Engine
from phi3v_train.training.seeds import seed_everything

MAX_NAMED_SAMPLES = 16

FIRST_STEPS = 2
"""Steps in which libraries may wait for the device to set themselves up: DDP rebuilds its buckets in the second one."""


class NonFiniteLossError(UserError):
    """Training went to NaN or infinity; the message names the step and its samples."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """Result of a step, over all processes. `step` counts finished steps: 1 after the first.

    `loss` is the mean over all supervised tokens; `source_losses`, by name, that over the tokens of each data source
    that the step has some of, where the run has several.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    num_samples: int
    num_tokens: int
    num_supervised: int
    num_images: int
    num_truncated: int
    seconds: float
    skipped: bool = False
    flags: tuple[float, ...] = ()
    source_losses: Mapping[str, float] = field(default_factory=dict)


class TrainLoop:
    """Model, optimizer and schedule of a run; `run` trains through the steps it is given.

    `flags` is asked once a step for numbers that travel with the loss: their sums over the processes are the result's
    `flags`. So all processes come to the same decision after a step, and this needs no exchange of its own.
    """

    flags: Callable[[], tuple[float, ...]] = tuple

    def __init__(
        self, engine: Engine, config: RunConfig, *, total_steps: int, source_names: Sequence[str] = ()
    ) -> None:
        self.engine = engine
        self.group = engine.group
        self.config = config
        self.total_steps = total_steps
        self.source_names = tuple(source_names)
        self._num_steps = 0

    def run(self, batches: Iterable[StepBatch], after_step: Callable[[StepResult], bool | None]) -> None:
        """Train on each step in turn; `after_step` logs, evaluates and saves, and ends the run by returning True.

        It must return the same in all processes.

        Raises:
            NonFiniteLossError: a loss or, outside fp16, a gradient is not finite; the weights are as before the step.
            UserError: out of memory.
        """
        self.engine.module.train()
        begin = time.monotonic()
        for batch in batches:
            try:
                result = self.step(batch, begin)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise UserError(out_of_memory_sentence(batch, self.config)) from error
            if after_step(result):
                return
            begin = time.monotonic()

    def step(self, batch: StepBatch, begin: float) -> StepResult:
        """Forward and backward over the micro-batches, then one update."""
        plan = batch.plan
        count = float(max(plan.num_supervised, 1))
        losses = [
            self._accumulate(micro, batch.step, count, last=index + 1 == len(batch))
            for index, micro in enumerate(batch)
        ]
        sums, flags = self.engine.reduce(losses, self.flags())
        loss = sums[TOTAL]
        if not math.isfinite(loss):
            self._refuse(batch, losses, f"the loss is {loss}")
        factor = rate_factor(batch.step, self.total_steps, self.config.optim)
        update = self.engine.update(factor, self.config.optim.max_grad_norm)
        if update.skipped and not self.engine.scales_loss:
            self._refuse(batch, losses, f"the gradient's norm is {update.norm}")
        self._num_steps += 1
        return StepResult(
            step=batch.step + 1,
            loss=loss,
            lr=update.lr,
            grad_norm=update.norm,
            num_samples=len(plan.refs),
            num_tokens=plan.num_tokens,
            num_supervised=plan.num_supervised,
            num_images=plan.num_images,
            num_truncated=plan.num_truncated,
            seconds=time.monotonic() - begin,
            skipped=update.skipped,
            flags=tuple(flags),
            source_losses=self._source_losses(plan, sums),
        )

    def _source_losses(self, plan: StepPlan, sums: Mapping[str, float]) -> dict[str, float]:
        """Mean loss over the supervised tokens of each source that the step has some of."""
        if len(self.source_names) < 2:
            return {}
        counts = {name: plan.supervised_of(number) for number, name in enumerate(self.source_names)}
        return {name: sums[name] / count for name, count in counts.items() if count}

    def _accumulate(self, micro: MicroBatch, step: int, count: float, *, last: bool) -> Losses:
        """Add one micro-batch's gradients; its part of the step's losses, on the device.

        Dropout is seeded by the samples, so it is the same after a resume and on any number of processes.
        """
        names = [f"{each.provenance.split}[{each.provenance.row}]" for each in micro.measures]
        seed_everything(self.config.optim.seed, "step", step, *names)
        several = len(self.source_names) > 1
        with watch_syncs(self.group.device) if self._num_steps >= FIRST_STEPS else nullcontext():
            inputs = to_device(micro.inputs, self.group.device)
            sources = Sources.of(micro, self.source_names, self.group.device) if several else None
            return self.engine.accumulate(inputs, count, last=last, sources=sources)

    def _refuse(self, batch: StepBatch, losses: Sequence[Losses], reason: str) -> None:
        """Stop before the update, naming the samples: those of the bad micro-batches, or all of the step's."""
        groups = [[batch.plan.measures[index] for index in indices] for indices in batch.plan.micro_batches]
        bad = [
            str(measure.provenance)
            for group, each in zip(groups, losses, strict=True)
            if not math.isfinite(each[TOTAL].item())
            for measure in group
        ]
        named = [name for names in self.group.all_gather(bad) for name in names]
        named = named or [str(measure.provenance) for measure in batch.plan.measures]
        advice = (
            "--dtype bf16 or a lower --learning_rate"
            if self.engine.precision.name == "fp16"
            else "a lower --learning_rate"
        )
        raise NonFiniteLossError(
            f"step {batch.step + 1}: {reason}, so training stopped before the update; look at the samples or try "
            f"{advice}; samples: {join_words(named, MAX_NAMED_SAMPLES)}"
        )


def out_of_memory_sentence(batch: StepBatch, config: RunConfig) -> str:
    """Advice on what to lower, the cheapest thing first."""
    if config.optim.batch_size_per_gpu > 1:
        advice = f"lower --batch_size_per_gpu from {config.optim.batch_size_per_gpu}; --batch_size and the result stay"
    elif not config.model.gradient_checkpointing:
        advice = "leave out --no_gradient_checkpointing"
    elif not config.method.use_lora:
        advice = "train with --use_lora, or --use_qlora, or over more devices"
    else:
        budgets = [f"lower --{name} from {value}" for name, value in config.model.image_options.items()]
        advice = ", or ".join([*budgets[:1], "set --max_length"])
    longest = max(measure.cost.tokens for measure in batch.plan.measures)
    return f"out of memory in step {batch.step + 1}, whose longest sample has {longest} tokens: {advice}"
