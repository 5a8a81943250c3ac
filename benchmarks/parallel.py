"""Two processes against one: `python benchmarks/parallel.py [KIND ...] [--steps N] [--batch N] [--no-save]`.

KIND is a value of `--parallel`: ddp, fsdp, zero2, zero3 (default: all that are installed). Each
trains the same small model on the same samples of a DocVQA-like mix (pages of all shapes at 16 crops), through `phi3v-
train run`'s own loop, from the same weights: in one process, in two with balanced work, and in two that take the
samples as they are drawn. Reported, over all steps but the first:

step_s      wall time of a step, and how many times one process's is longer
idle        share of its time that each rank waits for the other one, by two measures: from the seconds of processor
            time that each micro-batch took (a busy machine does not disturb it), and `by_the_clock`, from the moment
            at which each rank has its last gradient (ddp only, for a quiet machine)
not_computing_by_the_clock   waiting and exchanging together: wall time less processor time of the computing thread
sent_mb     megabytes that a rank's sockets sent in a step, counted by the kernel
loss        largest difference to one process

Then a checkpoint of model and optimizer by each kind, of a wider model: written as a run writes it, synced and put in
place, and read; the median of several.

Each process has one thread; images are decoded before a step is timed. On a machine with fewer than two free cores the
wall times say nothing; the load before the start stands with the results. The tables of docs/hardware.md are written
again.
"""

import argparse
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "model"))

import numpy as np
import torch
from common import machine, save
from inputs import build, small_config
from loader import page
from train import SHAPES, fresh_model
from transformers.utils.logging import disable_progress_bar

from phi3v_data.schema import Sample, Turn
from phi3v_train.cli.app import leave
from phi3v_train.config import RunConfig
from phi3v_train.data import loader as loader_module
from phi3v_train.data.encode import Encoder
from phi3v_train.data.loader import StepBatch, TrainLoader
from phi3v_train.data.order import SampleOrder
from phi3v_train.data.partition import Cost, MicroBatches
from phi3v_train.data.reader import Reader
from phi3v_train.data.sources import open_sources
from phi3v_train.distributed.group import make_group
from phi3v_train.distributed.rank_info import RankInfo
from phi3v_train.models.phi3v.configuration_phi3_v import Phi3VConfig
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.models.phi3v.modeling_phi3_v import Phi3VForConditionalGeneration
from phi3v_train.models.phi3v.tiny import tiny_processor
from phi3v_train.models.size import ModelSize
from phi3v_train.parse_config import parse_config
from phi3v_train.precision import Precision
from phi3v_train.training.checkpoints import write_checkpoint
from phi3v_train.training.loop import TrainLoop
from phi3v_train.training.methods import apply_method
from phi3v_train.training.parallel.deepspeed_config import RunShape, plan_deepspeed
from phi3v_train.training.parallel.make_engine import make_engine
from phi3v_train.training.work import work_rates

NUM_CROPS = 16
KINDS = ("ddp", "fsdp", "zero2", "zero3")
MIX = (*SHAPES, (1654, 1170), (800, 300), (600, 900))
"""Pages as of `benchmarks/train.py`, and smaller images: half a page, a strip, a photograph of a note."""

CPU = torch.device("cpu")


def write_pages(directory: Path, rows: int) -> None:
    """Two pages of each shape, and rows with questions about them, shapes drawn at random."""
    (directory / "images").mkdir(parents=True)
    for index, shape in enumerate(MIX * 2):
        page(index).resize(shape).save(directory / "images" / f"{index}.png")
    rng = np.random.default_rng(0)
    words = [
        "what",
        "is",
        "the",
        "total",
        "amount",
        "due",
        "on",
        "this",
        "page",
        "of",
        "invoice",
        "dated",
        "to",
        "whom",
    ]
    with (directory / "pages_train.jsonl").open("w", encoding="utf-8") as file:
        for n in range(rows):
            question = " ".join(rng.choice(words, int(rng.integers(4, 40))))
            answer = " ".join(rng.choice(words, int(rng.integers(1, 9))))
            image = f"{int(rng.integers(2 * len(MIX)))}.png"
            turn = Turn(images=(image,), user=f"{question}?\nAnswer briefly.", assistant=answer)
            file.write(Sample(id=str(n), source="pages", conversations=(turn,)).to_json() + "\n")


# One process of a measurement


def as_drawn(
    costs: Sequence[Cost], *, micro_batch_size: int, world_size: int = 1, **_: Any
) -> tuple[MicroBatches, ...]:
    """The division without balance: sample i to process i modulo their number, in the order drawn."""
    assert micro_batch_size == 1
    return tuple(tuple((index,) for index in range(rank, len(costs), world_size)) for rank in range(world_size))


