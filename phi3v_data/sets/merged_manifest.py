"""Merges manifests and reports their differences."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from phi3v_data.schema import Manifest, Task

_WIDER: tuple[Task, ...] = ("classification", "vqa", "chat")
"""Tasks, each of which includes the samples of those before it."""


def merge_facts(manifests: Sequence[Manifest | None], names: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of the merged manifest (all but name, splits, history), and notes on differences.

    task: the most general. metrics: all, in order of first appearance. num_crops: the largest; none if one of the sets
    suggests none. classes: all, if every set names its classes; else none. A bare directory counts as `chat`.
    """
    notes: list[str] = []
    tasks: list[Task] = [manifest.task if manifest else "chat" for manifest in manifests]
    task = max(tasks, key=_WIDER.index)
    _note(notes, "task", tasks, names, task)
    metrics = [list(manifest.metrics) if manifest else [] for manifest in manifests]
    joint_metrics = list(dict.fromkeys(metric for each in metrics for metric in each))
    _note(notes, "metrics", [", ".join(each) or "none" for each in metrics], names, ", ".join(joint_metrics) or "none")
    crops = [manifest.num_crops if manifest else None for manifest in manifests]
    num_crops = None if None in crops else max(each for each in crops if each is not None)
    _note(notes, "num_crops", [each or "none" for each in crops], names, num_crops or "none, so 16")
    classes = [tuple(manifest.classes) if manifest else () for manifest in manifests]
    joint_classes = tuple(sorted({label for each in classes for label in each})) if all(classes) else ()
    if len(set(classes)) > 1:
        notes.append(
            f"the sets have different classes: the new set has all {len(joint_classes)}"
            if joint_classes
            else "not every set names its classes: the new set has none"
        )
    known = [manifest for manifest in manifests if manifest]
    licenses = list(dict.fromkeys(manifest.license for manifest in known if manifest.license))
    _note(notes, "license", [each.license if each else "" for each in manifests], names, "; ".join(licenses))
    rejects: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    for manifest in known:
        rejects.update(manifest.rejects)
        kept.update(manifest.notes)
    facts = {
        "task": task,
        "metrics": joint_metrics,
        "num_crops": num_crops,
        "classes": joint_classes,
        "source": "; ".join(dict.fromkeys(manifest.source for manifest in known if manifest.source)),
        "license": "; ".join(licenses),
        "rejects": dict(sorted(rejects.items())),
        "notes": dict(sorted(kept.items())),
    }
    return facts, notes


def _note(notes: list[str], what: str, values: Sequence[object], names: Sequence[str], result: object) -> None:
    if len(set(values)) > 1:
        each = ", ".join(f"{name} {value or 'none'}" for name, value in zip(names, values, strict=True))
        notes.append(f"{what} differs ({each}): the new set has {result or 'none'}")
