"""Checks that compute in this process: golden cases, attention, packing, one process in a group, a real decoder."""

import os
import socket
from importlib.util import find_spec
from typing import Any
from unittest import mock

import torch
from gpu_outcome import Options, SkippedCheck, require
from inputs import NUM_ANSWER_TOKENS, Batch, build, packed, right_padded, small_config, text_samples
from step import METHODS, SMALL_SAMPLE, host_batch, trained_model
from step import small_config as step_config

from phi3v_train.config import MethodConfig, OptimConfig
from phi3v_train.data.sources import TOTAL
from phi3v_train.device import to_device
from phi3v_train.distributed.group import DistributedGroup, Group, SingleProcess
from phi3v_train.distributed.rank_info import RankInfo
from phi3v_train.models.phi3v.tiny import tiny_model
from phi3v_train.precision import Precision
from phi3v_train.training.parallel.ddp import DDPEngine
from phi3v_train.training.parallel.fsdp import FSDPEngine
from phi3v_train.training.parallel.make_engine import first_device
from phi3v_train.training.parallel.single import SingleEngine

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCE = {torch.bfloat16: 0.15, torch.float16: 0.02, torch.float32: 1e-3}
"""Largest difference from the logits in fp32, in their standard deviations."""


FUSED = ("sdpa", *(["flash_attention_2"] if find_spec("flash_attn") else []))


def golden(options: Options) -> dict[str, Any]:
    """Logits of the golden cases in half precision, by each attention, against those of the released code in fp32."""
    from golden_model import SMALL_CASES, golden_case, golden_model

    figures: dict[str, Any] = {}
    for name, dtype in (HALF if options.on_gpu else {"fp32": torch.float32}).items():
        for kind in ("sdpa", "eager"):
            model = golden_model(kind, dtype=dtype).to(options.device)
            worst = 0.0
            for case_name in SMALL_CASES if options.on_gpu else SMALL_CASES[:3]:
                case = golden_case(case_name)
                inputs = {key: value.to(options.device) for key, value in case.inputs.items()}
                if "pixel_values" in inputs:
                    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
                with torch.no_grad():
                    logits = model(**inputs, use_cache=False).logits[0].float().cpu()
                difference = logits[case.tensors["logits_positions"]] - case.tensors["logits"]
                worst = max(worst, (difference.abs().max() / case.tensors["logits"].std()).item())
            figures[f"{name}, {kind}"] = worst
            require(worst < TOLERANCE[dtype], f"{name}, {kind}: logits differ by {worst:.3g} deviations", figures)
    return figures


def small_batches(options: Options) -> tuple[Batch, Batch, torch.dtype]:
    """A packed row and the same samples padded, and the number format."""
    samples = text_samples([400, 90, 260, 33] if options.on_gpu else [40, 19, 26])
    dtype = torch.bfloat16 if options.on_gpu else torch.float32
    return packed(samples, options.device), right_padded(samples, options.device), dtype


def small_model(options: Options, dtype: torch.dtype, kind: str) -> Any:
    """The benchmarks' small model, or the tiny one on a CPU; the same weights for each attention."""
    model: Any = build(small_config(), options.device, dtype) if options.on_gpu else tiny_model().to(dtype)
    model.set_attn_implementation(kind)
    return model.train()


def loss_and_norm(model: Any, batch: Batch) -> tuple[float, float]:
    """Loss, and the norm of the gradient; ids are brought into the model's vocabulary."""
    inputs, size = dict(batch.inputs), model.config.vocab_size
    inputs["input_ids"] = inputs["input_ids"].remainder(size)
    inputs["labels"] = torch.where(inputs["labels"] < 0, inputs["labels"], inputs["labels"].remainder(size))
    model.zero_grad()
    loss = model(**inputs, use_cache=False).loss
    loss.backward()
    norms = [each.grad.float().norm() for each in model.parameters() if each.grad is not None]
    return float(loss.detach()), float(torch.stack(norms).norm())


def agree(names: tuple[str, str], one: tuple[float, float], two: tuple[float, float], exact: bool) -> dict[str, Any]:
    """Losses and norms of the gradient of two ways to compute the same, as figures, if they agree."""
    figures = {name: {"loss": loss, "gradient": norm} for name, (loss, norm) in zip(names, (one, two), strict=True)}
    text = f"losses {one[0]} ({names[0]}) and {two[0]} ({names[1]}), gradients {one[1]} and {two[1]}"
    require(abs(one[0] - two[0]) < (1e-5 if exact else 2e-2), text, figures)
    require(abs(one[1] / two[1] - 1) < (1e-4 if exact else 0.05), text, figures)
    return figures


