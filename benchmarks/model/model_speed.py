"""Time and memory of a step: `python benchmarks/model/model_speed.py [levers] [packing] [generation] [full-size]`.

levers      each saving alone, and ours (all together), against the plain composition on the same batch and weights
packing     packed rows against right padding in data set order, lengths 400 to 2,600, batches of 8, and length-grouped
generation  8 prompts in one left-padded batch against one by one
full-size   Phi-3.5-vision's sizes in bf16 with random weights: tokens/s, peak memory, share of the chip's peak (GPU)

Times are CPU time of one thread on a CPU, wall time around a synchronised step on a GPU; rounds interleave what is
compared and the smallest counts. Peak memory of a step is measured in a fresh process each on a CPU, above what the
process held before it. Results go to benchmarks/results/model_*.json (--no-save: only printed).
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from common import machine, save
from inputs import (
    IMAGES,
    PAD,
    Batch,
    build,
    full_config,
    image_batch,
    packed,
    right_padded,
    small_config,
    text_samples,
)
from plain import Levers, PlainModel
from torch import Tensor

from phi3v_train.models.phi3v.modeling_phi3_v import Phi3VForConditionalGeneration

VARIANTS: dict[str, Levers | None] = {
    "plain": Levers(),
    "labelled logits": Levers(labelled_logits=True),
    "no zero tiles": Levers(no_zero_tiles=True),
    "no last tower layer": Levers(no_last_layer=True),
    "ours": None,
}
METHODS = ("full", "frozen vision", "lora language", "lora all")
PACKAGES = ("torch", "transformers", "peft")


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="levers, packing, generation, full-size; all but full-size if none")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="on a CPU; with more, threads that wait count as work")
    parser.add_argument("--checkpointing", action="store_true", help="full-size: gradient checkpointing")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="full-size: dense bf16 peak of the chip")
    parser.add_argument("--small", action="store_true", help="full-size: the small model instead, to try the script")
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--peak-of", nargs=2, metavar=("VARIANT", "INPUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak_of:
        print(step_memory_here(*options.peak_of))
        return
    parts: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "levers": levers,
        "packing": packing,
        "generation": generation,
        "full-size": full_size,
    }
    unknown = set(options.parts) - set(parts)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    for part in options.parts or ("levers", "packing", "generation"):
        result = {"machine": describe(options.device), "rounds": options.rounds, **parts[part](options)}
        if options.no_save:
            print(result)
        else:
            suffix = "" if options.device == "cpu" else "_gpu"
            save(f"model_{part.replace('-', '_')}{suffix}", result)


def describe(device: str) -> dict[str, Any]:
    """The machine, with its accelerator."""
    found = machine(*PACKAGES) | {"threads": torch.get_num_threads()}
    if device != "cpu":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def clock(device: str) -> float:
    """Seconds: CPU time, or wall time after all work on the GPU is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def best(actions: dict[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, float]:
    """Smallest time of each action after one warm-up run; actions are measured alternately."""
    for action in actions.values():
        action()
    times = dict.fromkeys(actions, float("inf"))
    for _ in range(rounds):
        for name, action in actions.items():
            begin = clock(device)
            action()
            times[name] = min(times[name], clock(device) - begin)
    return times


def train_step(model: torch.nn.Module, batch: Batch) -> Callable[[], float]:
    """Forward and backward."""

    def step() -> float:
        model.zero_grad(set_to_none=True)
        output = model(**batch.inputs)
        loss: Tensor = output if isinstance(output, Tensor) else output.loss
        torch.autograd.backward(loss)
        return loss.item()

    return step


def variant(name: str, ours: Phi3VForConditionalGeneration) -> torch.nn.Module:
    """Ours, or the plain composition with one lever."""
    chosen = VARIANTS[name]
    return ours if chosen is None else PlainModel(ours, chosen).to(ours.device).train()


def levers(options: argparse.Namespace) -> dict[str, Any]:
    """Each saving alone and all together, on five inputs."""
    ours = build(small_config(), options.device, torch.float32)
    models = {name: variant(name, ours) for name in VARIANTS}
    inputs: dict[str, Any] = {}
    for name in IMAGES:
        batch = image_batch(name, options.device, torch.float32)
        steps = {key: train_step(model, batch) for key, model in models.items()}
        losses = {key: step() for key, step in steps.items()}
        spread = max(losses.values()) - min(losses.values())
        if spread > 1e-4:
            raise SystemExit(f"{name}: losses differ by {spread}: {losses}")
        times = best(steps, options.rounds, options.device)
        memory = {key: step_memory(key, name, models[key], batch, options.device) for key in ("plain", "ours")}
        inputs[name] = {
            "tokens": batch.num_tokens,
            "tiles": batch.num_tiles,
            "tiles with padding": batch.inputs["pixel_values"].shape[0] * batch.inputs["pixel_values"].shape[1],
            "seconds": {key: round(value, 4) for key, value in times.items()},
            "time ratio": {key: round(value / times["plain"], 3) for key, value in times.items()},
            "peak MiB of a step": memory,
            "largest difference of losses": spread,
        }
    return {"inputs": inputs}


def step_memory(name: str, image: str, model: torch.nn.Module, batch: Batch, device: str) -> int:
    """Peak memory of a step above what was held before, MiB."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        train_step(model, batch)()
        return int((torch.cuda.max_memory_allocated() - before) / 2**20)
    command = [sys.executable, __file__, "--peak-of", name, image]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def step_memory_here(name: str, image: str) -> int:
    """The same in this process, before its first step."""
    model = variant(name, build(small_config(), "cpu", torch.float32))
    batch = image_batch(image, "cpu", torch.float32)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here; Linux
    before = peak_resident_kib()
    train_step(model, batch)()
    return (peak_resident_kib() - before) // 1024


def peak_resident_kib() -> int:
    """Peak resident memory since it was last reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def packing(options: argparse.Namespace) -> dict[str, Any]:
    """Packed rows against right padding; both compute logits at labels only, so padding alone differs."""
    generator = torch.Generator().manual_seed(3)
    lengths: list[int] = torch.randint(400, 2601, (16,), generator=generator).tolist()
    samples = text_samples(lengths)
    grouped = sorted(samples, key=lambda sample: len(sample[0]))
    ours = build(small_config(), options.device, torch.float32)
    plain = PlainModel(ours, Levers(labelled_logits=True, no_last_layer=True)).to(options.device).train()

    def epoch(model: torch.nn.Module, batches: list[Batch]) -> Callable[[], None]:
        def run() -> None:
            for batch in batches:
                train_step(model, batch)()

        return run

    def batches(make: Callable[..., Batch], rows: list[tuple[Tensor, Tensor]]) -> list[Batch]:
        return [make(rows[begin : begin + 8], options.device) for begin in range(0, len(rows), 8)]

    padded = batches(right_padded, samples)
    actions = {
        "right padding, data set order": epoch(plain, padded),
        "right padding, grouped by length": epoch(plain, batches(right_padded, grouped)),
        "packed rows (ours)": epoch(ours, batches(packed, samples)),
        "right-padded input (ours)": epoch(ours, padded),
    }
    times = best(actions, options.rounds, options.device)
    total = sum(lengths)
    cells = sum(batch.inputs["input_ids"].numel() for batch in padded)
    return {
        "samples": len(lengths),
        "tokens": total,
        "share of padding in data set order": round(1 - total / cells, 3),
        "seconds": {name: round(value, 3) for name, value in times.items()},
        "tokens a second": {name: round(total / value) for name, value in times.items()},
        "times faster than data set order": {
            name: round(times["right padding, data set order"] / value, 2) for name, value in times.items()
        },
    }


@torch.no_grad()
def generation(options: argparse.Namespace) -> dict[str, Any]:
    """Eight prompts of unequal length, 32 new tokens each."""
    model = build(small_config(), options.device, torch.float32).eval()
    model.generation_config.eos_token_id = None
    lengths = [330, 360, 350, 345, 400, 338, 372, 355]
    prompts = [ids for ids, _ in text_samples(lengths)]
    width = max(lengths)
    ids = torch.stack([torch.nn.functional.pad(p, (width - len(p), 0), value=PAD) for p in prompts])
    mask = torch.stack([(torch.arange(width) >= width - len(p)).long() for p in prompts])
    ids, mask = ids.to(options.device), mask.to(options.device)
    settings = {"max_new_tokens": 32, "do_sample": False}

    def together() -> list[list[int]]:
        found: list[list[int]] = model.generate(input_ids=ids, attention_mask=mask, **settings)[:, width:].tolist()
        return found

    def one_by_one() -> list[list[int]]:
        return [
            model.generate(input_ids=p[None].to(options.device), attention_mask=torch.ones_like(p)[None], **settings)[
                0, len(p) :
            ].tolist()
            for p in prompts
        ]

    same = together() == one_by_one()
    times = best({"batch of 8": together, "one by one": one_by_one}, options.rounds, options.device)
    return {
        "prompts": lengths,
        "new tokens": 32,
        "same ids": same,
        "seconds": {name: round(value, 3) for name, value in times.items()},
        "times faster": round(times["one by one"] / times["batch of 8"], 2),
    }


def full_size(options: argparse.Namespace) -> dict[str, Any]:
    """A training step on a square image at 16 crops: 2,545 tokens and 17 tiles, by method."""
    dtype = torch.bfloat16
    methods: dict[str, Any] = {}
    for method in METHODS:
        model = build(small_config() if options.small else full_config(), options.device, dtype)
        prepare(model, method)
        if options.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        batch = image_batch("square, 16 crops", options.device, dtype)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, foreach=True)
        forward_backward = train_step(model, batch)

        def step(run: Callable[[], float] = forward_backward, update: Any = optimizer) -> None:
            run()
            update.step()

        if options.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        seconds = best({"step": step}, options.rounds, options.device)["step"]
        flops = step_flops(model, batch, method)
        peak = torch.cuda.max_memory_allocated() / 2**30 if options.device != "cpu" else None
        methods[method] = {
            "seconds per step": round(seconds, 4),
            "tokens a second": round(batch.num_tokens / seconds),
            "useful TFLOP a step": round(flops / 1e12, 2),
            "share of peak": round(flops / seconds / options.peak_tflops / 1e12, 3),
            "peak GiB": round(peak, 1) if peak is not None else None,
        }
        del model, optimizer, forward_backward, step
        if options.device != "cpu":
            torch.cuda.empty_cache()
    return {
        "model": "small" if options.small else "full size",
        "tokens": batch.num_tokens,
        "tiles": batch.num_tiles,
        "checkpointing": options.checkpointing,
        "peak TFLOP/s assumed": options.peak_tflops,
        "methods": methods,
    }


