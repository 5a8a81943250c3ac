"""Update the tables of docs/hardware.md: `python benchmarks/hardware_page.py [--check]`.

Memory comes from `phi3v_train.training.memory`, measurements and the step on the fake device from benchmarks/results.
With --check nothing is written, and the exit code is 1 if the page is out of date.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from phi3v_train.config import MethodConfig
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.training.memory import GB, Parallel, estimate, fits

PAGE = Path(__file__).parents[1] / "docs" / "hardware.md"
RESULTS = Path(__file__).parent / "results"

TOKENS, TILES = 2443, 17
"""A large DocVQA sample at 16 crops."""

DEVICES = (1, 2, 4, 8, 16, 32)
CARDS = (80, 48, 40, 32, 24, 16, 12)

METHODS: dict[str, tuple[dict[str, Any], tuple[Parallel, ...]]] = {
    "full": ({}, ("ddp", "fsdp", "zero2", "zero3")),
    "full, vision frozen": ({"freeze_vision_model": True}, ("ddp", "fsdp", "zero2", "zero3")),
    "LoRA rank 128": ({"use_lora": True, "lora_rank": 128}, ("ddp", "fsdp", "zero2", "zero3")),
    "LoRA rank 32": ({"use_lora": True, "lora_rank": 32}, ("ddp", "fsdp", "zero2", "zero3")),
    "QLoRA rank 32": ({"use_qlora": True, "lora_rank": 32}, ("ddp", "zero2", "zero3")),
}
"""Settings of each method, and the parallel strategies that support it."""


def needed(method: str, parallel: Parallel, devices: int) -> Any:
    """Memory of one device, one sample at a time, with gradient checkpointing."""
    config = MethodConfig.model_validate(METHODS[method][0])
    return estimate(
        PHI3V.size({}), config, dtype="bf16", tokens=TOKENS, tiles=TILES, parallel=parallel, world_size=devices
    )


def rows(header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *lines))


def memory_table() -> str:
    """GB per device, by method, parallel strategy and number of devices."""
    lines = []
    for method, (_, kinds) in METHODS.items():
        for kind in kinds:
            cells = [f"{needed(method, kind, number).total / GB:.1f}" for number in DEVICES]
            lines.append([method, f"`{kind}`", *(cells if kind != "ddp" else [cells[0], "same", *["-"] * 4])])
    return rows(["method", "`--parallel`", *(f"{number} GPU{'s' * (number > 1)}" for number in DEVICES)], lines)


def cards_table() -> str:
    """The smallest number of devices for each method and memory size."""
    lines = []
    for method, (_, kinds) in METHODS.items():
        cells = []
        for card in CARDS:
            fewest = next(
                (
                    (number, kind)
                    for number in range(1, 65)
                    for kind in kinds
                    if fits(needed(method, kind, number), card * 10**9)
                ),
                None,
            )
            cells.append("no" if fewest is None else "1" if fewest[0] == 1 else f"{fewest[0]} `{fewest[1]}`")
        lines.append([method, *cells])
    return rows(["method", *(f"{card} GB" for card in CARDS)], lines)


def checkpoint_bytes(method: str) -> int:
    """Bytes of a checkpoint: trained weights in fp32 with two moments; frozen ones of a whole model in 16 bits."""
    size = PHI3V.size({})
    config = MethodConfig.model_validate(METHODS[method][0])
    trained = int(needed(method, "ddp", 1).trained)
    return trained * 12 + (0 if config.use_lora else (size.total - trained) * 2)


def measured_rate() -> float:
    """The measured rate of writing a checkpoint in GB/s: one process, synced to disk."""
    row = read("parallel")["checkpoint"]["single"]
    return float(row["bytes"] / 1e9 / row["write_s"])


def saving_table() -> str:
    """Seconds to save a checkpoint at several rates, including the measured one, plus the time for digests."""
    measured = measured_rate()
    digests = read("checkpoint_digest")
    digest_rate = digests["bytes"] / 1e9 / digests["digest_s"]
    rates = (0.2, 0.5, measured, 5.0)
    lines = []
    for method in METHODS:
        size = checkpoint_bytes(method) / 1e9
        seconds = [size / rate + size / digest_rate for rate in rates]
        cells = [f"{each:,.0f} s" if each >= 1 else "under 1 s" for each in seconds]
        lines.append([method, f"{size:,.1f} GB", *cells])
    names = [f"{rate:.3g} GB/s{' (measured)' if rate == measured else ''}" for rate in rates]
    return rows(["method", "checkpoint", *names], lines)


def read(name: str) -> dict[str, Any]:
    """A result of a benchmark."""
    value: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return value


def measured_table() -> str:
    """Each measurement with its command."""
    speed, start, parallel = read("train_speed"), read("train_start"), read("parallel")
    packing = read("model_packing")["times faster than data set order"]
    per_second, faster = speed["samples_per_cpu_second"], speed["times_faster"]
    lines = [
        [
            "training, small model, pages at 16 crops",
            f"{per_second['ours, packed']} samples per second on one core, {faster['ours, packed']} times the "
            "speed of a straightforward loop",
            "`python benchmarks/train.py speed`",
        ],
        [
            "1 million rows, to the end of the first step",
            f"{start['first start, the index of the rows is built']['to_end_of_first_step_s']} s; resumed after "
            f"100,016 samples {start['goes on after 100,016 samples']['to_end_of_first_step_s']} s",
            "`python benchmarks/train.py start`",
        ],
        [
            "packed rows against right padding",
            f"{packing['packed rows (ours)']} times faster",
            "`python benchmarks/model/model_speed.py packing`",
        ],
    ]
    digests = read("checkpoint_digest")
    lines.append(
        [
            "digests of a checkpoint whose files are still in the page cache",
            f"{digests['digest_s']} s for {digests['bytes'] / 1e9:.0f} GB",
            "`python benchmarks/checkpoint_digest.py`",
        ]
    )
    command = "`python benchmarks/parallel.py`"
    busy = " (under other load, so these times are not reliable)" if parallel["load_before"] >= 1 else ""
    for kind, divisions in parallel["two_processes"].items():
        balanced, drawn = (
            " and ".join(f"{100 * share:.1f} %" for share in divisions[name]["idle"])
            for name in ("balanced", "as drawn")
        )
        row = divisions["balanced"]
        lines.append(
            [
                f"two processes on two cores, `--parallel {kind}`",
                f"the ranks wait {balanced} of the time (samples as drawn: {drawn}); {row['sent_mb_a_rank']} MB sent "
                f"per step and rank; {row['step_s']} s per step, {row['times_faster_than_one']} times faster than one"
                f"{busy}",
                command,
            ]
        )
    for kind, row in parallel["checkpoint"].items():
        lines.append(
            [
                f"checkpoint of {row['parameters'] / 1e6:.1f} M parameters, "
                + ("one process" if kind == "single" else f"two, `{kind}`"),
                f"{row['bytes'] / 1e6:.1f} MB in {row['files']} files, written in {row['write_s']} s, read in "
                f"{row['read_s']} s{busy}",
                command,
            ]
        )
    return rows(["what", "measured", "command"], lines)


def step_table() -> str:
    """The full-size model's step on the fake device, beside the plan's memory."""
    result = read("fake_step")
    lines = []
    for row in result["cases"]:
        planned = estimate(
            PHI3V.size({}),
            MethodConfig.model_validate(METHODS[row["method"]][0]),
            dtype="bf16",
            tokens=result["tokens"],
            tiles=result["tiles"],
            labels=result["labels"],
            checkpointing=row["checkpointing"],
        ).total
        lines.append(
            [
                row["method"],
                "yes" if row["checkpointing"] else "no",
                f"{row['at_rest'] / GB:.1f}",
                f"{row['peak'] / GB:.1f}",
                f"{planned / GB:.1f}",
                f"{100 * (planned / row['peak'] - 1):+.1f} %",
                f"{row['flop'] / 1e12:.1f}",
            ]
        )
    return rows(
        [
            "method",
            "checkpointing",
            "between micro-batches, GB",
            "peak, GB",
            "plan, GB",
            "difference",
            "TFLOP per sample",
        ],
        lines,
    )


TABLES: dict[str, Callable[[], str]] = {
    "memory": memory_table,
    "step": step_table,
    "cards": cards_table,
    "saving": saving_table,
    "measured": measured_table,
}


def filled(page: str) -> str:
    """The page with its tables updated; each is between two comments."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: written by benchmarks/hardware_page.py -->", f"<!-- end of {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        text = f"{begin}\n\n{table()}\n\n{end}"
        page, found = pattern.subn(text.replace("\\", r"\\"), page)
        if found != 1:
            raise SystemExit(f"{PAGE.name}: expected the comments of table {name} once, found them {found} times")
    return page


def main() -> None:
    """Update or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    new = filled(page)
    if options.check:
        sys.exit(new != page)
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
