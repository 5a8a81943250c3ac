"""A run's folder explains itself: settings with their origins, versions, data receipt, results, model card."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from phi3v_data.files import write_json, write_text
from phi3v_data.markdown import markdown_code, markdown_text
from phi3v_data.schema import Manifest
from phi3v_train.config import RunConfig
from phi3v_train.models.family import ModelFamily
from phi3v_train.settings import Settings
from phi3v_train.training.checkpoints import checkpoint_folders, remove, sweep

CONFIG, ENVIRONMENT, DATA, METRICS, PLOT = "config.yaml", "environment.json", "data.json", "metrics.jsonl", "loss.png"
CARD, DONE, MODEL, TENSORBOARD, PREDICTIONS = "README.md", "complete.json", "model", "tensorboard", "predictions"
DEEPSPEED = "deepspeed.json"
EVAL_BEFORE, EVAL_AFTER, BEST = "eval_before.json", "eval_after.json", "best.json"

PACKAGES = (
    "phi3v",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "deepspeed",
    "safetensors",
    "numpy",
    "Pillow",
    "simplejpeg",
)


def clear(output_dir: Path) -> None:
    """Remove what a run wrote, and nothing else."""
    for name in (DONE, METRICS, CONFIG, DEEPSPEED, ENVIRONMENT, DATA, PLOT, CARD, EVAL_BEFORE, EVAL_AFTER, BEST):
        (output_dir / name).unlink(missing_ok=True)
    for path in output_dir.glob("eval_step-*.json"):
        path.unlink()
    for checkpoint in checkpoint_folders(output_dir):
        remove(checkpoint.path)
    for name in (MODEL, TENSORBOARD, PREDICTIONS):
        if (output_dir / name).is_dir():
            remove(output_dir / name)
    sweep(output_dir)


def config_text(settings: Settings) -> str:
    """`config.yaml`: every setting in its group, with its origin beside it; `--config` reads it again."""
    lines = ["# Every setting of this run, and where it came from; phi3v-train run --config takes this file."]
    for group, values in settings.config.model_dump(mode="json").items():
        lines.append(f"{group}:")
        for name, value in values.items():
            text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
            text = text.rstrip().removesuffix("...").rstrip()
            lines.append(f"  {name}: {text}  # {settings.origin(name)}")
    return "\n".join(lines) + "\n"


def environment(device: str) -> dict[str, Any]:
    """Versions and the type of machine; no names, no paths."""
    import torch

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    result: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": versions,
        "cpu_threads": torch.get_num_threads(),
        "device": device,
    }
    if device == "cuda":
        result["gpu"] = torch.cuda.get_device_name()
        result["cuda"] = torch.version.cuda
    return result


def write_start(
    output_dir: Path, settings: Settings, data: Any, device: str, deepspeed: Mapping[str, Any] | None = None
) -> None:
    """Write settings, environment and data of a run that begins."""
    if deepspeed is not None:
        write_json(output_dir / DEEPSPEED, deepspeed)
    else:
        (output_dir / DEEPSPEED).unlink(missing_ok=True)
    write_text(output_dir / CONFIG, config_text(settings))
    write_json(output_dir / ENVIRONMENT, environment(device))
    write_json(output_dir / DATA, data)


def card_text(
    config: RunConfig,
    family: ModelFamily,
    *,
    task: str,
    data: Sequence[Manifest],
    base: str,
    trained: Mapping[str, int],
    steps: int,
    samples: int,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    last: Mapping[str, Any] | None,
    ending: Mapping[str, Any],
) -> str:
    """`README.md`: what the model is, how it was made, what it scores, how to use it.

    `ending` are the entries of `complete.json` about the best evaluation, see `BestKeeper.outcome`.
    """
    adapter, budget = config.method.use_lora, family.image_budget(config.model.image_options)
    option = family.tokens.budget_option
    kind = "Adapter (PEFT)" if adapter else "Model"
    header: dict[str, Any] = {
        "base_model": base,
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": list(family.card_tags),
    }
    if licences := sorted({each.license for each in data if each.license}):
        header["license"] = licences[0] if len(licences) == 1 else licences
    parts = ", ".join(f"{markdown_text(part)} {count:,}" for part, count in trained.items())
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False).rstrip(),
        "---",
        "",
        f"# {markdown_text(base)} tuned on {markdown_text(task)}",
        "",
        f"{kind} made by `phi3v-train run`: {config.method.name}, {steps:,} steps of {config.optim.batch_size} samples "
        f"({samples:,} samples seen). Trained parameters: {parts}.",
        *ending_lines(ending, steps),
        "",
        "| | |",
        "| --- | --- |",
        f"| learning rate | {config.optim.learning_rate:g}, {config.optim.lr_scheduler}, "
        f"{config.optim.warmup_steps} warm-up steps |",
        f"| weight decay, clipping | {config.optim.wd:g}, {config.optim.max_grad_norm:g} |",
        *([f"| image budget (`{option}`) | {budget} |"] if budget is not None else []),
        f"| seed | {config.optim.seed} |",
    ]
    if last is not None:
        lines.append(f"| loss of the last step | {last['loss']:.4f} |")
    if before or after or scored_best(ending):
        lines += ["", "## Scores", "", *score_table(before, after, ending)]
    lines += [
        "",
        "![loss](loss.png)",
        "",
        *data_lines(data),
        "## Use",
        "",
        *family.card_note(),
        "```python",
        *family.card_usage(MODEL, budget, adapter=adapter),
        "```",
        "",
        "```bash",
        "phi3v-train eval --model_name_or_path model --data_dir DIR"
        + (f" --{option} {budget}" if budget is not None else ""),
        *(["phi3v-train merge model merged"] if adapter else []),
        "```",
        "",
        "`config.yaml` holds every setting and its origin, `environment.json` the versions, `data.json` the digests of "
        "the data, `metrics.jsonl` every logged step.",
        "",
    ]
    return "\n".join(lines)


def data_lines(data: Sequence[Manifest]) -> list[str]:
    """The sets that were trained on, as their `dataset.json` describes them."""
    if not data:
        return []
    rows = [
        f"| {markdown_text(each.name)} | {markdown_text(each.source or 'not stated')} | "
        f"{markdown_text(each.license or 'not stated')} |"
        for each in data
    ]
    note = "The weights are under the licence of the base model; check what the licences of the data add to it."
    return ["## Data", "", "| set | source | licence |", "| --- | --- | --- |", *rows, "", note, ""]


def ending_lines(ending: Mapping[str, Any], steps: int) -> list[str]:
    """Why training ended before its last step, and which step the weights are those of, as Markdown."""
    lines = []
    if "reason" in ending:
        lines.append(f"Training ended early, after step {steps:,}: {markdown_text(ending['reason'])}.")
    if best := scored_best(ending):
        metric = f"{markdown_text(best['metric'])} on {markdown_code(best['split'])}, {best['value']:.4g}"
        lines.append(f"The weights are those of step {best['step']:,}, the best of the evaluations ({metric}).")
    return ["", *lines] if lines else []


def scored_best(ending: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The best evaluation, if the finished model has its weights; None if it does not, or the run compares none."""
    best: Mapping[str, Any] | None = ending.get("best")
    return best if best is not None and best["step"] == ending.get("model_step") else None


def score_table(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, ending: Mapping[str, Any]
) -> list[str]:
    """Metrics before and after training, as Markdown; those of the best evaluation between, if it has the weights."""
    best = scored_best(ending)
    between = {f"step {best['step']:,}": best} if best and best["step"] != (after or {}).get("step") else {}
    columns = {"before": before, **between, "after": after}
    results = [each for each in columns.values() if each]
    names = list(dict.fromkeys(name for each in results for name in each["metrics"]))
    split, count = results[-1]["split"], results[-1]["num_samples"]

    def cell(result: Mapping[str, Any] | None, name: str) -> str:
        value = (result or {}).get("metrics", {}).get(name)
        return "" if value is None else f"{value:.4g}"

    rows = [[markdown_text(name), *(cell(each, name) for each in columns.values())] for name in names]
    return [
        f"On split {markdown_code(split)} ({count:,} samples):",
        "",
        *(f"| {' | '.join(row)} |" for row in [["metric", *columns], ["---"] * (1 + len(columns)), *rows]),
    ]
