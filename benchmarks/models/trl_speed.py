"""Training steps against TRL's SFTTrainer: `python benchmarks/models/trl_speed.py [FAMILY ...] [--rows N] [--no-save]`.

Tiny models of qwen3_vl, idefics3 and phi3v, fp32, tower trained, AdamW with the same constants, batch 8, answers only
(`assistant_only_loss`), 512 rows whose lengths are in `lengths.json`, JPEGs on disk. Both begin with the same weights
and take the same rows in the same order; the largest difference of their losses is printed. TRL runs with each of two
settings of its own, its default and a loader process, and the better one counts.

CPU times of whole steps on one thread, images and tokens included, each in a process of its own; the first two steps
are left out. phi3v is measured with one tile per image, and with `<|endoftext|>` behind the last answer in the template
that TRL is given, where our encoder trains it too. `bound_of_no_padding` is what leaving out padding alone could give:
TRL's padded tokens over its tokens.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from common import machine, save
from PIL import Image

from phi3v_data.schema import Sample, Turn
from phi3v_train.data.encode import Encoder
from phi3v_train.data.loader import TrainLoader
from phi3v_train.data.order import SampleOrder
from phi3v_train.data.reader import Reader
from phi3v_train.data.sources import open_sources
from phi3v_train.distributed.group import SingleProcess
from phi3v_train.models.locate import locate
from phi3v_train.models.registry import get_family, make_renderer
from phi3v_train.parse_config import parse_config
from phi3v_train.precision import Precision
from phi3v_train.training.loop import TrainLoop
from phi3v_train.training.methods import apply_method
from phi3v_train.training.parallel.single import SingleEngine

BATCH = 8
SKIPPED = 2
FAMILIES = ("qwen3_vl", "idefics3", "phi3v")
LENGTHS = Path(__file__).with_name("lengths.json")
WORDS = ("the", "a", "of", "red", "blue", "box", "line", "page", "what", "is", "there", "on", "left", "right", "two")
RATE = 1e-4


def write_rows(directory: Path, rows: int) -> None:
    """A conversations directory with the lengths of `lengths.json`."""
    (directory / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (directory / "rows_train.jsonl").open("w", encoding="utf-8") as file:
        for number, (question, answer, width, height) in enumerate(json.loads(LENGTHS.read_text())[:rows]):
            small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
            image.save(directory / "images" / f"{number}.jpg", quality=90)
            asked, told = (" ".join(rng.choice(WORDS, count)) for count in (question, answer))
            turn = Turn(images=(f"{number}.jpg",), user=asked, assistant=told)
            file.write(Sample(id=str(number), source="rows", conversations=(turn,)).to_json() + "\n")


def cpu() -> float:
    """CPU seconds of this process and of its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


class Ours:
    """`phi3v-train run`'s loop, packed, loader included."""

    def __init__(self, name: str, directory: Path, total: int) -> None:
        family = get_family(name)
        values = {"batch_size": BATCH, "batch_size_per_gpu": BATCH, "learning_rate": RATE, "warmup_steps": 0}
        config = parse_config({**values, "lr_scheduler": "constant", "gradient_checkpointing": False, "wd": 0.0})
        files = locate(f"tiny:{name}")
        budget = 1 if name == "phi3v" else None
        sources = [source.with_option(budget).with_model(files) for source in open_sources([directory], "train")]
        self.reader = Reader(sources, Encoder(make_renderer(family, family.tiny_processor())))
        self.order = SampleOrder((len(sources[0]),), BATCH)
        precision = Precision("fp32", "cpu")
        trained = apply_method(family.tiny_model(0), config.method, precision, seed=0, device=torch.device("cpu"))
        engine = SingleEngine(SingleProcess(torch.device("cpu")), trained, precision, config.optim)
        self.loop = TrainLoop(engine, config, total_steps=total)
        engine.module.train()
        pack = not family.no_packing
        loader = TrainLoader(self.reader, self.order, micro_batch_size=BATCH, pack=pack, prepare=family.prepare)
        self.batches: Iterator[Any] = loader.steps(0, total)

    def step(self) -> float:
        """The loss of the next step."""
        return self.loop.step(next(self.batches), 0.0).loss


