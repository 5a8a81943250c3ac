"""`loss.png`: the run on one page, drawn again while it trains."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phi3v_data.files import write_whole
from phi3v_train.training.metrics_log import SOURCE_LOSS

SMOOTHED = "#1f5fa8"
RAW = "#b9cfe8"
HELD_OUT = "#d1495b"
GREY = "#6b7280"
SOURCES = ("#2a9d8f", "#e9a23b", "#8e6fb5", "#6c8f3c", "#c06c4e", "#4aa3c7")
"""One color for each data source, of the first ones."""


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """Exponential mean without the bias of its start."""
    result, mean = [], 0.0
    for count, value in enumerate(values, 1):
        mean = weight * mean + (1 - weight) * value
        result.append(mean / (1 - weight**count))
    return result


def source_names(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Data sources that have losses of their own, in the order in which they first appear."""
    keys = dict.fromkeys(key for line in lines for key in line if key.startswith(SOURCE_LOSS))
    return [key.removeprefix(SOURCE_LOSS) for key in keys]


def draw_loss(metrics: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Training loss (raw and smoothed; by data source if there are several), held-out loss, learning rate and
    gradient norm over the steps.

    Written aside and renamed. Nothing is drawn before the first logged step.
    """
    train = [line for line in metrics if "loss" in line]
    if not train:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    steps = [line["step"] for line in train]
    losses = [line["loss"] for line in train]
    weight = max(0.0, 1 - 40 / len(losses)) if len(losses) > 40 else 0.0
    if weight:
        upper.plot(steps, losses, color=RAW, linewidth=0.8, label="each logged step")
    smoothed = smooth(losses, min(weight, 0.98))
    upper.plot(steps, smoothed, color=SMOOTHED, linewidth=1.8, label="training" + (", smoothed" if weight else ""))
    for name, color in zip(source_names(train), SOURCES, strict=False):
        points = [(line["step"], line[f"{SOURCE_LOSS}{name}"]) for line in train if f"{SOURCE_LOSS}{name}" in line]
        values = smooth([value for _, value in points], min(weight, 0.98))
        upper.plot([step for step, _ in points], values, color=color, linewidth=1.0, alpha=0.8, label=name)
    held_out = [(line["step"], line["eval_loss"]) for line in metrics if line.get("eval_loss") is not None]
    if held_out:
        upper.plot(*zip(*held_out, strict=True), "o-", color=HELD_OUT, linewidth=1.4, markersize=4, label="held out")
    shown = smoothed + [value for _, value in held_out]
    low, high = min(losses + shown), max(max(shown), sorted(losses)[int(0.98 * (len(losses) - 1))])
    margin = 0.06 * (high - low) or 0.1
    upper.set_ylim(max(0.0, low - margin), high + margin)
    upper.annotate(
        f"{smoothed[-1]:.3g}", (steps[-1], smoothed[-1]), xytext=(6, 0), textcoords="offset points",
        va="center", color=SMOOTHED, fontsize=10,
    )  # fmt: skip
    upper.set_ylabel("loss per supervised token")
    upper.set_title(title, loc="left", fontsize=12)
    upper.legend(frameon=False, loc="upper right")
    lower.plot(steps, [line["lr"] for line in train], color=GREY, linewidth=1.4)
    lower.set_ylabel("learning rate", color=GREY)
    lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    lower.set_xlabel("step")
    lower.set_ylim(bottom=0)
    norms = lower.twinx()
    norms.plot(steps, [line.get("grad_norm", math.nan) for line in train], color=RAW, linewidth=0.9)
    norms.set_ylabel("gradient norm", color=SMOOTHED)
    norms.set_ylim(bottom=0)
    for axes in (upper, lower, norms):
        axes.spines[["top"]].set_visible(False)
        axes.margins(x=0.02)
    upper.spines[["right"]].set_visible(False)
    upper.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    upper.set_axisbelow(True)
    with write_whole(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})