def bytes_sent() -> int:
    """Bytes that the TCP sockets of this process have sent and that were received, by the kernel's count."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as copy:
                if copy.family in (socket.AF_INET, socket.AF_INET6) and copy.type == socket.SOCK_STREAM:
                    info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    total += struct.unpack_from("Q", info, 120)[0] if len(info) >= 128 else 0
        except OSError:
            continue  # closed in between, or a listening one
    return total


class Watch:
    """Times of one process's step: of each micro-batch, and when the last gradient was there."""

    def __init__(self, loop: TrainLoop) -> None:
        self.micro_batches: list[float] = []
        self.last_gradient = 0.0
        engine, accumulate = loop.engine, loop.engine.accumulate

        def watched(inputs: Mapping[str, Any], count: float, **options: Any) -> Any:
            begin = time.thread_time()
            loss = accumulate(inputs, count, **options)
            self.micro_batches.append(time.thread_time() - begin)
            return loss

        engine.accumulate = watched  # type: ignore[assignment, method-assign]  # measured from outside
        for parameter in engine.trained.model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._arrived)

    def _arrived(self, _: Any) -> None:
        self.last_gradient = time.monotonic()


def make_loop(
    model: Phi3VForConditionalGeneration, kind: str, config: RunConfig, total: int, group: Any
) -> tuple[TrainLoop, ModelSize]:
    """The loop of a run over a small model."""
    size = PHI3V.size(model.config.to_dict())
    precision = Precision("fp32", "cpu")
    trained = apply_method(model, config.method, precision, seed=0, device=CPU)
    optim, world_size = config.optim, group.world_size
    shape = RunShape(optim, "fp32", "cpu", size.decoder.hidden, world_size, optim.batch_size // world_size, total)
    deepspeed = plan_deepspeed(config.parallel, shape) if world_size > 1 else None
    engine = make_engine(kind, group, trained, precision, config, deepspeed=deepspeed)
    return TrainLoop(engine, config, total_steps=total), size


def wide_model() -> Phi3VForConditionalGeneration:
    """Six times the parameters, so that a checkpoint is more than its overhead."""
    wider = {
        "hidden_size": 384,
        "intermediate_size": 1152,
        "num_hidden_layers": 8,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
    }
    return build(Phi3VConfig.from_dict(small_config().to_dict() | wider), "cpu", torch.float32)


def make_config(kind: str, batch: int) -> RunConfig:
    """Full training with accumulation, one sample a forward pass."""
    return parse_config(
        {
            "batch_size": batch,
            "batch_size_per_gpu": 1,
            "learning_rate": 4e-5,
            "warmup_steps": 2,
            "device": "cpu",
            "dtype": "fp32",
            "gradient_checkpointing": False,
            "parallel": "auto" if kind == "single" else kind,
        }
    )


def train(spec: Mapping[str, Any], group: Any) -> dict[str, Any]:
    """All steps on this process; times, bytes and losses."""
    kind, steps = spec["kind"], spec["steps"]
    config = make_config(kind, spec["batch"])
    sources = open_sources([Path(spec["pages"])], "train", num_crops=NUM_CROPS)
    reader = Reader(sources, Encoder(PHI3V.renderer(tiny_processor(NUM_CROPS))))
    loop, size = make_loop(fresh_model(), kind, config, steps, group)
    if not spec["balanced"]:
        loader_module.partition = as_drawn  # type: ignore[attr-defined]  # measured from outside
    loader = TrainLoader(
        reader,
        SampleOrder((len(sources[0]),), spec["batch"]),
        micro_batch_size=1,
        rank=group.rank,
        world_size=group.world_size,
        lockstep=kind not in ("single", "ddp"),
        rates=work_rates(size, config.method, checkpointing=False),
        prepare=PHI3V.prepare,
    )
    watch = Watch(loop)
    loop.engine.module.train()
    rows = []
    for batch in loader.steps(0, steps):
        decoded = list(batch)
        watch.micro_batches.clear()
        group.barrier()
        sent, busy, begin = bytes_sent(), time.thread_time(), time.monotonic()
        result = loop.step(StepBatch(batch.plan, iter(decoded)), begin)
        rows.append(
            {
                "begin": begin,
                "last_gradient": watch.last_gradient,
                "wall": time.monotonic() - begin,
                "busy": time.thread_time() - busy,
                "micro_batches": list(watch.micro_batches),
                "sent": bytes_sent() - sent,
                "loss": result.loss,
                "tokens": result.num_tokens,
            }
        )
    return {"steps": rows, "parameters": loop_parameters(loop)}


def checkpoint(spec: Mapping[str, Any], group: Any) -> dict[str, Any]:
    """Seconds to write and to read model and optimizer, several times; what is read lies in the system's cache."""
    config = make_config(spec["kind"], spec["batch"])
    loop, _ = make_loop(wide_model(), spec["kind"], config, 1, group)
    engine = loop.engine
    engine.module.train()
    ids = torch.arange(8)[None]
    engine.accumulate({"input_ids": ids, "labels": ids}, 8.0, last=True)
    engine.update(0.0, 0.0)
    processor = tiny_processor(NUM_CROPS)
    written, read = [], []
    for number in range(1, spec["rounds"] + 1):
        group.barrier()
        begin = time.monotonic()
        saved = write_checkpoint(
            group, Path(spec["scratch"]), number, {}, write=lambda folder: engine.write(folder, processor), keep=1
        )
        group.barrier()
        written.append(time.monotonic() - begin)
        begin = time.monotonic()
        engine.read(saved.path)
        group.barrier()
        read.append(time.monotonic() - begin)
    files = [path for path in saved.path.rglob("*") if path.is_file()]
    return {
        "write_s": statistics.median(written),
        "read_s": statistics.median(read),
        "bytes": sum(path.stat().st_size for path in files),
        "files": len(files),
        "parameters": loop_parameters(loop),
    }


def loop_parameters(loop: TrainLoop) -> int:
    """Parameters of the model, whole."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in loop.engine.trained.model.parameters())


def work(spec: Mapping[str, Any]) -> None:
    """Run as one process; write the result to a file."""
    torch.set_num_threads(1)
    disable_progress_bar()
    place = RankInfo.from_environment()
    group = make_group(place, CPU)
    result = {"train": train, "checkpoint": checkpoint}[spec["what"]](spec, group)
    Path(spec["result"], f"{place.rank}.json").write_text(json.dumps(result))
    group.barrier()
    group.close()
    leave(SystemExit(0))


# All processes of a measurement, and their results


def measure(world_size: int, scratch: Path, **spec: Any) -> list[dict[str, Any]]:
    """Start the processes of one measurement and collect what each has found."""
    with tempfile.TemporaryDirectory(dir=scratch) as result, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        text = json.dumps({**spec, "result": result, "scratch": result})
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--process", text],
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(world_size),
                    "LOCAL_WORLD_SIZE": str(world_size),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                },
            )
            for rank in range(world_size)
        ]
        if any([process.wait() for process in processes]):  # noqa: C419  # wait for all of them
            raise SystemExit(f"{spec}: a process ended badly")
        return [json.loads(Path(result, f"{rank}.json").read_text()) for rank in range(world_size)]


def idle_by_processor(steps: Sequence[Sequence[Mapping[str, Any]]], *, lockstep: bool) -> list[float]:
    """Share of the time that each rank waits, from the processor seconds of the micro-batches.

    Args:
        steps: for each step what each rank measured.
        lockstep: the ranks meet in every micro-batch, not only at the end of the step.
    """
    spent, computed = 0.0, [0.0] * len(steps[0])
    for ranks in steps:
        times = [rank["micro_batches"] for rank in ranks]
        spent += sum(map(max, zip(*times, strict=True))) if lockstep else max(map(sum, times))
        computed = [total + sum(own) for total, own in zip(computed, times, strict=True)]
    return [round(1 - own / spent, 4) for own in computed]


def summary(ranks: Sequence[Mapping[str, Any]], alone: Sequence[Mapping[str, Any]], kind: str) -> dict[str, Any]:
    """Of all steps but the first."""
    steps = list(zip(*(rank["steps"] for rank in ranks), strict=True))
    counted = steps[1:]
    wall = statistics.fmean(max(rank["wall"] for rank in step) for step in counted)
    single = statistics.fmean(step["wall"] for step in alone[1:])
    result = {
        "step_s": round(wall, 2),
        "times_faster_than_one": round(single / wall, 2),
        "idle": idle_by_processor(counted, lockstep=kind != "ddp"),
        "not_computing_by_the_clock": [
            round(1 - sum(step[rank]["busy"] for step in counted) / sum(step[rank]["wall"] for step in counted), 4)
            for rank in range(len(ranks))
        ],
        "sent_mb_a_rank": round(statistics.fmean(rank["sent"] for step in counted for rank in step) / 1e6, 2),
        "largest_loss_difference": max(
            abs(step[0]["loss"] - one["loss"]) for step, one in zip(steps, alone, strict=True)
        ),
    }
    if kind == "ddp":
        latest = [max(rank["last_gradient"] for rank in step) for step in counted]
        whole = sum(max(rank["wall"] for rank in step) for step in counted)
        result["idle_by_the_clock"] = [
            round(sum(end - step[rank]["last_gradient"] for end, step in zip(latest, counted, strict=True)) / whole, 4)
            for rank in range(len(ranks))
        ]
    return result


def available() -> list[str]:
    """The strategies that can run here."""
    return [kind for kind in KINDS if not kind.startswith("zero") or find_spec("deepspeed") is not None]


def run(kinds: Sequence[str], *, steps: int, batch: int, rounds: int) -> dict[str, Any]:
    """Measure every kind."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        pages = scratch / "pages"
        write_pages(pages, steps * batch)
        common = {"what": "train", "steps": steps, "batch": batch, "pages": str(pages)}

        def say(text: str) -> None:
            print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr)

        say("one process")
        (one,) = measure(1, scratch, kind="single", balanced=True, **common)
        alone = one["steps"]
        tokens = statistics.fmean(step["tokens"] for step in alone)
        result: dict[str, Any] = {
            "load_before": round(load, 1),
            "mix": f"{len(MIX)} shapes, num_crops {NUM_CROPS}, {round(tokens / batch)} tokens a sample",
            "parameters": one["parameters"],
            "global_batch": batch,
            "steps_counted": steps - 1,
            "one_process": {"step_s": round(statistics.fmean(step["wall"] for step in alone[1:]), 2)},
            "two_processes": {},
            "checkpoint": {},
        }
        for kind in kinds:
            for balanced in (True, False):
                division = "balanced" if balanced else "as drawn"
                say(f"{kind}, two processes, {division}")
                ranks = measure(2, scratch, kind=kind, balanced=balanced, **common)
                result["two_processes"].setdefault(kind, {})[division] = summary(ranks, alone, kind)
        for kind in ("single", *kinds):
            say(f"checkpoint of {kind}")
            found = measure(
                1 if kind == "single" else 2, scratch, what="checkpoint", kind=kind, batch=batch, rounds=rounds
            )
            slowest = {name: round(max(rank[name] for rank in found), 3) for name in ("write_s", "read_s")}
            result["checkpoint"][kind] = slowest | {name: found[0][name] for name in ("bytes", "files", "parameters")}
    return result