class Theirs:
    """TRL's trainer, one step at a time."""

    def __init__(self, name: str, ours: Ours, directory: Path, scratch: Path, total: int, workers: int) -> None:
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl import SFTConfig, SFTTrainer

        rows = [self.row(ours, directory, ref) for step in range(total) for ref in ours.order.batch(step)]
        config = SFTConfig(
            output_dir=str(scratch / f"trl{workers}"),
            per_device_train_batch_size=BATCH,
            max_steps=total,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            adam_beta1=0.9,
            adam_beta2=0.95,
            adam_epsilon=1e-7,
            assistant_only_loss=True,
            max_length=None,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to=[],
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            dataloader_num_workers=workers,
            train_sampling_strategy="sequential",
        )
        trainer = SFTTrainer(
            model=get_family(name).tiny_model(0),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=processor_of(name),
        )
        self.trainer = trainer
        self.losses: list[float] = []
        self.times: list[float] = []
        self.padded = self.tokens = 0
        benchmark = self
        collate = trainer.data_collator

        def counted(examples: list[dict[str, Any]]) -> dict[str, Any]:
            batch: dict[str, Any] = collate(examples)
            benchmark.padded += batch["attention_mask"].numel()
            benchmark.tokens += int(batch["attention_mask"].sum())
            return batch

        if not workers:
            trainer.data_collator = counted

        class Watch(TrainerCallback):  # type: ignore[misc]  # transformers has no types
            def on_step_end(self, *_: Any, **__: Any) -> None:
                benchmark.times.append(cpu())

            def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
                if "loss" in logs:
                    benchmark.losses.append(float(logs["loss"]))

        trainer.add_callback(Watch())

    @staticmethod
    def row(ours: Ours, directory: Path, ref: Any) -> dict[str, Any]:
        """A row as TRL takes it: the image as a path, decoded when it is needed."""
        sample = ours.reader.sources[0].split[ref.row]
        (turn,) = sample.conversations
        content = [{"type": "image", "text": None}, {"type": "text", "text": turn.user}]
        messages = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": turn.assistant}]},
        ]
        return {"messages": messages, "images": [str(directory / "images" / turn.images[0])]}


def processor_of(name: str) -> Any:
    """transformers' processor for the tiny model, with the chat template that marks answers."""
    family = get_family(name)
    parts = family.tiny_processor()
    if name == "phi3v":
        family.set_budget(parts, 1)
        chat = family.tokens.chat
        ending = f"'{chat.end_of_turn}\\n' if loop.last"
        assert ending in parts.chat_template
        whole = parts.chat_template.replace(ending, f"'{chat.end_of_turn}\\n{chat.end_of_text}' if loop.last")
        parts.chat_template = parts.tokenizer.chat_template = whole
        return parts
    import transformers

    from phi3v_train.models.other.processor import image_only

    kind = image_only(getattr(transformers, {"qwen3_vl": "Qwen3VLProcessor", "idefics3": "Idefics3Processor"}[name]))
    more: dict[str, Any] = {"video_processor": None} if name == "qwen3_vl" else {"image_seq_len": 4}
    processor: Any = kind(image_processor=parts.image_processor, tokenizer=parts.tokenizer, **more)
    from importlib.resources import files

    processor.chat_template = (files("trl") / "chat_templates" / f"{name}_training.jinja").read_text()
    return processor


def part(name: str, which: str, directory: Path, total: int) -> dict[str, Any]:
    """One of both, alone in this process: rate, losses, tokens and peak memory."""
    ours = Ours(name, directory, total)
    if which == "ours":
        losses, times = [], []
        for _ in range(total):
            losses.append(ours.step())
            times.append(cpu())
        rate = BATCH * (total - SKIPPED) / (times[-1] - times[SKIPPED - 1])
        result: dict[str, Any] = {"rate": rate, "losses": losses}
    else:
        theirs = Theirs(name, ours, directory, directory.parent, total, int(which))
        begin = cpu()
        theirs.trainer.train()
        result = {"losses": theirs.losses, "padding": theirs.padded / max(1, theirs.tokens)}
        if which == "0":
            result["rate"] = BATCH * (total - SKIPPED) / (theirs.times[-1] - theirs.times[SKIPPED - 1])
        else:  # the loader process counts only once it has ended
            result["rate"] = BATCH * total / (cpu() - begin)
    result["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return result


def measure(name: str, rows: int) -> dict[str, Any]:
    """Rates of both on one family, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "rows"
        write_rows(directory, rows)
        found = {}
        for which in ("ours", "0", "1"):
            command = [sys.executable, "-W", "ignore", __file__, name, "--rows", str(rows), "--part", which]
            done = subprocess.run([*command, "--dir", str(directory)], check=True, capture_output=True, text=True)
            found[which] = json.loads(done.stdout.splitlines()[-1])
    ours, trl, loader = found["ours"], found["0"], found["1"]
    best = max(trl["rate"], loader["rate"])
    pairs = zip(ours["losses"], trl["losses"], strict=True)
    return {
        "samples_per_cpu_second": {
            "ours": round(ours["rate"], 2),
            "trl, default": round(trl["rate"], 2),
            "trl, a loader process": round(loader["rate"], 2),
        },
        "times_faster": round(ours["rate"] / best, 2),
        "bound_of_no_padding": round(trl["padding"], 2),
        "largest_loss_difference": max(abs(a - b) for a, b in pairs),
        "losses": {"first": round(ours["losses"][0], 5), "last": round(ours["losses"][-1], 5)},
        "peak_mb": {"ours": ours["peak_mb"], "trl": min(trl["peak_mb"], loader["peak_mb"])},
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--dir", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part is not None:
        print(json.dumps(part(options.families[0], options.part, options.dir, options.rows // BATCH)))
        return
    result: dict[str, Any] = {"machine": machine("torch", "transformers", "trl"), "rows": options.rows, "batch": BATCH}
    for name in options.families:
        result[name] = measure(name, options.rows)
        print(name, json.dumps(result[name]), flush=True)
    if not options.no_save:
        save("trl_speed", result)


if __name__ == "__main__":
    main()
