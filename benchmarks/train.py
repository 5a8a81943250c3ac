"""Training against the straightforward loop: `python benchmarks/train.py [speed] [start] [--steps N] [--no-save]`.

speed   samples per CPU second on a DocVQA-like mix of page shapes, from files on disk to updated weights. The
        straightforward loop decodes with Pillow, makes fp32 tiles with their zero padding, pads every row to the
        longest of its batch, runs every tile, every tower layer and every logit, and steps AdamW. Ours is `phi3v-train
        run`'s own loop. Both begin with the same weights and train on the same samples in the same order; the largest
        difference of their losses is printed. Then each lever alone, on the straightforward loop.
start   seconds to the end of the first step on a directory of 1 million rows, without imports and without loading the
        model: first start, second start, and a run that goes on past 100,000 samples. Validation of the data, which
        has a benchmark of its own, is left out.

Times of `speed` are CPU times of one process on one thread, steps of all variants in turns, the first step left out.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "model"))

import numpy as np
import torch
from common import machine, save
from inputs import build, small_config
from loader import page, straightforward
from plain import Levers, PlainModel
from torch import Tensor

from phi3v_data.schema import Sample, Turn
from phi3v_train.config import RunConfig
from phi3v_train.data.encode import Encoder
from phi3v_train.data.loader import TrainLoader
from phi3v_train.data.order import SampleOrder, SampleRef
from phi3v_train.data.reader import Reader
from phi3v_train.data.sources import open_sources
from phi3v_train.distributed.group import SingleProcess
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.models.phi3v.tiles import pad_tiles, tiles_from_canvases
from phi3v_train.models.phi3v.tiny import tiny_processor
from phi3v_train.parse_config import parse_config
from phi3v_train.precision import Precision
from phi3v_train.training.loop import TrainLoop
from phi3v_train.training.methods import apply_method
from phi3v_train.training.optimizer import make_optimizer, rate_factor, set_rates
from phi3v_train.training.parallel.single import SingleEngine

NUM_CROPS = 16
BATCH = 4
CPU = torch.device("cpu")

SHAPES = (
    *[(1700, 2200)] * 5,  # letter
    *[(1654, 2339)] * 3,  # A4
    (1700, 2800),  # legal
    (2200, 1700),  # letter, turned
    (900, 2400),  # receipt
    (1700, 700),  # upper part of a page
)
"""(width, height) of the pages, in the shares in which they are drawn."""


def write_pages(directory: Path, rows: int) -> None:
    """Pages of mixed shapes with a question each, as grey PNG; questions and answers of unequal length."""
    (directory / "images").mkdir(parents=True)
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
        "the",
        "invoice",
        "dated",
        "to",
        "whom",
    ]
    with (directory / "pages_train.jsonl").open("w", encoding="utf-8") as file:
        for n in range(rows):
            shape = SHAPES[int(rng.integers(len(SHAPES)))]
            page(n).resize(shape).save(directory / "images" / f"{n}.png")
            question = " ".join(rng.choice(words, int(rng.integers(4, 40))))
            answer = " ".join(rng.choice(words, int(rng.integers(1, 9))))
            turn = Turn(images=(f"{n}.png",), user=f"{question}?\nAnswer briefly.", assistant=answer)
            file.write(Sample(id=str(n), source="pages", conversations=(turn,)).to_json() + "\n")


def collate_plain(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Right-padded rows, all tiles."""
    longest = max(row["input_ids"].shape[1] for row in rows)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    batch = {
        name: torch.from_numpy(
            np.concatenate(
                [np.pad(row[name], ((0, 0), (0, longest - row[name].shape[1])), constant_values=value) for row in rows]
            )
        )
        for name, value in fill.items()
    }
    for name in ("pixel_values", "image_sizes"):
        batch[name] = torch.from_numpy(np.concatenate([row[name] for row in rows]))
    return batch