def prepare(model: Phi3VForConditionalGeneration, method: str) -> None:
    """Freeze or add adapters of rank 32 in place."""
    if method == "frozen vision":
        model.model.vision_embed_tokens.requires_grad_(False)
    if method.startswith("lora"):
        from peft import LoraConfig, inject_adapter_in_model

        targets = r"model\.layers\.\d+\.(self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj)"
        if method == "lora all":
            used = "|".join(str(index) for index in range(model.config.num_vision_layers_used))
            targets += rf"|.*img_processor\..*\.layers\.({used})\.(self_attn\.\w+_proj|mlp\.fc[12])"
            targets += r"|.*img_projection\.[02]"
        model.requires_grad_(False)
        inject_adapter_in_model(LoraConfig(r=32, lora_alpha=64, target_modules=targets), model)


def step_flops(model: Phi3VForConditionalGeneration, batch: Batch, method: str) -> float:
    """Floating-point operations that a step needs at least: no recomputing, head at labels only, no adapters' own.

    2 a weight and token forward, 2 more for the gradient of the inputs, 2 more for that of trained weights; attention
    is twice as much backward, causal in the decoder. Nothing goes backward below what is trained.
    """
    config, tokens, tiles = model.config, batch.num_tokens, batch.num_tiles
    width, inner = config.hidden_size, config.intermediate_size
    head_dim = width // config.num_attention_heads
    attention_size = (config.num_attention_heads + 2 * config.num_key_value_heads) * head_dim * width + width * width
    linear = 2 * tokens * config.num_hidden_layers * (attention_size + 3 * width * inner)
    attention = 2 * tokens**2 * width * config.num_hidden_layers
    labels = int((batch.inputs["labels"] >= 0).sum())
    head = 2 * labels * config.vocab_size * width
    tower = config.vision_settings
    patches = (tower["image_size"] // tower["patch_size"]) ** 2 + 1
    side, mlp, used = tower["hidden_size"], tower["intermediate_size"], config.num_vision_layers_used
    vision = 2 * tiles * patches * used * (4 * side**2 + 2 * side * mlp)
    vision_attention = 4 * tiles * patches**2 * side * used
    projector = 2 * tiles * 144 * (4 * side * width + width**2)
    weights = 3 if method in ("full", "frozen vision") else 2
    through_vision = {"full": 3, "frozen vision": 1, "lora language": 1, "lora all": 2}[method]
    attention_passes = 1 if through_vision == 1 else 3
    return float(
        weights * (linear + head)
        + 3 * attention
        + through_vision * (vision + projector)
        + attention_passes * vision_attention
    )


if __name__ == "__main__":
    main()