def attention(options: Options) -> dict[str, Any]:
    """Losses and gradients of fused attention against eager: torch's varlen kernel for packed rows, sdpa for others.

    flash-attn too where it is installed.
    """
    row, padded, dtype = small_batches(options)
    figures: dict[str, Any] = {}
    for name, batch in (("packed", row), ("padded", padded)):
        eager = loss_and_norm(small_model(options, dtype, "eager"), batch)
        for kind in FUSED if options.on_gpu else FUSED[:1]:
            fused = loss_and_norm(small_model(options, dtype, kind), batch)
            figures[f"{name}, {kind}"] = agree((kind, "eager"), fused, eager, not options.on_gpu)
    return figures


def packing(options: Options) -> dict[str, Any]:
    """A packed row against the same samples padded: loss and gradient."""
    row, padded, dtype = small_batches(options)
    model = small_model(options, dtype, "sdpa")
    one, two = (loss_and_norm(model, batch) for batch in (row, padded))
    return agree(("packed", "padded"), one, two, not options.on_gpu)


def free_port() -> int:
    """A TCP port of this machine that nobody uses now."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
    return port


def group(options: Options) -> dict[str, Any]:
    """DDP and FSDP with one process in a group, over NCCL on a GPU, against the engine without one: losses of steps."""
    losses = {kind: losses_of(kind, options) for kind in ("single", "ddp", "fsdp")}
    figures = {"backend": "nccl" if options.on_gpu else "gloo", "losses": losses}
    for kind in ("ddp", "fsdp"):
        pairs = zip(losses[kind], losses["single"], strict=True)
        require(all(abs(one - two) < 0.02 * two for one, two in pairs), f"{kind}: other losses", figures)
    require(losses["single"][-1] < losses["single"][0], "the loss does not fall", figures)
    return figures


def losses_of(kind: str, options: Options) -> list[float]:
    """The loss of three steps on one batch with an engine of this kind."""
    device = options.torch_device
    if options.on_gpu:
        torch.cuda.set_device(device)
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    with mock.patch.dict(os.environ, variables | {"MASTER_PORT": str(free_port())}):
        there: Group = SingleProcess(device) if kind == "single" else DistributedGroup(RankInfo(), device, {})
        with there:
            method = MethodConfig.model_validate(METHODS["full"])
            precision = Precision("bf16", device.type, cache_casts=True)
            first = torch.device(first_device(kind, str(device)))
            trained = trained_model(step_config(), method, precision, first, checkpointing=False, built_on=first.type)
            optim = OptimConfig(learning_rate=1e-3)
            engine: Any
            if kind == "fsdp":
                engine = FSDPEngine(there, trained, precision, optim)
            else:
                engine = (SingleEngine if kind == "single" else DDPEngine)(there, trained, precision, optim)
            batch, losses = host_batch(*SMALL_SAMPLE), []
            for _ in range(3):
                found = engine.accumulate(to_device(batch, device), float(NUM_ANSWER_TOKENS), last=True)
                losses.append(float(found[TOTAL]))
                engine.update(1.0, 1.0)
            return losses


def decoder(options: Options) -> dict[str, Any]:
    """A real decoder in half precision against fp32: the next token after some prompts.

    Another token is wrong where fp32 prefers its own by more than the tolerance.
    """
    if options.decoder is None:
        raise SkippedCheck("no real decoder is here: give the directory of benchmarks/real/smollm2.py with --decoder")
    from phi3v_train.models.phi3v import Phi3VForConditionalGeneration, Phi3VProcessor

    processor = Phi3VProcessor.from_pretrained(options.decoder)
    prompts = [f"The capital of {name} is" for name in ("France", "Italy", "Spain", "Japan", "Egypt")]
    logits: dict[str, torch.Tensor] = {}
    for name, dtype in {"fp32": torch.float32, **HALF}.items():
        model = Phi3VForConditionalGeneration.from_pretrained(options.decoder, dtype=dtype).to(options.device).eval()
        with torch.no_grad():
            rows = [model(**processor(text).to(options.device)).logits[0, -1].float().cpu() for text in prompts]
        logits[name] = torch.stack(rows)
    exact = logits["fp32"]
    figures: dict[str, Any] = {"fp32": [processor.tokenizer.decode([each]) for each in exact.argmax(-1).tolist()]}
    for name, dtype in HALF.items():
        chosen = exact.gather(1, logits[name].argmax(-1, keepdim=True))[:, 0]
        worst = ((exact.max(-1).values - chosen) / exact.std(-1)).max().item()
        figures[f"{name}, preferred by fp32 by"] = worst
        require(worst < TOLERANCE[dtype], f"{name}: another next token than in fp32", figures)
    return figures
