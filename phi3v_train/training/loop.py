"""One optimizer step, right for any split of the global batch over processes and micro-batches.

The loss of a step is the sum of cross-entropy over its supervised tokens, divided by their number in the whole global
batch. That number is known before the first forward pass, so every micro-batch is divided by it at once, and gradients
are only ever added: over micro-batches here, over processes by the strategy.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from phi3v_data.errors import UserError
from phi3v_train.config import RunConfig
from phi3v_train.data.loader import MicroBatch, StepBatch
from phi3v_train.training.methods import TrainedModel
from phi3v_train.training.optimizer import make_optimizer, rate_factor, set_rates
from phi3v_train.training.precision import Precision
from phi3v_train.training.seeds import seed_everything
from phi3v_train.training.strategy import Strategy

MAX_NAMED_SAMPLES = 16


class NonFiniteLossError(UserError):
    """Training went to NaN or infinity; the message names the step and its samples."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step did, over all processes. `step` counts finished steps: 1 after the first."""

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


class LossModule(nn.Module):
    """The model as a function from a micro-batch to its share of the step's loss: what strategies wrap."""

    def __init__(self, model: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        # Buffers are never trained: DistributedDataParallel need not send them round.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    def forward(self, inputs: Mapping[str, Tensor], count: float) -> Tensor:
        """Sum of cross-entropy over the supervised tokens, divided by `count`; 0 where there are none."""
        with self.precision.autocast():
            loss: Tensor = self.model(**inputs, num_items_in_batch=count, return_logits=False).loss
        return loss


class TrainLoop:
    """Model, optimizer and schedule of a run; `run` trains through the steps it is given."""

    def __init__(
        self,
        trained: TrainedModel,
        config: RunConfig,
        *,
        strategy: Strategy,
        precision: Precision,
        total_steps: int,
    ) -> None:
        self.trained = trained
        self.config = config
        self.strategy = strategy
        self.precision = precision
        self.total_steps = total_steps
        self.module = strategy.wrap(LossModule(trained.model, precision))
        self.names = [name for name, _ in trained.trainable()]
        self.parameters = [parameter for _, parameter in trained.trainable()]
        self.optimizer = make_optimizer(trained.trainable(), config.optim)
        self.scaler = precision.make_scaler()

    def run(self, batches: Iterable[StepBatch], after_step: Callable[[StepResult], None]) -> None:
        """Train on each step in turn; `after_step` logs, evaluates and saves.

        Raises:
            NonFiniteLossError: a loss or, outside fp16, a gradient is not finite; the weights are as before the step.
            UserError: out of memory.
        """
        self.module.train()
        begin = time.monotonic()
        for batch in batches:
            try:
                result = self.step(batch, begin)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise UserError(out_of_memory_sentence(batch, self.config)) from error
            after_step(result)
            begin = time.monotonic()

    def step(self, batch: StepBatch, begin: float) -> StepResult:
        """Forward and backward over the micro-batches, then one update."""
        plan = batch.plan
        count = float(max(plan.num_supervised, 1))
        losses = [
            self._accumulate(micro, batch.step, count, last=index + 1 == len(batch))
            for index, micro in enumerate(batch)
        ]
        (loss,) = self.strategy.sum([torch.stack(losses).double().sum().item()])
        if not math.isfinite(loss):
            self._refuse(batch, losses, f"the loss is {loss}")
        lr = set_rates(self.optimizer, rate_factor(batch.step, self.total_steps, self.config.optim))
        self.scaler.unscale_(self.optimizer)
        norm = self.strategy.clip(self.parameters, self.config.optim.max_grad_norm).item()
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            self._refuse(batch, losses, f"the gradient's norm is {norm}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(
            step=batch.step + 1,
            loss=loss,
            lr=lr,
            grad_norm=norm,
            num_samples=len(plan.refs),
            num_tokens=plan.num_tokens,
            num_supervised=plan.num_supervised,
            num_images=plan.num_images,
            num_truncated=plan.num_truncated,
            seconds=time.monotonic() - begin,
            skipped=not math.isfinite(norm),
        )

    def _accumulate(self, micro: MicroBatch, step: int, count: float, *, last: bool) -> Tensor:
        """Add one micro-batch's gradients; returns its share of the loss, on the device.

        Dropout is seeded by the samples, so it is the same after a resume and on any number of processes.
        """
        names = [f"{each.provenance.split}[{each.provenance.row}]" for each in micro.measures]
        seed_everything(self.config.optim.seed, "step", step, *names)
        inputs = to_device(micro.inputs, self.strategy.device)
        with nullcontext() if last else self.strategy.accumulating(self.module):
            loss: Tensor = self.module(inputs, count)
            scaled: Tensor = self.scaler.scale(loss * self.strategy.backward_scale())
            torch.autograd.backward(scaled)
        return loss.detach()

    def _refuse(self, batch: StepBatch, losses: Sequence[Tensor], reason: str) -> None:
        """Stop before the update, naming the samples: those of the bad micro-batches, or all of the step's."""
        groups = [[batch.plan.measures[index] for index in indices] for indices in batch.plan.micro_batches]
        bad = [
            str(measure.provenance)
            for group, loss in zip(groups, losses, strict=True)
            if not math.isfinite(loss.item())
            for measure in group
        ]
        named = [name for names in self.strategy.gather(bad) for name in names]
        named = named or [str(measure.provenance) for measure in batch.plan.measures]
        more = f" and {len(named) - MAX_NAMED_SAMPLES} more" if len(named) > MAX_NAMED_SAMPLES else ""
        advice = (
            "--dtype bf16 or a lower --learning_rate" if self.precision.name == "fp16" else "a lower --learning_rate"
        )
        raise NonFiniteLossError(
            f"step {batch.step + 1}: {reason}, so training stopped before the update; look at the samples or try "
            f"{advice}; samples: {', '.join(named[:MAX_NAMED_SAMPLES])}{more}"
        )

    def optimizer_state(self) -> dict[str, Any]:
        """AdamW's moments by parameter name, on the CPU, and the loss scale."""
        held = self.optimizer.state
        moments = {
            name: {key: value.detach().cpu() for key, value in held[parameter].items()}
            for name, parameter in zip(self.names, self.parameters, strict=True)
            if parameter in held
        }
        return {"moments": moments, "scaler": self.scaler.state_dict()}

    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `optimizer_state` gave."""
        for name, parameter in zip(self.names, self.parameters, strict=True):
            if name in state["moments"]:
                self.optimizer.state[parameter] = {
                    key: value.clone() if key == "step" and not self._is_fused() else value.to(parameter.device)
                    for key, value in state["moments"][name].items()
                }
        if state["scaler"]:
            self.scaler.load_state_dict(dict(state["scaler"]))

    def _is_fused(self) -> bool:
        return bool(self.optimizer.defaults.get("fused"))


def to_device(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Move a micro-batch; picture sizes stay on the CPU, where the model reads them."""
    return {
        name: tensor if name == "image_sizes" else tensor.to(device, non_blocking=True)
        for name, tensor in inputs.items()
    }


@torch.no_grad()
def mean_loss(
    model: nn.Module, micros: Iterable[MicroBatch], *, precision: Precision, strategy: Strategy
) -> float | None:
    """Loss over all supervised tokens of `micros`, each process bringing its own; None where there is none."""
    was_training = model.training
    model.eval()
    module = LossModule(model, precision)
    total, tokens = 0.0, 0
    for micro in micros:
        total += module(to_device(micro.inputs, strategy.device), 1.0).item()
        tokens += micro.shape.num_supervised
    model.train(was_training)
    total, count = strategy.sum([total, float(tokens)])
    return total / count if count else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or on a CPU, where torch says it in words only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def out_of_memory_sentence(batch: StepBatch, config: RunConfig) -> str:
    """What to lower, the cheapest thing first."""
    if config.optim.batch_size_per_gpu > 1:
        advice = f"lower --batch_size_per_gpu from {config.optim.batch_size_per_gpu}; --batch_size and the result stay"
    elif not config.model.gradient_checkpointing:
        advice = "leave out --no_gradient_checkpointing"
    elif not config.method.use_lora:
        advice = "train with --use_lora, or --use_qlora, or over more devices"
    else:
        advice = f"lower --num_crops from {config.model.num_crops}, or set --max_length"
    longest = max(measure.cost.tokens for measure in batch.plan.measures)
    return f"out of memory in step {batch.step + 1}, whose longest sample has {longest} tokens: {advice}"