def table(result: Mapping[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = [
        f"Two processes against one ({result['machine']['cpu']}, {result['machine']['cores']} cores, "
        f"{result['mix']}, {result['parameters'] / 1e6:.2f} M parameters, global batch {result['global_batch']}, "
        f"one sample a forward pass; one process: {result['one_process']['step_s']} s a step; load before the start: "
        f"{result['load_before']})",
        "",
        "| kind | work | s a step | times faster | waiting, ranks 0 and 1 | waiting and exchange, by the clock "
        "| MB sent a step and rank |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind, divisions in result["two_processes"].items():
        for division, row in divisions.items():
            waits, clock = (
                ", ".join(f"{100 * share:.1f} %" for share in row[name])
                for name in ("idle", "not_computing_by_the_clock")
            )
            lines.append(
                f"| {kind} | {division} | {row['step_s']} | {row['times_faster_than_one']} | {waits} | {clock} "
                f"| {row['sent_mb_a_rank']} |"
            )
    million = result["checkpoint"]["single"]["parameters"] / 1e6
    lines += ["", f"| checkpoint of {million:.1f} M parameters | processes | write s | read s | MB | files |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for kind, row in result["checkpoint"].items():
        number = 1 if kind == "single" else 2
        lines.append(
            f"| {kind} | {number} | {row['write_s']} | {row['read_s']} | {row['bytes'] / 1e6:.1f} | {row['files']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help=", ".join(KINDS))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16, help="global batch, even")
    parser.add_argument("--rounds", type=int, default=5, help="checkpoints written and read")
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--process", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        work(json.loads(options.process))
        return
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"unknown kind {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    kinds = options.kinds or available()
    found = run(kinds, steps=options.steps, batch=options.batch, rounds=options.rounds)
    result = {"machine": machine("torch", "transformers", "deepspeed"), **found}
    if options.no_save:
        print(json.dumps(result, indent=2))
    else:
        save("parallel", result).with_suffix(".md").write_text(table(result), encoding="utf-8")
        subprocess.run([sys.executable, Path(__file__).with_name("hardware_page.py")], check=True)
    print(table(result), file=sys.stderr)


if __name__ == "__main__":
    main()
