"""Results of an evaluation: `eval.json`, and the confusion matrix if the answers are classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phi3v_data.files import write_json
from phi3v_train.evaluation.confusion import confusion_of
from phi3v_train.evaluation.confusion_plot import draw_confusion
from phi3v_train.evaluation.metric import Metric, Records, score
from phi3v_train.evaluation.predictions import CONFUSION, RESULT


def make_result(
    records: Records,
    metrics: Sequence[Metric],
    *,
    split: str,
    num_samples: int,
    model: str | None,
    step: int | None,
    extra: Mapping[str, float | None] | None = None,
) -> dict[str, Any]:
    """Contents of `eval.json`."""
    scores = score(records, metrics)
    result: dict[str, Any] = {
        "split": split,
        "num_samples": num_samples,
        "metrics": {**scores.values, **(extra or {})},
        "model": model,
        "step": step,
    }
    return {**result, "notes": scores.notes} if scores.notes else result


def write_scores(records: Records, result: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Write `eval.json` and, where the answers are classes and matplotlib is installed, `confusion.png`.

    Returns:
        The files written, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RESULT
    write_json(path, result)
    return {"scores": path, **draw(records, result, folder)}


def draw(records: Records, result: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Draw `confusion.png`, where the answers are classes and matplotlib is installed."""
    path = folder / CONFUSION
    path.unlink(missing_ok=True)
    matrix = confusion_of(records)
    if matrix is None:
        return {}
    name, value = next(iter(result["metrics"].items()))
    headline = "" if value is None else f": {name} {value:.3g}"
    try:
        draw_confusion(matrix, path, title=f"{result['split']}, {len(records):,} answers{headline}")
    except ImportError:
        return {}
    return {"confusion": path}
