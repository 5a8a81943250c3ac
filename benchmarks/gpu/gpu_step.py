"""The check of the full-size model's training step: time, share of the GPU's peak, memory against the plan.

The step is that of a run (its engine, number formats and optimizer), with random weights, on one sample as those of
DocVQA: fp32 for what is trained, bf16 for the rest and for products.
"""

import gc
import time
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from fake_step import Watch
from gpu_outcome import Options, require
from inputs import NUM_ANSWER_TOKENS, Batch, full_config
from model_speed import step_flops
from step import METHODS, SAMPLE, SMALL_SAMPLE, host_batch, planned, small_config, trained_model

from phi3v_train.config import MethodConfig, OptimConfig
from phi3v_train.device import change_tensors, to_device
from phi3v_train.distributed.group import SingleProcess
from phi3v_train.precision import Precision
from phi3v_train.training.memory import GB, fits
from phi3v_train.training.parallel.single import SingleEngine

OPERATIONS = {
    "full": "full",
    "full, vision frozen": "frozen vision",
    "LoRA rank 32": "lora all",
    "QLoRA rank 32": "lora all",
}
"""Method of the table -> its name where operations are counted."""

TOLERANCE = 0.15
"""Largest difference of the plan from the peak, as a share of it; on the fake device it is at most a tenth."""


def step(options: Options) -> dict[str, Any]:
    """A step by method: seconds, tokens a second, share of the peak, GB against the plan's."""
    figures = {name: measured(name, options) for name in OPERATIONS}  # QLoRA last: it has to import bitsandbytes
    for name, each in figures.items():
        if "plan / peak" in each:
            share = each["plan / peak"]
            require(abs(share - 1) < TOLERANCE, f"{name}: the plan has {share} of the memory used", figures)
    require(any("plan / peak" in each for each in figures.values()), "no method fits on this GPU", figures)
    return figures


def measured(name: str, options: Options) -> dict[str, Any]:
    """Figures of a method; with gradient checkpointing where it does not fit without, or what it would need."""
    if METHODS[name].get("use_qlora") and find_spec("bitsandbytes") is None:
        return {"left out": "bitsandbytes is not installed"}
    config, sample = (full_config(), SAMPLE) if options.on_gpu else (small_config(), SMALL_SAMPLE)
    method = MethodConfig.model_validate(METHODS[name])
    plans = {kept: planned(config, method, sample, checkpointing=kept) for kept in (False, True)}
    card = torch.cuda.get_device_properties(0).total_memory if options.on_gpu else 10**12
    checkpointing = not fits(plans[False], card)
    plan = plans[checkpointing]
    if not fits(plan, card):
        return {"left out": f"needs {plan.total / GB:.1f} GB, the GPU has {card / GB:.1f}"}
    device = options.torch_device
    precision = Precision("bf16", device.type, cache_casts=not checkpointing)
    free(options)
    before = torch.cuda.memory_allocated() if options.on_gpu else 0
    memory = nullcontext() if options.on_gpu else Watch(device)
    with memory as watch:
        trained = trained_model(config, method, precision, device, checkpointing=checkpointing, built_on=options.device)
        engine = SingleEngine(SingleProcess(device), trained, precision, OptimConfig())
        batch = change_tensors(host_batch(*sample), torch.Tensor.pin_memory if options.on_gpu else torch.clone)
        peak = peak_of_step(engine, batch, device, watch) - before
    seconds = min(seconds_of_step(engine, batch, device) for _ in range(5 if options.on_gpu else 1))
    tokens, side, _ = sample
    labels = torch.zeros(1, NUM_ANSWER_TOKENS, dtype=torch.long)
    work = step_flops(trained.model, Batch({"labels": labels}, tokens, side * side + 1), OPERATIONS[name])
    del engine, trained
    free(options)
    return {
        "checkpointing": checkpointing,
        "seconds per step": round(seconds, 4),
        "tokens a second": round(tokens / seconds),
        "useful TFLOP a step": round(work / 1e12, 4),
        "share of peak": round(work / seconds / options.peak / 1e12, 4),
        "peak GB": round(peak / GB, 3),
        "plan GB": round(plan.total / GB, 3),
        "plan / peak": round(plan.total / peak, 3),
    }


def free(options: Options) -> None:
    """Give back the memory of the models before."""
    gc.collect()
    if options.on_gpu:
        torch.cuda.empty_cache()


def accumulate(engine: SingleEngine, batch: dict[str, Any], device: torch.device) -> None:
    """A micro-batch and the update."""
    engine.accumulate(to_device(batch, device), float(NUM_ANSWER_TOKENS), last=True)
    engine.update(1.0, 1.0)


def peak_of_step(engine: SingleEngine, batch: dict[str, Any], device: torch.device, watch: Watch | None) -> int:
    """Most bytes alive in a step where moments and the gradients of earlier micro-batches are there already.

    On a CPU, whose memory torch does not count, `watch` does.
    """
    for parameter in engine.parameters:
        parameter.grad = torch.zeros_like(parameter)
    engine.optimizer.step()
    if watch is None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        watch.peak = watch.alive
    accumulate(engine, batch, device)
    return int(torch.cuda.max_memory_allocated()) if watch is None else watch.peak


def seconds_of_step(engine: SingleEngine, batch: dict[str, Any], device: torch.device) -> float:
    """Seconds of a step, with all its work on the GPU."""
    begin = time.perf_counter()
    accumulate(engine, batch, device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin
