"""Families x methods x parallel strategies: `python benchmarks/models/matrix.py [FAMILY ...] [--work DIR] [--fresh]`.

For the tiny model of every family (default: all), on rows without an image, with one, with several, with images inside
the text and with several turns:

- runs of four steps on one process: full, each part frozen, LoRA, QLoRA, 8-bit AdamW; the parameters that the plan
  counts are those of the model
- on two processes over gloo: ddp, fsdp and zero3, full and LoRA, zero2, full; loss, gradient norm (relative
  difference under 1e-5 in the first three steps, fp32) and evaluation as on one process
- full and LoRA: killed with SIGKILL after a checkpoint and resumed to the same metrics and weights, bit by bit; then
  merge, eval, predict, inspect, plan and `phi3v-data validate --model`; what was written loads with plain transformers
  (and peft) in a process that never imports phi3v_train, with the same logits

A cell is ok, or says why the run was refused or what failed. Cells that were done before are not repeated; `--fresh`
starts over. Results: results/families.json and results/families.md.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from common import RESULTS, machine
from matrix_rows import make_directory

FAMILIES = (
    *("phi3v", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "idefics3", "smolvlm", "gemma3", "llava_next", "llava_onevision"),
    "internvl",
)
METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "freeze vision": {"freeze_vision_model": True},
    "freeze language": {"freeze_language_model": True},
    "LoRA": {"use_lora": True, "lora_rank": 4},
    "QLoRA": {"use_qlora": True, "lora_rank": 4},
    "adamw_8bit": {"optim": "adamw_8bit"},
}
TOGETHER = (
    *(("ddp", "full"), ("ddp", "LoRA"), ("fsdp", "full"), ("fsdp", "LoRA")),
    *(("zero2", "full"), ("zero3", "full"), ("zero3", "LoRA")),
)
COMMANDS = ("kill and resume", "merge", "eval", "predict", "inspect", "plan", "validate", "plain load")
COLUMNS = [
    *METHODS,
    "counts",
    *(f"{strategy} {method}" for strategy, method in TOGETHER),
    *(f"{method}: {command}" for method in ("full", "LoRA") for command in COMMANDS),
]
STEPS = 4
COMPARED_STEPS = 3
TOLERANCE = 1e-5
TIMEOUT_S = 240
TIMES = ("tokens_per_second", "images_per_second", "seconds")


def options(data_dir: Path, output_dir: Path, model: str, **changes: Any) -> dict[str, Any]:
    """Settings of a run of four steps; the first has a micro-batch without an image."""
    return {
        "data_dir": [str(data_dir)],
        "output_dir": str(output_dir),
        "model_name_or_path": model,
        "device": "cpu",
        "batch_size": 4,
        "batch_size_per_gpu": 1,
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "max_steps": STEPS,
        "num_workers": 0,
        "gradient_checkpointing": False,
        "eval_before": False,
        "eval_after": True,
        "max_new_tokens": 3,
        "report_to": ["none"],
        **({"num_crops": 1} if model == "tiny:phi3v" else {}),
        **changes,
    }


class MismatchError(Exception):
    """A result that is not what it should be."""


class Cells:
    """Results of a family, written after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}

    def run(self, name: str, function: Callable[[], str | None]) -> None:
        """Fill a cell, unless it was filled before."""
        from phi3v_data.errors import UserError

        if self.results.get(name, "").startswith("ok"):
            return
        start = time.process_time()
        try:
            result = function() or "ok"
        except UserError as error:
            result = f"refused: {error}"
        except MismatchError as error:
            result = f"fails: {error}"
        except Exception as error:
            traceback.print_exc()
            result = f"fails: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        self.set(name, result)
        print(
            f"{self.path.name.partition('.')[0]:16} {name:28} {time.process_time() - start:5.1f} s  {result}",
            flush=True,
        )

    def set(self, name: str, result: str) -> None:
        """Write a cell."""
        self.results = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.results[name] = result
        aside = self.path.with_suffix(".new")
        aside.write_text(json.dumps(self.results, indent=2))
        aside.rename(self.path)


def lines(output_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without times."""
    text = (output_dir / "metrics.jsonl").read_text()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in text.splitlines()]


def train(settings: dict[str, Any], hooks: Any = ()) -> None:
    """A run in this process."""
    from phi3v_train.run import run
    from phi3v_train.settings import resolve

    run(resolve(settings), quiet=True, hooks=hooks)


def command(program: str, *arguments: object, allowed: tuple[int, ...] = (0,)) -> str:
    """A command in this process; its stdout."""
    from phi3v_data.cli.app import main as data_main
    from phi3v_data.errors import UserError
    from phi3v_train.cli.app import main as train_main

    sys.argv = [program, *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    code: int | str | None = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            (data_main if program == "phi3v-data" else train_main)()
        except SystemExit as end:
            code = end.code or 0
    if code not in allowed:
        said = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
        if code == 2 and said and "is a bug" not in said[-1]:
            raise UserError(said[-1].removeprefix("error: "))
        raise MismatchError(f"exit code {code}: {(err.getvalue() or out.getvalue()).strip()[-300:]}")
    return out.getvalue()


# One family on one process


def single(family: str, work: Path, cells: Cells) -> None:
    """Everything but the runs of two processes."""
    data_dir = work / "data"
    home = work / family
    model = f"tiny:{family}"
    for name, changes in METHODS.items():
        cells.run(name, partial(learned, options(data_dir, home / name, model, **changes)))
    cells.run("counts", lambda: counts(data_dir, home, model))
    for method in ("full", "LoRA"):
        journey(method, family, data_dir, home, cells)


def learned(settings: dict[str, Any]) -> None:
    """Train, and see that the loss is finite and every trained tensor has changed."""
    import math

    train(settings)
    losses = [line["loss"] for line in lines(Path(settings["output_dir"])) if "loss" in line]
    if len(losses) != STEPS or not all(map(math.isfinite, losses)):
        raise MismatchError(f"losses {losses}")


def counts(data_dir: Path, home: Path, model: str) -> str | None:
    """Parameters that the plan counts against those of the model."""
    import torch

    from phi3v_train.models.loading import load_base
    from phi3v_train.models.locate import locate
    from phi3v_train.plan import make_plan
    from phi3v_train.precision import Precision
    from phi3v_train.settings import resolve
    from phi3v_train.training.methods import apply_method

    wrong = []
    for name, changes in METHODS.items():
        plan = make_plan(resolve(options(data_dir, home / "none", model, **changes)))
        made = load_base(locate(model), plan.compute)
        total = sum(each.numel() for each in made.parameters())
        if total not in (plan.size.total, plan.size.total - plan.size.vision_unused):  # phi3v is built without those
            wrong.append(f"{name}: the plan counts {plan.size.total} parameters, the model has {total}")
        trained = apply_method(made, plan.config.method, Precision("fp32", "cpu"), seed=0, device=torch.device("cpu"))
        real = sum(trained.counts().values())
        if plan.memory.trained != real:
            wrong.append(f"{name}: the plan counts {plan.memory.trained} trained parameters, the run {real}")
    if wrong:
        raise MismatchError("; ".join(wrong))
    return None


def journey(method: str, family: str, data_dir: Path, home: Path, cells: Cells) -> None:
    """Kill, resume, merge, and every command on what was written."""
    base = f"tiny:{family}" if method == "full" else str(home / "full" / "model")
    changes = METHODS[method]
    whole = home / f"{method} whole"
    model = whole / "model"

    def cell(name: str, function: Callable[[], str | None]) -> None:
        cells.run(f"{method}: {name}", function)

    cell(
        "kill and resume",
        lambda: killed(
            options(data_dir, home / f"{method} killed", base, save_steps=2, **changes),
            options(data_dir, whole, base, save_steps=2, **changes),
        ),
    )
    merged = home / f"{method} merged"
    last = whole / f"checkpoint-{STEPS:06d}"
    cell("merge", lambda: merge(model if method == "LoRA" else last, merged))
    common = ("--data_dir", data_dir, "--device", "cpu", "--num_workers", "0", "--max_new_tokens", "3")
    cell("eval", lambda: same_eval(whole, model, common, home / f"{method} eval"))
    cell("predict", lambda: predicted(model, common, home / f"{method} predict"))
    cell("inspect", lambda: inspected(data_dir, model, home / f"{method}.html"))
    method_options = () if method == "full" else ("--use_lora", "--lora_rank", "4")
    planned = ("phi3v-train", "plan", "--json", "--model_name_or_path", base, *method_options)
    cell("plan", lambda: command(*planned, "--data_dir", data_dir, "--device", "cpu") and None)
    cell("validate", lambda: validated(data_dir, family, model))
    cell("plain load", lambda: plain(family, data_dir, home, method, model, merged, base))


def merge(source: Path, merged: Path) -> None:
    """Merge; the directory has weights and the processor's files."""
    command("phi3v-train", "merge", source, merged, "--overwrite")
    names = {path.name for path in merged.iterdir()}
    lacking = {"config.json", "model.safetensors", "tokenizer.json"} - names
    if lacking:
        raise MismatchError(f"lacks {sorted(lacking)}")


def killed(settings: dict[str, Any], uninterrupted: dict[str, Any]) -> None:
    """Kill a run after its checkpoint at step 2, resume it, and compare with one that was never stopped."""
    from phi3v_train.training.checkpoints import list_checkpoints

    output_dir = Path(settings["output_dir"])
    shutil.rmtree(output_dir, ignore_errors=True)
    child = os.fork()
    if child == 0:
        at_three = [lambda line: os.kill(os.getpid(), signal.SIGKILL) if line["step"] == 3 else False]
        try:
            train(settings, at_three)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
        raise MismatchError(f"the run ended with status {status} before it could be killed")
    found = [each.step for each in list_checkpoints(output_dir)]
    if found != [2]:
        raise MismatchError(f"checkpoints after the kill: {found}")
    train(settings)
    train(uninterrupted)
    same_results(output_dir, Path(uninterrupted["output_dir"]))


def same_results(first: Path, second: Path) -> None:
    """Compare metrics and weights of two runs, bit by bit."""
    from safetensors import safe_open

    if lines(first) != lines(second):
        raise MismatchError("the metrics differ")
    files = sorted(path.relative_to(first) for path in first.glob("*/*.safetensors"))
    if not files or files != sorted(path.relative_to(second) for path in second.glob("*/*.safetensors")):
        raise MismatchError(f"the files differ: {files}")
    for file in files:
        with safe_open(first / file, "pt") as one, safe_open(second / file, "pt") as other:
            if set(one.keys()) != set(other.keys()):
                raise MismatchError(f"{file}: the names differ")
            for name in one.keys():  # noqa: SIM118
                if not one.get_tensor(name).equal(other.get_tensor(name)):
                    raise MismatchError(f"{file}: {name} differs")


def same_eval(run: Path, model: Path, common: tuple[object, ...], output_dir: Path) -> None:
    """The scores of `eval` are those of the run's own evaluation."""
    given = ("--model_name_or_path", model, "--loss", "--output_dir", output_dir)
    command("phi3v-train", "eval", *given, *common)
    found = json.loads((output_dir / "eval.json").read_text())["metrics"]
    expected = json.loads((run / "eval_after.json").read_text())["metrics"]
    if found != expected:
        raise MismatchError(f"{found} instead of {expected}")


def predicted(model: Path, common: tuple[object, ...], output_dir: Path) -> None:
    """An answer for every row."""
    given = ("--model_name_or_path", model, "--eval_split", "val", "--output_dir", output_dir)
    command("phi3v-train", "predict", *given, *common)
    found = (output_dir / "predictions.jsonl").read_text().splitlines()
    if len(found) != 5:
        raise MismatchError(f"{len(found)} predictions for 5 rows")


def inspected(data_dir: Path, model: Path, page: Path) -> None:
    """Every row trains something, in the terminal and on a page."""
    given = ("--model_name_or_path", model, "--rows", "0-9")
    rows = json.loads(command("phi3v-train", "inspect", data_dir, *given, "--json"))
    if len(rows) != 10:
        raise MismatchError(f"{len(rows)} rows instead of 10")
    command("phi3v-train", "inspect", data_dir, *given)
    command("phi3v-train", "inspect", data_dir, *given, "--html", page)


def validated(data_dir: Path, family: str, model: Path) -> None:
    """The validator takes the family's name and the model's directory."""
    for value in (family, model):
        command("phi3v-data", "validate", data_dir, "--model", value, "--fresh")


def plain(family: str, data_dir: Path, home: Path, method: str, model: Path, merged: Path, base: str) -> str | None:
    """Logits of what was written, with plain transformers and peft in another process."""
    from phi3v_data.errors import UserError

    if family == "phi3v":
        raise UserError("transformers has no phi3_v: phi3v_train registers it (tested in tests/models)")
    jobs = {"merged": {"model": str(merged)}}
    jobs["model"] = {"model": str(model)} if method == "full" else {"model": base, "adapter": str(model)}
    for name, job in jobs.items():
        job["inputs"] = str(home / f"{method} {name} inputs.safetensors")
        write_logits(merged if name == "merged" else model, data_dir, Path(job["inputs"]))
    path = home / f"{method} jobs.json"
    path.write_text(json.dumps(jobs))
    script = Path(__file__).parent / "plain_load.py"
    done = subprocess.run([sys.executable, script, path], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MismatchError(done.stderr.strip()[-300:])
    found = json.loads(done.stdout.splitlines()[-1])
    if wrong := {name: each for name, each in found.items() if isinstance(each, str) or each > TOLERANCE}:
        raise MismatchError(str(wrong))
    return None


def write_logits(model: Path, data_dir: Path, path: Path) -> None:
    """Inputs of two rows with images, and the logits that our own loading gives."""
    import torch
    from safetensors.torch import save_file

    from phi3v_train.data.collate import collate
    from phi3v_train.data.order import SampleRef
    from phi3v_train.models.loading import load_model
    from phi3v_train.models.locate import locate
    from phi3v_train.plan import make_plan
    from phi3v_train.settings import resolve

    plan = make_plan(resolve(options(data_dir, path.parent / "none", base_of(model))))
    reader = plan.reader()
    inputs = collate([reader.encode(SampleRef(0, row, 0)) for row in (1, 3)], plan.renderer)
    inputs.pop("labels")
    with torch.no_grad():
        logits = load_model(locate(str(model)), plan.compute)(**inputs).logits
    tensors = {name: each.contiguous() for name, each in inputs.items() if isinstance(each, torch.Tensor)}
    save_file({**tensors, "logits": logits.contiguous()}, path)


def base_of(model: Path) -> str:
    """The model that an adapter is on."""
    config = model / "adapter_config.json"
    return str(json.loads(config.read_text())["base_model_name_or_path"]) if config.is_file() else str(model)


# Two processes


def together(families: list[str], work: Path) -> None:
    """As one of two processes: the runs of all families, each meeting at a port of its own."""
    rank = int(os.environ["RANK"])
    for family in families:
        for strategy, method in TOGETHER:
            port = receive(work, family, strategy, method, rank)
            if port is None:
                continue
            os.environ["MASTER_PORT"] = port
            output_dir = work / family / f"{strategy} {method}"
            try:
                train(options(work / "data", output_dir, f"tiny:{family}", parallel=strategy, **METHODS[method]))
                result = "ok"
            except BaseException as error:
                kind = "refused" if type(error).__name__ == "UserError" else f"fails: {type(error).__name__}"
                if kind != "refused":
                    traceback.print_exc()
                result = f"{kind}: {' '.join(str(error).split())[:300]}"
            (work / f"{family} {strategy} {method} {rank}.result").write_text(result)
            if result != "ok" or strategy.startswith("zero"):
                os._exit(1)  # the parent begins two new processes; DeepSpeed remembers the group of its first run


def receive(work: Path, family: str, strategy: str, method: str, rank: int) -> str | None:
    """The port of a run; None if its cell is filled."""
    if (work / f"{family} {strategy} {method} {rank}.result").exists():
        return None
    path = work / f"{family} {strategy} {method}.port"
    if rank == 0 and not path.exists():
        with socket.create_server(("127.0.0.1", 0)) as server:
            aside = path.with_suffix(".new")
            aside.write_text(str(server.getsockname()[1]))
            aside.rename(path)
    while not path.exists():
        time.sleep(0.05)
    return path.read_text()


def drive_together(families: list[str], work: Path) -> None:
    """Start two processes until all runs have a result, and fill the cells."""
    for family in families:
        cells = Cells(work / f"{family}.together.json")
        missing = [
            (strategy, method)
            for strategy, method in TOGETHER
            if not cells.results.get(f"{strategy} {method}", "").startswith("ok")
        ]
        for strategy, method in missing:
            for path in work.glob(f"{family} {strategy} {method}*"):
                path.unlink()
            shutil.rmtree(work / family / f"{strategy} {method}", ignore_errors=True)
    for family in families:
        cells = Cells(work / f"{family}.together.json")
        for strategy, method in TOGETHER:
            name = f"{strategy} {method}"
            if cells.results.get(name, "").startswith("ok"):
                for rank in (0, 1):
                    (work / f"{family} {name} {rank}.result").write_text("ok")
    pending = True
    while pending:
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, *families, "--work", str(work), "--ranks"],
                env={
                    **os.environ,
                    **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
                    **{"MASTER_ADDR": "127.0.0.1", "PHI3V_MATRIX": "1"},
                },
            )
            for rank in (0, 1)
        ]
        watch(ranks, families, work)
        pending = False
        for family, strategy, method in every_pair(families):
            name = f"{family} {strategy} {method}"
            found = [work / f"{name} {rank}.result" for rank in (0, 1)]
            present = [path.read_text() for path in found if path.exists()]
            if not present:
                if (work / f"{name}.port").exists():
                    present = ["fails: the processes died or hung"]
                else:
                    pending = True
                    continue
            for path in found:
                path.write_text(max(present, key=len))
        collect(families, work)


def every_pair(families: list[str]) -> Iterator[tuple[str, str, str]]:
    """Family, strategy and method of all runs."""
    for family in families:
        for strategy, method in TOGETHER:
            yield family, strategy, method


def watch(ranks: "list[subprocess.Popen[bytes]]", families: list[str], work: Path) -> None:
    """Wait for both processes, as long as there is progress; then see that both are gone."""
    last, since = -1, time.monotonic()
    ended = 0.0
    while any(process.poll() is None for process in ranks):
        done = len(list(work.glob("*.result")))
        if done != last:
            last, since = done, time.monotonic()
        gone = [process for process in ranks if process.poll() is not None]
        ended = ended or (time.monotonic() if gone else 0.0)
        if time.monotonic() - since > TIMEOUT_S or (ended and time.monotonic() - ended > 20):
            for process in ranks:
                process.kill()
        time.sleep(0.5)
        collect(families, work)


def collect(families: list[str], work: Path) -> None:
    """Fill the cells whose runs have ended."""
    for family, strategy, method in every_pair(families):
        cells = Cells(work / f"{family}.together.json")
        name = f"{strategy} {method}"
        found = [work / f"{family} {name} {rank}.result" for rank in (0, 1)]
        if name in cells.results and not cells.results[name].startswith("fails"):
            continue
        if not all(path.exists() for path in found):
            continue
        result = max((path.read_text() for path in found), key=len)
        if result == "ok":
            result = compared(work / family / method, work / family / name, strategy)
        if cells.results.get(name) != result:
            cells.set(name, result)
            print(f"{family:16} {name:28}          {result}", flush=True)