def fast_row(reader: Reader, ref: SampleRef) -> dict[str, Any]:
    """A row from our reader in the straightforward layout: the lever of the loader alone."""
    sample = reader.encode(ref)
    images = PHI3V.renderer(tiny_processor(NUM_CROPS)).collate_images(sample.images)
    sizes, canvases = (torch.from_numpy(images[name]) for name in ("image_sizes", "canvases"))
    tiles = pad_tiles(tiles_from_canvases(canvases, sizes), sizes, NUM_CROPS + 1)
    return {
        "input_ids": sample.input_ids[None],
        "attention_mask": np.ones_like(sample.input_ids)[None],
        "labels": sample.labels[None],
        "pixel_values": tiles.numpy(),
        "image_sizes": images["image_sizes"],
    }


class PlainLoop:
    """The straightforward loop, with at most one saving switched on."""

    def __init__(self, reader: Reader, order: SampleOrder, config: RunConfig, total: int, levers: Levers, read: Any):
        self.reader, self.order, self.read = reader, order, read
        self.config, self.total = config, total
        self.model = PlainModel(fresh_model(), levers).train()
        self.optimizer = make_optimizer(self.model.named_parameters(), config.optim, PHI3V)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def step(self, number: int) -> float:
        batch = collate_plain([self.read(self.reader, ref) for ref in self.order.batch(number)])
        loss = self.model(**batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_([p for p in self.parameters if p.grad is not None], 1.0)
        set_rates(self.optimizer, rate_factor(number, self.total, self.config.optim))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


class OurLoop:
    """`phi3v-train run`'s loop, loader included."""

    def __init__(self, reader: Reader, order: SampleOrder, config: RunConfig, total: int, *, pack: bool, micro: int):
        precision = Precision("fp32", "cpu")
        trained = apply_method(fresh_model(), config.method, precision, seed=0, device=CPU)
        self.engine = SingleEngine(SingleProcess(CPU), trained, precision, config.optim)
        self.loop = TrainLoop(self.engine, config, total_steps=total)
        self.engine.module.train()
        prepare = self.engine.trained.family.prepare
        loader = TrainLoader(reader, order, micro_batch_size=micro, pack=pack, prepare=prepare)
        self.batches: Iterator[Any] = loader.steps(0, total)

    def step(self, number: int) -> float:
        return self.loop.step(next(self.batches), time.monotonic()).loss


def fresh_model() -> Any:
    """The benchmark's small model; the same weights every time."""
    return build(small_config(), "cpu", torch.float32)


def speed(steps: int) -> dict[str, Any]:
    """CPU seconds per step of every variant, measured alternately."""
    config = parse_config({"batch_size": BATCH, "batch_size_per_gpu": BATCH, "learning_rate": 4e-5, "warmup_steps": 2})
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "pages"
        write_pages(directory, steps * BATCH)
        sources = open_sources([directory], "train", num_crops=NUM_CROPS)
        reader = Reader(sources, Encoder(PHI3V.renderer(tiny_processor(NUM_CROPS))))
        order = SampleOrder((len(sources[0]),), BATCH)
        measures = [reader.measure(ref) for number in range(steps) for ref in order.batch(number)]

        def plain(levers: Levers = Levers(), read: Any = straightforward) -> PlainLoop:  # noqa: B008  # frozen
            return PlainLoop(reader, order, config, steps, levers, read)

        variants: dict[str, Any] = {
            "straightforward": plain(),
            "ours, packed": OurLoop(reader, order, config, steps, pack=True, micro=BATCH),
            "ours, padded": OurLoop(reader, order, config, steps, pack=False, micro=BATCH),
            "only: labelled logits": plain(Levers(labelled_logits=True)),
            "only: no zero tiles": plain(Levers(no_zero_tiles=True)),
            "only: no last tower layer": plain(Levers(no_last_layer=True)),
            "only: our reader": plain(read=fast_row),
        }
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        losses: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(steps):
            for name, variant in variants.items():
                begin = time.process_time()
                losses[name].append(variant.step(number))
                if number:
                    seconds[name].append(time.process_time() - begin)
    base = sum(seconds["straightforward"])
    lengths = [measure.cost.tokens for measure in measures]
    return {
        "samples": len(measures),
        "batch": BATCH,
        "tokens": {"mean": round(statistics.fmean(lengths)), "min": min(lengths), "max": max(lengths)},
        "tiles_mean": round(statistics.fmean(measure.cost.tiles for measure in measures), 1),
        "samples_per_cpu_second": {
            name: round(BATCH * len(values) / sum(values), 3) for name, values in seconds.items()
        },
        "times_faster": {name: round(base / sum(values), 2) for name, values in seconds.items()},
        "losses": {name: [round(value, 6) for value in losses[name]] for name in ("straightforward", "ours, packed")},
        "largest_loss_difference": {
            name: max(abs(a - b) for a, b in zip(values, losses["straightforward"], strict=True))
            for name, values in losses.items()
        },
    }


def write_million(directory: Path) -> None:
    """A million rows of text and three images."""
    directory.mkdir()
    with (directory / "million_train.jsonl").open("w", encoding="utf-8") as file:
        for n in range(1_000_000):
            turn = Turn(user=f"Which number is this? {n}", assistant=str(n))
            file.write(Sample(id=f"train-{n:010d}", source="million", conversations=(turn,)).to_json() + "\n")


STARTED = """
import sys, time
begin = time.perf_counter()
import torch, transformers, peft
import phi3v_train.run as module
from phi3v_train.models import loading
from phi3v_train.training.session import Session
imported = time.perf_counter()
spent = {"model": 0.0}
original = loading.load_base
def load(*args, **kwargs):
    start = time.perf_counter()
    model = original(*args, **kwargs)
    spent["model"] += time.perf_counter() - start
    return model
loading.load_base = load
after = Session.after_step
def first(self, result):
    if "first" not in spent:
        spent["first"] = time.perf_counter()
        spent["step"] = result.seconds
    after(self, result)
Session.after_step = first
from phi3v_train.settings import resolve
settings = resolve({"data_dir": [sys.argv[1]], "output_dir": sys.argv[2], "model_name_or_path": "tiny", "device": "cpu",
    "batch_size": 16, "batch_size_per_gpu": 16, "pack": True, "max_steps": int(sys.argv[3]), "save_steps": 10000,
    "eval_before": False, "eval_after": False, "report_to": ["none"], "num_workers": 0, "learning_rate": 1e-5,
    "gradient_checkpointing": False})
plan = module.make_plan(settings)
start = module.find_start(plan)
module.train(plan, start, quiet=True)
print(spent["first"] - imported - spent["model"], spent["step"])
"""


def start() -> dict[str, Any]:
    """Seconds from the imports to the first finished step, without loading the model."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "million"
        write_million(directory)

        def run(out: str, steps: int) -> dict[str, float]:
            command = [sys.executable, "-c", STARTED, str(directory), str(Path(scratch) / out), str(steps)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            return {"to_end_of_first_step_s": round(float(printed[0]), 2), "that_step_s": round(float(printed[1]), 2)}

        result["first start, the index of the rows is built"] = run("a", 1)
        result["second start"] = run("b", 1)
        forge_progress(Path(scratch) / "b", 6251)
        result["goes on after 100,016 samples"] = run("b", 6252)
    return result


def forge_progress(output_dir: Path, step: int) -> None:
    """Make the checkpoint of step 1 that of `step`: what it costs to skip does not depend on the weights."""
    source, target = output_dir / "checkpoint-000001", output_dir / f"checkpoint-{step:06d}"
    state = json.loads((source / "state.json").read_text())
    state |= {"step": step, "samples": step * 16, "line": {**state["line"], "step": step}}
    text = json.dumps(state, indent=1) + "\n"
    (source / "state.json").write_text(text)
    marker = json.loads((source / "COMPLETE.json").read_text())
    marker["files"]["state.json"] = len(text.encode())
    (source / "COMPLETE.json").write_text(json.dumps(marker))
    source.rename(target)
    (output_dir / "complete.json").unlink()


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["speed", "start"], help="speed, start")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], dict[str, Any]]] = {"speed": lambda: speed(options.steps), "start": start}
    if unknown := set(options.parts) - set(parts):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    for part in options.parts:
        result = {"machine": machine("torch", "transformers", "Pillow", "simplejpeg"), **parts[part]()}
        print(json.dumps(result, indent=2)) if options.no_save else save(f"train_{part}", result)


if __name__ == "__main__":
    main()
