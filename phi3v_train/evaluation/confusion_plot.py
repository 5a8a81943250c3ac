"""The confusion matrix as an image, readable with 3 classes and with 101."""

from pathlib import Path

from phi3v_data.files import write_whole
from phi3v_train.evaluation.confusion import Confusion

NUMBERED_CLASSES = 25
"""Up to so many classes each cell shows its count; beyond, colour alone, and only mistakes that repeat are listed."""

LISTED_MISTAKES = 12
LONGEST_NAME = 28


def draw_confusion(matrix: Confusion, path: Path, *, title: str) -> None:
    """Draw the matrix, rows being the true classes in shares of each row. Written aside and renamed.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    columns = matrix.columns()
    counts = np.array([[matrix.counts[true].get(name, 0) for name in columns] for true in matrix.classes])
    shares = counts / counts.sum(axis=1, keepdims=True)
    size = len(columns)
    numbered = size <= NUMBERED_CLASSES
    cell = 0.42 if numbered else max(0.16, 0.3 - 0.0015 * size)
    label = max(len(_short(matrix, name)) for name in columns) * (0.085 if numbered else 0.06)
    mistakes = _mistakes(matrix) if not numbered else []
    side = 4.0 if mistakes else 0.0
    width, height = max(4.2, label + cell * size + 1.2), max(3.4, label + cell * len(matrix.classes) + 1.1)
    figure = Figure(figsize=(width + side, height), dpi=110 if numbered else 150, layout="constrained")
    FigureCanvasAgg(figure)
    if mistakes:
        axes, text = figure.subplots(1, 2, width_ratios=[width, side])
        text.axis("off")
        text.text(0, 1, "Most frequent mistakes\n(true → predicted)\n\n" + "\n".join(mistakes), va="top", fontsize=10)
    else:
        axes = figure.subplots()
    norm = PowerNorm(0.6, vmin=0, vmax=1)  # so that rare mistakes are seen too
    image = axes.imshow(shares, cmap="Blues", norm=norm, aspect="equal", interpolation="nearest")
    font = 9 if numbered else max(4.5, 8 - 0.03 * size)
    axes.set_xticks(range(size), [_short(matrix, name) for name in columns], rotation=90, fontsize=font)
    axes.set_yticks(range(len(matrix.classes)), [_short(matrix, name) for name in matrix.classes], fontsize=font)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(matrix.classes) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#e5e7eb", linewidth=0.6 if numbered else 0.3)
    axes.tick_params(which="minor", length=0)
    if numbered:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.45 else "#1f2937"
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=8, color=colour)
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
    bar.set_label("share of the true class", fontsize=8)
    bar.outline.set_visible(False)
    with write_whole(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def _mistakes(matrix: Confusion) -> list[str]:
    """The pairs most often confused, with counts; ties by name."""
    pairs = [(-count, true, name) for true, row in matrix.counts.items() for name, count in row.items() if name != true]
    return [
        f"{-count:>4} x {_short(matrix, true)} → {_short(matrix, name)}"
        for count, true, name in sorted(pairs)[:LISTED_MISTAKES]
    ]


def _short(matrix: Confusion, name: str) -> str:
    name = matrix.names.get(name, name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