def compared(one: Path, two: Path, strategy: str) -> str:
    """Loss and gradient norm of both runs."""
    if not (one / "complete.json").exists():
        return "fails: there is no run on one process to compare with"
    worst = 0.0
    for first, second in zip(lines(one)[:COMPARED_STEPS], lines(two)[:COMPARED_STEPS], strict=True):
        for key in ("loss", "grad_norm"):
            difference = abs(first[key] - second[key]) / abs(first[key])
            worst = max(worst, difference)
            if difference > TOLERANCE:
                return f"fails: step {first['step']}: {key} {second[key]:.8g} instead of {first[key]:.8g}"
    scores = [json.loads((each / "eval_after.json").read_text())["metrics"] for each in (one, two)]
    for name, value in scores[0].items():
        if abs(value - scores[1][name]) > 1e-4 * max(1, abs(value)):
            return f"fails: after the run, {name} is {scores[1][name]} instead of {value}"
    return f"ok ({worst:.0e})"


# Results


def table(found: dict[str, dict[str, str]]) -> str:
    """Markdown: a row for each cell, a column for each family, and below the reasons."""
    notes: list[str] = []

    def cell(text: str) -> str:
        kind, _, reason = text.partition(": ")
        if not reason:
            return kind.partition(" ")[0] or "-"
        if reason not in notes:
            notes.append(reason)
        return f"{kind} [{notes.index(reason) + 1}]"

    head = ["| | " + " | ".join(found) + " |", "| --- |" + " --- |" * len(found)]
    body = [
        f"| {name} | " + " | ".join(cell(each.get(name, "-")) for each in found.values()) + " |" for name in COLUMNS
    ]
    listed = [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    title = ["# Families x methods x strategies", "", "Made by `python benchmarks/models/matrix.py`.", ""]
    return "\n".join([*title, *head, *body, "", *listed]) + "\n"


def main() -> None:
    """Parse, drive, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=[])
    parser.add_argument("--work", type=Path, default=Path("/tmp/phi3v-matrix"))
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--part", choices=("single", "together", "table"))
    parser.add_argument("--ranks", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    families = given.families or list(FAMILIES)
    if given.ranks:
        together(families, given.work)
        return
    if given.fresh:
        for family in families:
            shutil.rmtree(given.work / family, ignore_errors=True)
            for path in (*given.work.glob(f"{family} *"), *given.work.glob(f"{family}.*.json")):
                path.unlink()
    make_directory(given.work / "data")
    if given.part in (None, "single"):
        for family in families:
            single(family, given.work, Cells(given.work / f"{family}.single.json"))
    if given.part in (None, "together"):
        drive_together(families, given.work)
    found = {
        family: {
            **Cells(given.work / f"{family}.single.json").results,
            **Cells(given.work / f"{family}.together.json").results,
        }
        for family in FAMILIES
    }
    packages = ("torch", "transformers", "peft", "bitsandbytes", "deepspeed")
    result = {"machine": machine(*packages), "cells": found}
    (RESULTS / "families.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    (RESULTS / "families.md").write_text(table(found))


if __name__ == "__main__":
    main()
